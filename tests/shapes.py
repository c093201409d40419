"""In tests every local named x_ABC is a tensor of three dimensions, one size per letter per call.

The legend of letters is read from the docstring of nanochat/model/__init__.py.
"""

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from types import CodeType, FrameType
from typing import Any

import nanochat.model

ROOMS = ("model", "train", "engine", "batches")
NUM_EVENTS = 100_000  # about 30 ms; unbounded, the tests of the engine took 40% longer
LEGEND_ENTRY = re.compile(r"(?:^ {4}| {2})([A-Z](?:, [A-Z])*) {2}(?=\w)", re.MULTILINE)
SUFFIX = re.compile(r"_([A-Z]+)$")
CHECKED_FILES = re.compile(r"nanochat/(model/\w+|engine/\w+|batches/\w+|train/(loss|rl))\.py$")


def letters_of(legend: str) -> frozenset[str]:
    """The letters a legend explains: lines of four spaces, letters, two spaces, words."""
    return frozenset(re.findall(r"[A-Z]", "".join(LEGEND_ENTRY.findall(legend))))


LEGEND = letters_of(nanochat.model.__doc__ or "")


def problems(frame_locals: Mapping[str, Any], legend: frozenset[str] = LEGEND) -> Iterator[str]:
    """What is wrong with the names of these locals."""
    first: dict[str, tuple[int, str]] = {}  # letter -> (size, the name that set it)
    for name, value in frame_locals.items():
        match = SUFFIX.search(name)
        if not match or not hasattr(value, "shape"):
            continue
        letters, shape = match[1], tuple(value.shape)
        if unknown := set(letters) - legend:
            yield f"{name}: {sorted(unknown)} not in the legend"
        elif len(letters) != len(shape):
            yield f"{name}: the name has {len(letters)} letters, the tensor has shape {shape}"
        else:
            for letter, size in zip(letters, shape, strict=True):
                known = first.setdefault(letter, (size, name))
                if known[0] != size:
                    yield f"{name}: {letter}={size}, but {known[1]} has {letter}={known[0]}"


def profiler(
    found: list[str], num_events: int = NUM_EVENTS
) -> Callable[[FrameType, str, Any], None]:
    """A function for sys.setprofile that appends to `found` what is wrong as functions return.

    After `num_events` calls and returns of anything at all it takes itself out: a loop says nothing
    new, and what a test pays is bounded.
    """
    is_checked: dict[tuple[CodeType, str], bool] = {}  # equal code may come from two files
    countdown = iter(range(num_events))

    def on_event(frame: FrameType, event: str, argument: Any) -> None:
        if next(countdown, None) is None:
            sys.setprofile(None)
            return
        if event != "return":
            return
        code = frame.f_code
        key = (code, code.co_filename)
        known = is_checked.get(key)
        if known is None:
            known = is_checked[key] = _has_suffixes(code)
        if known:
            where = f"{code.co_filename.rpartition('nanochat/')[2]}:{code.co_firstlineno}"
            found.extend(f"{where} {code.co_name}: {text}" for text in problems(frame.f_locals))

    return on_event


def _has_suffixes(code: CodeType) -> bool:
    names = code.co_varnames + code.co_cellvars + code.co_freevars
    return bool(CHECKED_FILES.search(code.co_filename)) and any(map(SUFFIX.search, names))

"""A file of questions -> a task.   in: JSONL, CSV, TOML or Python, a few flags   out: Task
who calls: cli (eval)   (imports no torch)

    my.jsonl, my.csv    the questions; flags say which columns are what
    my.toml             the same words as keys, with `file` naming the questions
    my.py               TASK, a task.Task, or a function `task` that makes one; my.py:name another
Everything is read and checked before a model is asked anything.  The version of such a task is a
hash of what it was made from, so results from before and after an edit are not taken for alike.
Read next: table.py (rows), questions.py (samples), docs/evaluate.md (worked examples).
"""

import dataclasses
import hashlib
import importlib.util
import json
import random
import re
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat.common.config import from_dict, to_json_dict
from nanochat.common.errors import ConfigError, DataError, NanochatError
from nanochat.evals.questions import TaskSpec, baseline_of, judge_of, samples_of, told_flags
from nanochat.evals.table import read_table
from nanochat.evals.task import Judge, Judgement, Sample, Selection, Task

__all__ = ["TaskFileOptions", "load_task"]

SHUFFLE_SEED = 1337  # as in CORE


@dataclass(frozen=True, kw_only=True)
class TaskFileOptions(TaskSpec):
    """The flags of a task of one's own; cli/eval.py inherits them."""

    task_file: str | None = None
    """A task of your own: .jsonl or .csv with --kind, a .toml that says the rest, or Python
    (my.py, my.py:name)."""


@dataclass(frozen=True, kw_only=True)
class _TomlTask(TaskSpec):
    """A task as a TOML file has it."""

    file: Path
    """The questions, from the TOML file's folder."""
    name: str | None = None


def load_task(path: str, spec: TaskSpec | None = None) -> Task:
    """The task of a file; `spec` says what the columns of a JSONL or CSV file are.

    Raises: DataError naming file, line and column; ConfigError for settings that contradict, or
            that say what a TOML or Python file says itself.
    """
    file, _, name = path.partition(":") if ".py:" in path else (path, "", "")
    place = Path(file).expanduser()
    if not place.is_file():
        raise DataError(f"{place} does not exist, expected .jsonl, .csv, .toml or .py")
    if place.suffix in (".py", ".toml") and spec is not None and (told := told_flags(spec)):
        raise ConfigError(
            f"{', '.join(told)} would change nothing: {place.name} says all of it itself, expected "
            "such flags with a JSONL or CSV file only"
        )
    if place.suffix == ".py":
        return _python_task(place, name)
    if place.suffix == ".toml":
        toml = _read_toml(place)
        return _table_task(toml, place.parent / toml.file, toml.name or place.stem, str(place))
    stem = place.name.partition(".")[0]
    return _table_task(spec or TaskSpec(), place, stem, "--kind")


# ---------------------------------------------------------------------------------------- tables


def _table_task(spec: TaskSpec, path: Path, name: str, where: str) -> Task:
    if spec.kind is None:
        raise ConfigError(
            f"{where}: no kind for {path.name}, expected multiple-choice, exact-match, regex, "
            "generative or code"
        )
    rows = read_table(path)
    samples = samples_of(spec, rows)
    return Task(
        name=_checked_name(name, path),
        version=_version(_described(spec), path.read_bytes()),
        kind="multiple_choice" if spec.kind == "multiple-choice" else "generative",
        load=lambda selection: _selected(samples, selection),
        baseline=baseline_of(spec, samples),
        judge=judge_of(spec),
        max_tokens=spec.answer_tokens,
        tools=spec.calculator,
        runs_code=spec.kind == "code",
        notes=(f"{len(rows):,} questions of {path.name}, {spec.kind}",),
    )


def _described(spec: TaskSpec) -> str:
    """The settings that decide samples and verdicts, as text; paths and names do not."""
    fields = {field.name for field in dataclasses.fields(TaskSpec)}
    values = to_json_dict(spec)
    return json.dumps({key: values[key] for key in sorted(fields)})


def _version(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()[:12]


def _selected(samples: Sequence[Sample], selection: Selection) -> list[Sample]:
    """In the task's own order, so that a limit takes from the whole file."""
    order = list(range(len(samples)))
    random.Random(SHUFFLE_SEED).shuffle(order)
    return [samples[index] for index in order[: selection.limit]]


def _checked_name(name: str, path: Path) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise DataError(
            f"{path}: {name!r} cannot be the name of a task, expected letters, digits, dots, "
            'dashes and underscores: rename the file, or say name = "..." in a TOML file'
        )
    return name


# ------------------------------------------------------------------------------------ TOML, Python


def _read_toml(path: Path) -> _TomlTask:
    try:
        text = path.read_bytes().decode()
        values = tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 at byte {error.start}, expected TOML") from None
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{path} is not TOML: {error}") from None
    try:
        return from_dict(_TomlTask, values, str(path))
    except ConfigError as error:
        message = str(error).removeprefix(f"{path}: ")
        raise ConfigError(f"{path}{_line_of(text, values, message)}: {message}") from None


def _line_of(text: str, values: dict[str, Any], message: str) -> str:
    """Where the key stands that an error names."""
    for key in values:
        if re.search(rf"\b{re.escape(key)}\b", message):
            for number, line in enumerate(text.splitlines(), 1):
                if re.match(rf"\s*\"?{re.escape(key)}\"?\s*=", line):
                    return f", line {number}"
    return ""


def _python_task(path: Path, name: str) -> Task:
    """The task that a Python file defines; its code runs with all rights of the user's."""
    module_name = f"nanochat_task_{path.stem}"
    module_spec = importlib.util.spec_from_file_location(module_name, path)
    assert module_spec is not None and module_spec.loader is not None, f"{path} is a .py file"
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_name] = module  # dataclasses of the file look themselves up there
    try:
        module_spec.loader.exec_module(module)
        names = [each for each in ([name] if name else ["TASK", "task"]) if hasattr(module, each)]
        found = getattr(module, names[0]) if names else None
        task = found() if callable(found) else found
    except SyntaxError as error:
        raise DataError(
            f"{path}, line {error.lineno}, column {error.offset}: {error.msg}"
        ) from None
    except Exception as error:  # whatever the file's own code raises
        raise _own_fault(path, error) from error
    if task is None:
        raise DataError(
            f"{path} has no {name or 'TASK and no task()'}, expected a nanochat.evals.task.Task, "
            "or a function that makes one"
        )
    if not isinstance(task, Task):
        raise DataError(f"{path}: {type(task).__name__}, expected a nanochat.evals.task.Task")
    return dataclasses.replace(
        task,
        version=f"{task.version}+{_version(path.read_bytes())}",
        load=lambda selection: _own_samples(path, task, selection),
        judge=None if task.judge is None else _own_judge(path, task.judge),
    )


def _own_samples(path: Path, task: Task, selection: Selection) -> list[Sample]:
    """What the file's `load` gives.

    Raises: DataError naming the line for whatever it raises, and for what is no sample or has the
            sample_id of another.
    """
    try:
        samples = list(task.load(selection))
    except NanochatError:
        raise
    except Exception as error:
        raise _own_fault(path, error) from error
    places: dict[str, int] = {}
    for place, sample in enumerate(samples, 1):
        if not isinstance(sample, Sample):
            raise DataError(
                f"{path}: load gave {sample!r:.60}, expected nanochat.evals.task.Sample"
            )
        first = places.setdefault(sample.sample_id, place)
        if first != place:
            raise DataError(
                f"{path}: load gave samples {first} and {place} the same sample_id "
                f"{sample.sample_id!r:.60}, expected one of its own for each: results are kept and "
                "compared by it"
            )
    return samples[: selection.limit]


def _own_judge(path: Path, judge: Judge) -> Judge:
    """The same, but whatever it raises is said with the file's line."""

    def guarded(sample: Sample, output: str) -> Judgement:
        try:
            found = judge(sample, output)
        except NanochatError:
            raise
        except Exception as error:
            raise _own_fault(path, error) from error
        if not isinstance(found, Judgement) or not 0 <= found.score <= 1:  # NaN is neither
            raise DataError(
                f"{path}: judge gave {found!r:.60} for sample {sample.sample_id}, expected a "
                "nanochat.evals.task.Judgement with a score from 0 to 1"
            )
        return found

    return guarded


def _own_fault(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}, line {_line_in(path, error)}: {type(error).__name__}: {error}")


def _line_in(path: Path, error: BaseException) -> int | str:
    """The last line of that file on the way to an error."""
    line: int | str = "?"
    trace = error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename) == path:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line

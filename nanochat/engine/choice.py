"""Candidates -> the fastest that is right.   in: weight_CR, a format   out: Linear
who calls: forward.py

Each candidate is tried on the first matrix of a shape: what fails or computes something else is
left out with one line in the log; of the rest the fastest is kept for each bucket of rows, the
first in doubt.  The choices are kept on the disk for each processor, PyTorch version and number of
threads.
Read next: operators.py (the candidates).
"""

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanochat.common.device import cpu_flags
from nanochat.common.errors import DataError
from nanochat.common.files import read_json, write_json_atomically
from nanochat.engine.operators import (
    BUCKETS,
    CANDIDATES,
    TOLERANCES,
    Candidate,
    Linear,
    Multiply,
    Role,
    WeightFormat,
    dequantized,
    plain,
)

__all__ = ["OperatorChooser", "error_of", "machine_key", "seconds_of"]

TIMED_SECONDS = 0.04  # for each candidate and bucket
TIMED_COPIES_ELEMENTS = 40_000_000  # of all copies of a matrix together, and at most
TIMED_COPIES = 16
TIMED_ELEMENTS = 2**16  # a smaller matrix is not worth timing: the first candidate is taken
WORTH = 0.8  # another layout than the first must take less than this share of its time
FALLBACK = "plain"

logger = logging.getLogger(__name__)


class OperatorChooser:
    """Makes a Linear of every matrix given to it; equal shapes are measured once."""

    def __init__(self, format: WeightFormat, cache: Path | None) -> None:
        self.format = format
        self._file = cache / f"operators-{machine_key()}.json" if cache is not None else None
        self._choices: dict[str, list[str]] = {}
        self._is_new = False
        if self._file is not None and self._file.exists():
            self._choices = _read(self._file)

    def make(self, weight_CR: Tensor, role: Role) -> Linear:
        """The matrix packed as the choice for its shape says, chosen now if there is none."""
        shape = (weight_CR.size(0), weight_CR.size(1))
        key = f"{self.format} {shape[0]}x{shape[1]} {role}"
        built: dict[str, Multiply] = {}
        if key not in self._choices:
            built = self._right_ones(weight_CR, role)
            self._choices[key] = self._fastest(built, weight_CR, role)
            self._is_new = True
        names = self._choices[key]
        for name in set(names) - set(built):
            built[name] = self._build(name, weight_CR, role)
        return Linear(shape, tuple(built[name] for name in names))

    def save(self) -> None:
        """Keep what was measured; a disk that refuses costs the next start some time, no more."""
        if self._file is None or not self._is_new:
            return
        try:
            write_json_atomically(self._file, self._choices)
        except OSError as error:
            logger.info("the choice of operators is not kept: %s", error)

    def _right_ones(self, weight_CR: Tensor, role: Role) -> dict[str, Multiply]:
        """The candidates that work here and compute the product; never none."""
        built: dict[str, Multiply] = {}
        for candidate in _usable(self.format):
            try:
                multiply = candidate.build(weight_CR, role)
                target_CR = dequantized(weight_CR, self.format)
                error = error_of(multiply, target_CR, role, candidate.most_rows)
            except (RuntimeError, AttributeError, NotImplementedError) as problem:
                reason = " ".join(str(problem).split())[:120]
                logger.info("operator %s left out: %s", candidate.name, reason)
                continue
            if error > TOLERANCES[self.format]:
                logger.info("operator %s left out: its error is %.3g", candidate.name, error)
                continue
            built[candidate.name] = multiply
        if not built:
            logger.info("%s: no operator works, F.linear does", self.format)
            built[FALLBACK] = self._build(FALLBACK, weight_CR, role)
        return built

    def _build(self, name: str, weight_CR: Tensor, role: Role) -> Multiply:
        for candidate in _usable(self.format):
            if candidate.name == name:
                return candidate.build(weight_CR, role)
        dtype = torch.float32 if self.format == "float32" else torch.bfloat16
        return plain(dequantized(weight_CR, self.format), role, dtype)

    def _fastest(self, built: dict[str, Multiply], weight_CR: Tensor, role: Role) -> list[str]:
        """The name for each bucket: the first candidate's, unless another is clearly faster."""
        most_rows = {c.name: c.most_rows or BUCKETS[-1] for c in CANDIDATES[self.format]}
        is_timed = len(built) > 1 and weight_CR.numel() >= TIMED_ELEMENTS
        num_copies = min(TIMED_COPIES, max(1, TIMED_COPIES_ELEMENTS // weight_CR.numel()))
        copies = {
            name: [multiply]
            + [self._build(name, weight_CR, role) for _ in range(num_copies - 1 if is_timed else 0)]
            for name, multiply in built.items()
        }
        choice: list[str] = []
        for num_rows in BUCKETS:
            able = {n: c for n, c in copies.items() if most_rows.get(n, num_rows) >= num_rows}
            assert able, f"{self.format}: no operator for {num_rows} rows"
            first = next(iter(able))
            if len(able) > 1 and is_timed:
                times = seconds_of(able, torch.rand(num_rows, weight_CR.size(1)))
                best = min(times, key=times.__getitem__)
                first = best if times[best] < WORTH * times[first] else first
            choice.append(first)
        return choice


def error_of(
    multiply: Multiply, weight_CR: Tensor, role: Role = "plain", most_rows: int | None = None
) -> float:
    """The largest error of a product, over what is typical of its row and channel, for 1 and for 5
    rows.

    The fifth row is 25 times the first: what quantizes all rows by one scale shows.
    """
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for num_rows in (1,) if most_rows == 1 else (1, 5):
        x_NR = torch.randn(num_rows, weight_CR.size(1), generator=generator)
        x_NR = x_NR.abs() if role == "contract" else x_NR
        x_NR *= torch.arange(1.0, num_rows + 1)[:, None] ** 2
        product_NC = x_NR @ weight_CR.T
        want_NC = product_NC.relu() if role == "expand" else product_NC
        away_NC = (multiply(x_NR).float() - want_NC).abs()
        # Each row and each channel by its own size: some are many times the others.
        size_NC = x_NR.square().mean(-1).sqrt()[:, None] * weight_CR.norm(dim=-1)
        worst = max(worst, float((away_NC / size_NC.clamp_min(1e-20)).max()))
    return worst


def seconds_of(
    built: Mapping[str, Sequence[Multiply]], x_NR: Tensor, budget_s: float = TIMED_SECONDS
) -> dict[str, float]:
    """The shortest time of a call of each, taken in turn: what else the machine does hits all
    alike.  Each has several copies of the matrix, so that none lies in a cache, as in a model."""
    best = dict.fromkeys(built, float("inf"))
    end_s, rounds = time.perf_counter() + budget_s * len(built), 0
    while rounds < 3 or time.perf_counter() < end_s:
        rounds += 1
        for name, copies in built.items():
            start_s = time.perf_counter()
            for multiply in copies:
                multiply(x_NR)
            best[name] = min(best[name], (time.perf_counter() - start_s) / len(copies))
    return best


def machine_key() -> str:
    """What a choice depends on besides the matrix: the processor, PyTorch, the threads."""
    parts = (torch.__version__, str(torch.get_num_threads()), *sorted(cpu_flags()))
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:12]


def _usable(format: WeightFormat) -> list[Candidate]:
    flags = cpu_flags()
    return [candidate for candidate in CANDIDATES[format] if candidate.is_usable(flags)]


def _read(path: Path) -> dict[str, list[str]]:
    """The choices in a file; what is damaged or no longer known is measured again."""
    try:
        raw: Any = read_json(path)
    except (DataError, OSError) as error:
        logger.info("the choice of operators is measured again: %s", error)
        return {}
    if not isinstance(raw, dict):
        return {}
    known = {format: {FALLBACK, *(c.name for c in _usable(format))} for format in CANDIDATES}
    return {
        key: names
        for key, names in raw.items()
        if isinstance(names, list)
        and len(names) == len(BUCKETS)
        and set(map(str, names)) <= known.get(key.split(" ")[0], set())  # type: ignore[call-overload]
    }

"""Verdicts -> how sure one may be.   in: counts, scores   out: intervals, p-values
who calls: results.py, compare.py, report_eval.py   (imports no torch)

    wilson           one share of right answers: 7 of 10 is 0.40 to 0.89
    bootstrap_*      a mean, bits over bytes, or a composite of many tasks (CORE, ChatCORE)
    mcnemar          two models on the same questions, each right or wrong
    paired_bootstrap two models on the same questions, a composite or scores between 0 and 1
    paired_ratio     two models on the same documents: bits over bytes
    holm             many p-values at once

Intervals of differences are resampled, their p-values hold against sign flips too: of three
questions there are ten sets to draw, and where all three gain the bootstrap alone is sure.
Drawing n of n values with replacement is one multinomial draw over the distinct values: of 14,042
verdicts there are two, so a resample costs two numbers and not 14,042.  Equal seeds give equal
intervals.
Read next: compare.py, tests/twins/resampling.py (the same by drawing every value).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from nanochat.common.errors import EvalError

__all__ = [
    "Interval",
    "PairedTest",
    "ScoredTask",
    "bootstrap_composite",
    "bootstrap_mean",
    "bootstrap_ratio",
    "holm",
    "mcnemar",
    "paired_bootstrap",
    "paired_ratio",
    "wilson",
]

NUM_RESAMPLES = 10_000  # the ends of a 95% interval move by about 1% of its width
CHUNK_CELLS = 4_000_000  # 32 MB of counts at a time
MOST_EXACT = 13  # gains whose 2^n signs are all tried, 8,192 ways
NUM_FLIPS = 10_000  # of more; a p of 0.05 is then known to 0.002
MOST_PIECES = 500  # drawn apart; 0.3 s a ratio, and its interval's width is known to 3%


class Interval(NamedTuple):
    """Where the true value lies, with the confidence that was asked for."""

    low: float
    high: float


class PairedTest(NamedTuple):
    """Two models on the same questions."""

    difference: float
    """The second less the first."""
    interval: Interval
    """Of the difference."""
    p_value: float
    """How often a difference at least this large comes by chance where there is none: the larger of
    what sign flips and the bootstrap say, so that what is at most 0.05 has a 95% interval without
    0."""


@dataclass(frozen=True, slots=True)
class ScoredTask:
    """One task of a composite, as one model did it."""

    scores: Sequence[float]
    """One per question, 0 or 1 or between."""
    baseline: float = 0.0
    """What guessing gets, 0 to 1."""

    @property
    def centered(self) -> float:
        """(mean - baseline) / (1 - baseline): 0 is guessing, 1 is all right."""
        mean = math.fsum(self.scores) / len(self.scores)
        return (mean - self.baseline) / (1 - self.baseline)


def wilson(num_correct: int, count: int, confidence: float = 0.95) -> Interval:
    """The interval of a share, sound for few questions and for shares of 0 and 1 too.

    Raises: EvalError unless 0 <= num_correct <= count, count > 0, 0 < confidence < 1.
    Source: E. B. Wilson, JASA 22 (1927), 209-212; without continuity correction.
    """
    if not 0 <= num_correct <= count or count < 1:
        raise EvalError(
            f"{num_correct} right of {count}: expected 0 to count, and at least one question"
        )
    z = NormalDist().inv_cdf(0.5 + _checked(confidence) / 2)
    share = num_correct / count
    shrink = 1 + z * z / count
    middle = (share + z * z / (2 * count)) / shrink
    reach = z / shrink * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    low = 0.0 if num_correct == 0 else middle - reach  # exactly, where rounding would miss them
    high = 1.0 if num_correct == count else middle + reach
    return Interval(low, high)


def bootstrap_mean(
    scores: Sequence[float],
    confidence: float = 0.95,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The percentile interval of a mean.

    Raises: EvalError without scores.
    """
    means = _resampled_means(np.asarray(scores, np.float64)[:, None], num_resamples, seed)
    return _percentiles(means[:, 0], confidence)


def bootstrap_ratio(
    sums: Sequence[float],
    sizes: Sequence[float],
    confidence: float = 0.95,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The percentile interval of sums over sizes, such as bits over bytes of documents.

    Of more than 500 documents neighbours are drawn together: their sums are as independent.
    Raises: EvalError when there are not as many of each, or no document has a size.
    """
    if len(sums) != len(sizes) or math.fsum(sizes) <= 0:
        raise EvalError(
            f"{len(sums)} sums over {len(sizes)} sizes adding up to {math.fsum(sizes)}: expected "
            "as many of each, and sizes above 0"
        )
    rows = _pieces(np.asarray(sums, np.float64), np.asarray(sizes, np.float64))
    return _percentiles(_ratios(_resampled_means(rows, num_resamples, seed)), confidence)


def bootstrap_composite(
    tasks: Sequence[ScoredTask],
    confidence: float = 0.95,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The percentile interval of the mean of centred accuracies; each task is resampled by itself.

    It says how far other questions of the same kinds would have moved the number, with the tasks as
    they are.
    Raises: EvalError without tasks, or for one without scores.
    """
    _need(tasks)
    total = np.zeros(num_resamples)
    for index, task in enumerate(tasks):
        columns = np.asarray(task.scores, np.float64)[:, None]
        means = _resampled_means(columns, num_resamples, seed, index)[:, 0]
        total += (means - task.baseline) / (1 - task.baseline)
    return _percentiles(total / len(tasks), confidence)


def mcnemar(num_only_first: int, num_only_second: int) -> float:
    """The exact two-sided p-value of n questions that only one of two models got right.

    Where the models are equally good each of those is a fair coin; questions that both or neither
    got right say nothing.
    Raises: EvalError for negative counts.
    Source: Q. McNemar, Psychometrika 12 (1947), 153-157; the binomial form, not the chi-square.
    """
    if num_only_first < 0 or num_only_second < 0:
        raise EvalError(f"{num_only_first} and {num_only_second} questions: expected none below 0")
    tosses = num_only_first + num_only_second
    ways, tail = 1, 0  # whole numbers: exact for any count
    for heads in range(min(num_only_first, num_only_second) + 1):
        tail += ways
        ways = ways * (tosses - heads) // (heads + 1)
    return min(1.0, 2 * tail / 2**tosses)


def paired_bootstrap(
    first: Sequence[ScoredTask],
    second: Sequence[ScoredTask],
    confidence: float = 0.95,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> PairedTest:
    """Two models on the same tasks and questions, in the same order: composite against composite.

    A question is drawn for both models at once, so that what is hard for both cancels out.  The
    p-value is two-sided and the larger of two (PairedTest.p_value), never below 2 / (num_resamples
    + 1).  One task alone is a list of one.
    Raises: EvalError when tasks, numbers of questions or baselines differ, or there are none.
    """
    _need(first)
    if len(first) != len(second):
        raise EvalError(f"{len(first)} tasks against {len(second)}: expected the same tasks")
    total, weighted = np.zeros(num_resamples), []
    for index, (one, other) in enumerate(zip(first, second, strict=True)):
        if len(one.scores) != len(other.scores) or one.baseline != other.baseline:
            raise EvalError(
                f"task {index} has {len(one.scores)} questions and baseline {one.baseline} against "
                f"{len(other.scores)} and {other.baseline}: expected the same questions"
            )
        gains = np.asarray(other.scores, np.float64) - np.asarray(one.scores, np.float64)
        means = _resampled_means(gains[:, None], num_resamples, seed, index)[:, 0]
        total += means / (1 - one.baseline)
        weighted.append(gains / (len(gains) * (1 - one.baseline) * len(first)))
    rng = np.random.default_rng([seed, len(first)])
    return _paired_test(np.concatenate(weighted), total / len(first), confidence, rng)


def paired_ratio(
    first: Sequence[float],
    second: Sequence[float],
    sizes: Sequence[float],
    confidence: float = 0.95,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> PairedTest:
    """Sums over sums: bits of two models over the bytes of the same documents.

    Of more than 500 documents neighbours are drawn together, and change sign together.
    Raises: EvalError when there are not as many of each, or no document has a size.
    """
    if not len(first) == len(second) == len(sizes) or math.fsum(sizes) <= 0:
        raise EvalError(
            f"{len(first)} and {len(second)} sums over {len(sizes)} sizes adding up to "
            f"{math.fsum(sizes)}: expected as many of each, and sizes above 0"
        )
    gains = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    rows = _pieces(gains, np.asarray(sizes, np.float64))
    ratios = _ratios(_resampled_means(rows, num_resamples, seed))
    rng = np.random.default_rng([seed, 1])
    return _paired_test(rows[:, 0] / math.fsum(sizes), ratios, confidence, rng)


def holm(p_values: Sequence[float]) -> list[float]:
    """Each p-value corrected for how many there are, in the order given.

    Calling real what is then at most alpha is wrong anywhere with a probability of at most alpha,
    whatever depends on what.
    Source: S. Holm, Scandinavian Journal of Statistics 6 (1979), 65-70.
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        corrected[index] = largest
    return corrected


# ---------------------------------------------------------------------------------- resampling


def _pieces(sums: "np.ndarray", sizes: "np.ndarray") -> "np.ndarray":
    """What is drawn: each document, or of many the sums of neighbours.

    Shapes: (n,), (n,) -> (at most 500, 2).
    """
    rows = np.column_stack([sums, sizes])
    if len(rows) > MOST_PIECES:
        rows = np.stack([piece.sum(0) for piece in np.array_split(rows, MOST_PIECES)])
    return rows


def _resampled_means(
    rows: "np.ndarray", num_resamples: int, seed: int, stream: int = 0
) -> "np.ndarray":
    """The mean of each column in `num_resamples` draws of all rows with replacement.

    Shapes: rows (n, columns) -> (num_resamples, columns).
    """
    if not len(rows) or not np.isfinite(rows).all():
        raise EvalError(
            f"{len(rows)} scores to resample: expected at least one, and only finite numbers"
        )
    distinct, counts = np.unique(rows, axis=0, return_counts=True)
    rng = np.random.default_rng([seed, stream])
    shares = counts / counts.sum()
    return np.concatenate(
        [
            rng.multinomial(len(rows), shares, size=size) @ distinct / len(rows)
            for size in _chunks(num_resamples, len(distinct))
        ]
    )


def _ratios(means: "np.ndarray") -> "np.ndarray":
    """The first column over the second; a draw of empty documents alone has no ratio but 0."""
    return np.asarray(means[:, 0] / np.maximum(means[:, 1], np.finfo(np.float64).tiny))


def _chunks(num_resamples: int, num_cells: int) -> Iterator[int]:
    size = max(1, CHUNK_CELLS // num_cells)
    for start in range(0, num_resamples, size):
        yield min(size, num_resamples - start)


def _paired_test(
    gains: "np.ndarray", resampled: "np.ndarray", confidence: float, rng: "np.random.Generator"
) -> PairedTest:
    """Gains already weighted: their sum is the difference."""
    p_value = max(_flipped(gains, rng), _crossed(resampled))
    return PairedTest(math.fsum(gains), _percentiles(resampled, confidence), p_value)


def _crossed(resampled: "np.ndarray") -> float:
    """Twice the share beyond 0, 0 itself included: at most 0.05 only where 95% leave 0 out."""
    fewest = min(int(np.sum(resampled <= 0)), int(np.sum(resampled >= 0)))
    return min(1.0, 2 * (fewest + 1) / (len(resampled) + 1))


def _flipped(gains: "np.ndarray", rng: "np.random.Generator") -> float:
    """How often the sum is at least as far from 0 where each gain has a sign by chance.

    Equally good models might have changed places at any question.  All ways where they are few,
    so that one question has p = 1, five have 1/16 and six 1/32 at the least.  Where one model gains
    in one task what it loses in another, squares of gains exceed their variance, and p is too
    large rather than too small.
    Source: R. A. Fisher, The Design of Experiments (1935), section 21.
    """
    sizes = np.abs(gains[gains != 0])
    # The slack keeps sums of equal terms in another order from counting as smaller.
    reach = abs(math.fsum(gains)) - 1e-12 * math.fsum(sizes)
    if len(sizes) <= MOST_EXACT:
        sums = np.zeros(1)
        for size in sizes:
            sums = np.concatenate([sums - size, sums + size])
        return float(np.mean(np.abs(sums) >= reach))
    distinct, counts = np.unique(sizes, return_counts=True)
    num_as_far = 0
    for rows in _chunks(NUM_FLIPS, len(distinct)):
        excess = 2 * rng.binomial(counts, 0.5, size=(rows, len(distinct))) - counts
        num_as_far += int(np.sum(np.abs(excess @ distinct) >= reach))
    return (num_as_far + 1) / (NUM_FLIPS + 1)


def _percentiles(values: "np.ndarray", confidence: float) -> Interval:
    tail = 50 * (1 - _checked(confidence))
    low, high = np.percentile(values, [tail, 100 - tail])
    return Interval(float(low), float(high))


def _checked(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise EvalError(f"confidence is {confidence}, expected more than 0 and less than 1")
    return confidence


def _need(tasks: Sequence[ScoredTask]) -> None:
    if not tasks:
        raise EvalError("a composite of no tasks: expected at least one")

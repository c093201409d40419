"""Results of several models -> which differences are real.   in: EvalResults   out: Comparisons
who calls: cli (compare)   (imports no torch)

The same questions were put to both, so they are compared question by question: what is hard for
both cancels out.  A task of right and wrong is tested with McNemar's exact test, scores between and
composites with a paired bootstrap and with sign flips, both of which have to agree.  Twenty-two
tests find one difference in every run if each is held to 5%; Holm's correction holds all of them
together to 5%, tasks and composites apart.
Read next: intervals.py (the tests), cli/compare.py (the table).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from nanochat.common.errors import EvalError
from nanochat.evals.intervals import (
    Interval,
    PairedTest,
    ScoredTask,
    holm,
    mcnemar,
    paired_bootstrap,
    paired_ratio,
)
from nanochat.evals.records import SampleRecord
from nanochat.evals.results import Composite, EvalResult, TaskResult

__all__ = ["Comparison", "Difference", "compare", "differing_keys"]

# Settings that belong to a model or a machine, which is what is compared; all others have to agree.
OF_THE_MODEL = frozenset(
    {"device", "dtype", "library", "model_sha256", "nanochat", "tokenizer", "url", "weights"}
)
BOOTSTRAP = "paired bootstrap and sign flips"
MOST_KEYS = 8  # named in a refusal; of more, how many


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """One task or composite, in two models."""

    name: str
    test: str
    """What the p-value comes from."""
    count: int
    """Questions, or tasks of a composite."""
    first: float
    second: float
    difference: float
    """second - first."""
    interval: Interval
    """95%, of the difference."""
    p_value: float
    corrected: float
    """The p-value by Holm, among all tasks or all composites that were compared."""
    num_only_first: int | None = None
    """Questions that only the first got right; None where it is not right or wrong."""
    num_only_second: int | None = None
    lower_is_better: bool = False

    def verdict(self, alpha: float) -> str:
        """better or worse (the second than the first), or an empty text where nothing is shown."""
        if self.corrected > alpha or self.difference == 0:
            return ""
        return "worse" if (self.difference < 0) != self.lower_is_better else "better"

    def to_json(self, alpha: float) -> dict[str, Any]:
        """Plain values, with the verdict."""
        low, high = self.interval
        return {
            "test": self.test,
            "count": self.count,
            "first": self.first,
            "second": self.second,
            "difference": self.difference,
            "interval": [low, high],
            "p_value": self.p_value,
            "corrected": self.corrected,
            "only_first": self.num_only_first,
            "only_second": self.num_only_second,
            "verdict": self.verdict(alpha) or "not shown to differ",
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A second model against the first."""

    first: str
    second: str
    tasks: tuple[Difference, ...]
    composites: tuple[Difference, ...]
    changed: tuple[str, ...] = ()
    """What differs besides the models, where that was allowed."""

    def worse(self, alpha: float) -> list[Difference]:
        """What the second does worse, at `alpha` over all tasks, and over all composites."""
        every = (*self.composites, *self.tasks)
        return [each for each in every if each.verdict(alpha) == "worse"]

    def to_json(self, alpha: float) -> dict[str, Any]:
        """Plain values."""
        return {
            "first": self.first,
            "second": self.second,
            "tasks": {each.name: each.to_json(alpha) for each in self.tasks},
            "composites": {each.name: each.to_json(alpha) for each in self.composites},
            "worse": [each.name for each in self.worse(alpha)],
            "changed": list(self.changed),
        }


def compare(
    results: Sequence[EvalResult], *, tasks: Sequence[str] = (), allow_changed: bool = False
) -> list[Comparison]:
    """Each result after the first against the first; Holm counts all tests of all of them.

    tasks: globs; empty for all.
    Raises: EvalError naming every key that differs besides the models (`differing_keys`), unless
            they are allowed; and where two results have no task in common, or are fewer than two.
    """
    if len(results) < 2:
        raise EvalError(f"{len(results)} result: expected at least two to compare")
    chosen = [_only(result, tasks) for result in results]
    first = chosen[0]
    raw = []
    for second in chosen[1:]:
        changed = differing_keys(first, second)
        if changed and not allow_changed:
            shown = "; ".join(changed[:MOST_KEYS])
            more = f"; and {len(changed) - MOST_KEYS} more" if len(changed) > MOST_KEYS else ""
            raise EvalError(
                f"{first.model} and {second.model} were not asked the same: {shown}{more}: evaluate"
                " both alike, narrow it with --tasks, or pass --allow-changed to compare what they "
                "share"
            )
        raw.append(_compared(first, second, changed))
    return _corrected(raw)


def differing_keys(first: EvalResult, second: EvalResult) -> list[str]:
    """What was asked differently, one entry a key: mode, settings, tasks, versions, samples."""
    return [
        *_differing("mode", first.mode, second.mode),
        *_differing_entries(first.settings, second.settings),
        *_one_sided(first, second),
        *(
            entry
            for label, task in first.tasks.items()
            if (other := second.tasks.get(label)) and task.is_scored and other.is_scored
            for entry in _differing_task(task, other)
        ),
    ]


# -------------------------------------------------------------------------------------- alike?


def _differing(key: str, one: Any, other: Any) -> Iterator[str]:
    if one != other:
        yield f"{key} {_short(one)} against {_short(other)}"


def _differing_entries(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted(one.keys() | other.keys()):
        if key not in OF_THE_MODEL:
            yield from _differing(key, one.get(key), other.get(key))


def _one_sided(first: EvalResult, second: EvalResult) -> Iterator[str]:
    """A task that failed counts as absent: it must not pass for one that has not got worse."""
    scored = [
        {label for label, task in result.tasks.items() if task.is_scored}
        for result in (first, second)
    ]
    for result, only in ((first, scored[0] - scored[1]), (second, scored[1] - scored[0])):
        if only:
            yield f"tasks only {result.model} has: {', '.join(sorted(only))}"


def _differing_task(one: TaskResult, other: TaskResult) -> Iterator[str]:
    yield from _differing(f"{one.label}.version", one.version, other.version)
    yield from _differing(f"{one.label}.kind", one.kind, other.kind)
    yield from _differing(f"{one.label}.baseline", one.baseline, other.baseline)
    for name in sorted(one.data_sha256.keys() & other.data_sha256.keys()):
        yield from _differing(
            f"{one.label}.data {name}", one.data_sha256[name][:12], other.data_sha256[name][:12]
        )
    samples = [
        {record.sample.sample_id: record.sample for record in each.records} for each in (one, other)
    ]
    shared = samples[0].keys() & samples[1].keys()
    if samples[0].keys() != samples[1].keys():
        yield (
            f"{one.label}.samples {one.count} against {other.count}, {len(shared)} of them the same"
        )
    num_changed = sum(samples[0][each] != samples[1][each] for each in shared)
    if num_changed:
        yield f"{one.label}.samples: {num_changed} of {len(shared)} ask or expect something else"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


# ------------------------------------------------------------------------------------- testing


def _only(result: EvalResult, globs: Sequence[str]) -> EvalResult:
    """Without the tasks that were not asked for, and the composites that contain them."""
    if not globs:
        return result
    tasks = {
        label: task
        for label, task in result.tasks.items()
        if any(fnmatchcase(label, glob) for glob in globs)
    }
    composites = {
        name: each
        for name, each in result.composites.items()
        if each.baselines.keys() <= tasks.keys()
    }
    return replace(result, tasks=tasks, composites=composites)


def _compared(first: EvalResult, second: EvalResult, changed: Sequence[str]) -> Comparison:
    """Not corrected yet."""
    pairs = {
        label: _Pair.of(task, second.tasks[label])
        for label, task in first.tasks.items()
        if task.is_scored and label in second.tasks and second.tasks[label].is_scored
    }
    pairs = {label: pair for label, pair in pairs.items() if pair.first}
    if not pairs:
        raise EvalError(
            f"{first.model} and {second.model} share no question: expected results of the same "
            "tasks"
        )
    composites = [
        _composite_difference(composite, pairs)
        for name, composite in first.composites.items()
        if name in second.composites
        and second.composites[name].baselines == composite.baselines
        and composite.baselines.keys() <= pairs.keys()
    ]
    return Comparison(
        first=first.model,
        second=second.model,
        tasks=tuple(pair.difference(label) for label, pair in pairs.items()),
        composites=tuple(composites),
        changed=tuple(changed),
    )


@dataclass(frozen=True, slots=True)
class _Pair:
    """The questions that both were asked, in the order of the first."""

    is_bits: bool
    first: tuple[SampleRecord, ...]
    second: tuple[SampleRecord, ...]

    @classmethod
    def of(cls, one: TaskResult, other: TaskResult) -> "_Pair":
        theirs = {record.sample.sample_id: record for record in other.records}
        shared = [record for record in one.records if record.sample.sample_id in theirs]
        if one.kind != other.kind:
            shared = []
        return cls(
            one.kind == "bits_per_byte",
            tuple(shared),
            tuple(theirs[record.sample.sample_id] for record in shared),
        )

    @property
    def scores(self) -> tuple[list[float], list[float]]:
        return (
            [record.verdict.score for record in self.first],
            [record.verdict.score for record in self.second],
        )

    def difference(self, name: str) -> Difference:
        if self.is_bits:
            return self._of_bits(name)
        one, other = self.scores
        test = paired_bootstrap([ScoredTask(one)], [ScoredTask(other)])
        shown = _difference(name, BOOTSTRAP, len(one), _mean(one), test)
        if any(score not in (0.0, 1.0) for score in (*one, *other)):
            return shown
        only_first = sum(a > b for a, b in zip(one, other, strict=True))
        only_second = sum(a < b for a, b in zip(one, other, strict=True))
        return replace(
            shown,
            test="McNemar",
            p_value=mcnemar(only_first, only_second),
            num_only_first=only_first,
            num_only_second=only_second,
        )

    def _of_bits(self, name: str) -> Difference:
        one, other = self.scores
        sizes = [float(record.verdict.details["num_bytes"]) for record in self.first]
        test = paired_ratio(one, other, sizes)
        first = math.fsum(one) / math.fsum(sizes)
        shown = _difference(name, BOOTSTRAP, len(one), first, test)
        return replace(shown, lower_is_better=True)


def _composite_difference(composite: Composite, pairs: Mapping[str, _Pair]) -> Difference:
    one, other = (
        [
            ScoredTask(pairs[label].scores[side], baseline)
            for label, baseline in composite.baselines.items()
        ]
        for side in (0, 1)
    )
    value = _mean([task.centered for task in one])
    test = paired_bootstrap(one, other)
    return _difference(composite.name, BOOTSTRAP, len(one), value, test)


def _difference(name: str, test: str, count: int, first: float, found: PairedTest) -> Difference:
    return Difference(
        name=name,
        test=test,
        count=count,
        first=first,
        second=first + found.difference,
        difference=found.difference,
        interval=found.interval,
        p_value=found.p_value,
        corrected=math.nan,
    )


def _corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """With Holm's p-values: one family of all tasks, one of all composites."""
    tasks = iter(holm([each.p_value for one in comparisons for each in one.tasks]))
    composites = iter(holm([each.p_value for one in comparisons for each in one.composites]))
    return [
        replace(
            one,
            tasks=tuple(replace(each, corrected=next(tasks)) for each in one.tasks),
            composites=tuple(replace(each, corrected=next(composites)) for each in one.composites),
        )
        for one in comparisons
    ]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)

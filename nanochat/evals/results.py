"""Verdicts -> numbers -> files, and back.   in: Task, Verdict   out: TaskResult, EvalResult, JSON
who calls: runner.py, compare.py, report_eval.py, cli   (imports no torch)

    DIR/summary.json   one object: tasks[label] with accuracy, centered, interval, count; composites
    DIR/samples.jsonl  one line a sample: prompt, output, log-likelihoods, verdict, explanation
Mode, baselines and the set of tasks are part of every record: numbers that differ in one of them
are not the same metric.
Read next: task.py, core.py (composites), intervals.py.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from nanochat.common.errors import DataError
from nanochat.common.files import open_atomically, read_json, write_json_atomically
from nanochat.common.messages import conversation_from_json, conversation_to_json
from nanochat.evals.intervals import Interval, bootstrap_mean, wilson
from nanochat.evals.task import Kind, Mode, Sample, Verdict

__all__ = [
    "SAMPLES_FILE",
    "SUMMARY_FILE",
    "Composite",
    "EvalResult",
    "SampleRecord",
    "TaskResult",
    "json_line",
    "read_jsonl",
    "read_results",
    "verdict_from_json",
    "verdict_to_json",
    "write_jsonl",
    "write_results",
]

SUMMARY_FILE, SAMPLES_FILE = "summary.json", "samples.jsonl"
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleRecord:
    """One line of samples.jsonl: what was asked and what came of it."""

    task: str
    sample: Sample
    verdict: Verdict

    def to_json(self) -> dict[str, Any]:
        """One object of plain values; NaN, which JSON lacks, becomes null."""
        sample, prompt = self.sample, self.sample.prompt
        told = verdict_to_json(self.verdict)
        return {
            "task": self.task,
            "sample_id": told.pop("sample_id"),
            "prompt": prompt if isinstance(prompt, str) else conversation_to_json(prompt),
            **_without_empty(choices=list(sample.choices), ending=sample.ending),
            "gold": sample.gold,
            **told,
            **_without_empty(extra=dict(sample.extra)),
        }

    @classmethod
    def from_json(cls, raw: Any, where: str) -> "SampleRecord":
        """The inverse of `to_json`.

        Raises: DataError naming `where` for anything else.
        """
        try:
            prompt = raw["prompt"]
            if not isinstance(prompt, str):
                prompt = conversation_from_json(prompt, where)
            sample = Sample(
                sample_id=raw["sample_id"],
                prompt=prompt,
                choices=tuple(raw.get("choices", ())),
                ending=raw.get("ending", ""),
                gold=raw["gold"],
                extra=raw.get("extra", {}),
            )
            return cls(task=raw["task"], sample=sample, verdict=verdict_from_json(raw))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{where}: not a sample of an evaluation ({error!r:.80})") from error


def verdict_to_json(verdict: Verdict) -> dict[str, Any]:
    """One object of plain values; NaN, which JSON lacks, becomes null."""
    return {
        "sample_id": verdict.sample_id,
        "output": verdict.output,
        "is_correct": verdict.is_correct,
        "score": verdict.score,
        **_without_empty(
            choice=verdict.choice,
            choice_logprobs=[_finite(each) for each in verdict.choice_logprobs],
            choice_tokens=list(verdict.choice_tokens),
            explanation=verdict.explanation,
            outputs=list(verdict.outputs),
            scores=list(verdict.scores),
            details=_plain(verdict.details),
        ),
    }


def verdict_from_json(raw: Any) -> Verdict:
    """The inverse of `verdict_to_json`.

    Raises: KeyError, TypeError or ValueError for anything else.
    """
    return Verdict(
        sample_id=raw["sample_id"],
        score=float(raw["score"]),
        output=raw["output"],
        choice=raw.get("choice"),
        choice_logprobs=tuple(
            math.nan if each is None else each for each in raw.get("choice_logprobs", ())
        ),
        choice_tokens=tuple(raw.get("choice_tokens", ())),
        explanation=raw.get("explanation", ""),
        outputs=tuple(raw.get("outputs", ())),
        scores=tuple(raw.get("scores", ())),
        details=raw.get("details", {}),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskResult:
    """One task as one model did it; without records where it failed as a whole."""

    label: str
    version: str
    kind: Kind
    baseline: float
    records: tuple[SampleRecord, ...] = ()
    pass_at: Mapping[int, float] = field(default_factory=dict)
    """k -> how likely one of k answers is right, unbiased; where several were asked for."""
    data_sha256: Mapping[str, str] = field(default_factory=dict)
    """The files its samples came from."""
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    """What is particular about these numbers: items a mode treats differently, counted."""
    error: str | None = None
    """Why there is no result."""

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """In the order of the samples."""
        return tuple(record.verdict for record in self.records)

    @property
    def count(self) -> int:
        """Samples."""
        return len(self.records)

    @property
    def is_scored(self) -> bool:
        """Whether there is a number."""
        return self.error is None and bool(self.records)

    @property
    def accuracy(self) -> float:
        """The mean score; NaN without samples, and for bits_per_byte, which has `bits_per_byte`."""
        if self.kind == "bits_per_byte" or not self.is_scored:
            return math.nan
        return math.fsum(verdict.score for verdict in self.verdicts) / self.count

    @property
    def centered(self) -> float:
        """(accuracy - baseline) / (1 - baseline): 0 is guessing, 1 is all right."""
        return (self.accuracy - self.baseline) / (1 - self.baseline)

    @property
    def bits_per_byte(self) -> float:
        """All bits over all bytes; NaN for other kinds."""
        if self.kind != "bits_per_byte" or not self.is_scored:
            return math.nan
        num_bytes = sum(verdict.details["num_bytes"] for verdict in self.verdicts)
        bits = math.fsum(verdict.score for verdict in self.verdicts)
        return bits / num_bytes if num_bytes else math.inf

    @property
    def interval(self) -> Interval:
        """95%: Wilson's for right and wrong, resampled where scores lie between.

        Of the accuracy; NaN where there is none.
        """
        if self.kind == "bits_per_byte" or not self.is_scored:
            return Interval(math.nan, math.nan)
        scores = [verdict.score for verdict in self.verdicts]
        if all(score in (0.0, 1.0) for score in scores):
            return wilson(round(sum(scores)), len(scores))
        return bootstrap_mean(scores)

    def to_json(self) -> dict[str, Any]:
        """Its entry of summary.json, without the samples."""
        low, high = self.interval
        return {
            "accuracy": _finite(self.accuracy),
            "centered": _finite(self.centered),
            "interval": None if math.isnan(low) else [low, high],
            "count": self.count,
            "baseline": self.baseline,
            "kind": self.kind,
            "version": self.version,
            **({"bits_per_byte": self.bits_per_byte} if self.kind == "bits_per_byte" else {}),
            **({"pass_at": {str(k): p for k, p in self.pass_at.items()}} if self.pass_at else {}),
            "data_sha256": dict(self.data_sha256),
            "seconds": round(self.seconds, 3),
            "notes": list(self.notes),
            "error": self.error,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Composite:
    """The mean of centred accuracies of a named set of tasks."""

    name: str
    value: float
    interval: Interval
    baselines: Mapping[str, float]
    """What guessing gets, by task: which tasks, and which version of the baselines."""
    baseline_version: str = ""

    def to_json(self) -> dict[str, Any]:
        """Its entry of summary.json."""
        return {
            "value": self.value,
            "interval": list(self.interval),
            "count": len(self.baselines),
            "baseline_version": self.baseline_version,
            "baselines": dict(self.baselines),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalResult:
    """One model, examined."""

    model: str
    tasks: Mapping[str, TaskResult]
    composites: Mapping[str, Composite] = field(default_factory=dict)
    mode: Mode = "default"
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What else decides the numbers: limit, dtype, samples, temperature, hashes, versions."""

    def to_json(self) -> dict[str, Any]:
        """summary.json."""
        return {
            "format_version": FORMAT_VERSION,
            "model": self.model,
            "mode": self.mode,
            "settings": dict(self.settings),
            "tasks": {label: result.to_json() for label, result in self.tasks.items()},
            "composites": {name: each.to_json() for name, each in self.composites.items()},
        }


def write_results(directory: Path, result: EvalResult) -> None:
    """summary.json and samples.jsonl, each whole or not at all; the summary last."""
    records = (record for task in result.tasks.values() for record in task.records)
    write_jsonl(directory / SAMPLES_FILE, records)
    write_json_atomically(directory / SUMMARY_FILE, result.to_json())


def read_results(directory: Path) -> EvalResult:
    """What `write_results` wrote.

    Raises: DataError naming file and line.
    """
    path = directory / SUMMARY_FILE
    raw = read_json(path)
    records: dict[str, list[SampleRecord]] = {}
    for record in read_jsonl(directory / SAMPLES_FILE):
        records.setdefault(record.task, []).append(record)
    try:
        if raw["format_version"] != FORMAT_VERSION:
            raise DataError(
                f"{path} has format_version {raw['format_version']}, expected {FORMAT_VERSION}"
            )
        if raw["mode"] not in get_args(Mode):
            raise DataError(f"{path} has mode {raw['mode']!r}, expected default or nanochat")
        return EvalResult(
            model=raw["model"],
            mode=raw["mode"],
            settings=raw["settings"],
            tasks={
                label: _task_from_json(label, entry, records.get(label, []))
                for label, entry in raw["tasks"].items()
            },
            composites={
                name: _composite_from_json(name, entry) for name, entry in raw["composites"].items()
            },
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a summary of an evaluation ({error!r:.80})") from error


def write_jsonl(path: Path, records: Iterable[SampleRecord]) -> None:
    """One line a sample; the file appears whole or not at all."""
    with open_atomically(path) as file:
        for record in records:
            file.write(json_line(record))


def json_line(record: SampleRecord) -> bytes:
    """The line of one sample, its end included."""
    return json.dumps(record.to_json(), ensure_ascii=True, allow_nan=False).encode() + b"\n"


def read_jsonl(path: Path) -> Iterator[SampleRecord]:
    """The samples of a file.

    Raises: DataError naming file and line.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                where = f"{path}, line {number}"
                try:
                    raw = json.loads(line)
                except ValueError as error:
                    raise DataError(f"{where}: not JSON ({error})") from error
                yield SampleRecord.from_json(raw, where)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error}), expected samples of an evaluation"
        ) from None


def _task_from_json(label: str, raw: Any, records: Sequence[SampleRecord]) -> TaskResult:
    return TaskResult(
        label=label,
        version=raw["version"],
        kind=raw["kind"],
        baseline=raw["baseline"],
        records=tuple(records),
        pass_at={int(k): p for k, p in raw.get("pass_at", {}).items()},
        data_sha256=raw["data_sha256"],
        seconds=raw["seconds"],
        notes=tuple(raw["notes"]),
        error=raw["error"],
    )


def _composite_from_json(name: str, raw: Any) -> Composite:
    return Composite(
        name=name,
        value=raw["value"],
        interval=Interval(*raw["interval"]),
        baselines=raw["baselines"],
        baseline_version=raw["baseline_version"],
    )


def _without_empty(**fields: Any) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value not in ([], "", {}, None)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _plain(value: Any) -> Any:
    """Mappings and sequences as JSON has them, NaN as null."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return _finite(value) if isinstance(value, float) else value

"""Records -> numbers -> files, and back.   in: SampleRecord   out: TaskResult, EvalResult, JSON
who calls: runner.py, compare.py, report_eval.py, cli   (imports no torch)

    DIR/summary.json   one object: tasks[label] with accuracy, centered, interval, count; composites
    DIR/samples.jsonl  one line a sample: prompt, output, log-likelihoods, verdict, explanation
Mode, baselines and the set of tasks are part of every record: numbers that differ in one of them
are not the same metric.
Read next: records.py (one sample), core.py (composites), intervals.py.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from nanochat.common.errors import DataError
from nanochat.common.files import read_json, write_json_atomically
from nanochat.evals.intervals import Interval, bootstrap_mean, bootstrap_ratio, wilson
from nanochat.evals.records import SampleRecord, finite, read_jsonl, write_jsonl
from nanochat.evals.task import Kind, Mode, Verdict

__all__ = [
    "SAMPLES_FILE",
    "SUMMARY_FILE",
    "Composite",
    "EvalResult",
    "TaskResult",
    "folder_name",
    "read_results",
    "write_results",
]

SUMMARY_FILE, SAMPLES_FILE = "summary.json", "samples.jsonl"
FORMAT_VERSION = 1


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
        """95%: Wilson's for right and wrong, resampled where scores lie between and for bits.

        Of the accuracy, or of the bits per byte; NaN where there is none.
        """
        if not self.is_scored:
            return Interval(math.nan, math.nan)
        scores = [verdict.score for verdict in self.verdicts]
        if self.kind == "bits_per_byte":
            sizes = [float(verdict.details["num_bytes"]) for verdict in self.verdicts]
            if not math.isfinite(self.bits_per_byte):
                return Interval(math.nan, math.nan)
            return bootstrap_ratio(scores, sizes)
        if all(score in (0.0, 1.0) for score in scores):
            return wilson(round(sum(scores)), len(scores))
        return bootstrap_mean(scores)

    def to_json(self) -> dict[str, Any]:
        """Its entry of summary.json, without the samples."""
        low, high = self.interval
        return {
            "accuracy": finite(self.accuracy),
            "centered": finite(self.centered),
            "interval": None if math.isnan(low) else [low, high],
            "count": self.count,
            "baseline": self.baseline,
            "kind": self.kind,
            "version": self.version,
            **(
                {"bits_per_byte": finite(self.bits_per_byte)}
                if self.kind == "bits_per_byte"
                else {}
            ),
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


def folder_name(reference: str) -> str:
    """What the folder in evals/ is called where a model has no run: a directory's own name, else
    all of the reference, with a dash for what a file's name had better not contain."""
    path = Path(reference).expanduser()
    name = path.resolve().name if path.is_dir() else reference
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"


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

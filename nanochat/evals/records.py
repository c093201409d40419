"""A sample and its verdict <-> a line of JSON.   in: Sample, Verdict   out: SampleRecord, lines
who calls: runner.py, results.py, cache.py   (imports no torch)

Read next: task.py (what is in them), results.py (all of a task).
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat.common.errors import DataError
from nanochat.common.files import open_atomically
from nanochat.common.messages import conversation_from_json, conversation_to_json
from nanochat.evals.task import Sample, Verdict

__all__ = [
    "SampleRecord",
    "finite",
    "json_line",
    "read_jsonl",
    "verdict_from_json",
    "verdict_to_json",
    "write_jsonl",
]


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
            choice_logprobs=[finite(each) for each in verdict.choice_logprobs],
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


def finite(value: float) -> float | None:
    """The value, or None where JSON has no number for it."""
    return value if math.isfinite(value) else None


def _without_empty(**fields: Any) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value not in ([], "", {}, None)}


def _plain(value: Any) -> Any:
    """Mappings and sequences as JSON has them, NaN as null."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return finite(value) if isinstance(value, float) else value

"""Results of evaluations that never ran.   in: scores by task   out: EvalResult"""

from collections.abc import Mapping, Sequence
from typing import Any

from nanochat.evals.intervals import ScoredTask, bootstrap_composite
from nanochat.evals.records import SampleRecord
from nanochat.evals.results import Composite, EvalResult, TaskResult
from nanochat.evals.task import Sample, Verdict

__all__ = [
    "choice_record",
    "make_bits",
    "make_composite",
    "make_result",
    "make_task",
    "written_record",
]


def make_result(
    model: str,
    scores: Mapping[str, Sequence[float]],
    *,
    composite: str | None = "core_21_no_coqa_v1",
    baseline: float = 0.25,
    **settings: Any,
) -> EvalResult:
    """Multiple choice tasks with these scores, and a composite of all of them."""
    tasks = {label: make_task(label, values, baseline) for label, values in scores.items()}
    return EvalResult(
        model=model,
        tasks=tasks,
        composites={} if composite is None else {composite: make_composite(composite, tasks)},
        settings={"limit": None, **settings},
    )


def make_composite(name: str, tasks: Mapping[str, TaskResult]) -> Composite:
    """The mean of the centred accuracies of all of them."""
    scored = [
        ScoredTask([verdict.score for verdict in task.verdicts], task.baseline)
        for task in tasks.values()
    ]
    return Composite(
        name=name,
        value=sum(task.centered for task in scored) / len(scored),
        interval=bootstrap_composite(scored, num_resamples=200),
        baselines={label: task.baseline for label, task in tasks.items()},
        baseline_version="v1",
    )


def make_task(label: str, scores: Sequence[float], baseline: float = 0.25) -> TaskResult:
    """One multiple choice task."""
    return TaskResult(
        label=label,
        version="1",
        kind="multiple_choice",
        baseline=baseline,
        records=tuple(choice_record(label, index, score) for index, score in enumerate(scores)),
        data_sha256={f"{label}.jsonl": "ab" * 32},
        seconds=1.5,
    )


def make_bits(label: str, bits: Sequence[float], num_bytes: int = 100) -> TaskResult:
    """Documents of `num_bytes` each, and the bits they took."""
    return TaskResult(
        label=label,
        version="1",
        kind="bits_per_byte",
        baseline=0.0,
        records=tuple(
            SampleRecord(
                task=label,
                sample=Sample(sample_id=str(index), prompt="a document"),
                verdict=Verdict(
                    sample_id=str(index), score=value, details={"num_bytes": num_bytes}
                ),
            )
            for index, value in enumerate(bits)
        ),
    )


def choice_record(label: str, index: int, score: float, text: str = "words") -> SampleRecord:
    """A question of two choices; the first is right."""
    return SampleRecord(
        task=label,
        sample=Sample(
            sample_id=f"{label}-{index}", prompt=f"{text} {index}", choices=(f" {text}", " other")
        ),
        verdict=Verdict(
            sample_id=f"{label}-{index}",
            score=score,
            output=f" {text}" if score else " other",
            choice=0 if score else 1,
            choice_logprobs=(-1.5, -2.5) if score else (-2.5, -1.5),
            choice_tokens=(2, 1),
        ),
    )


def written_record(label: str, index: int, score: float, text: str = "words") -> SampleRecord:
    """A question that was answered in writing."""
    from nanochat.common.messages import Message

    return SampleRecord(
        task=label,
        sample=Sample(sample_id=f"{label}-{index}", prompt=(Message("user", text),), gold=text),
        verdict=Verdict(
            sample_id=f"{label}-{index}",
            score=score,
            output=text,
            explanation=text,
            outputs=(text, text),
            scores=(score, score),
        ),
    )

"""ChatCORE: the mean of chat tasks.   in: TaskResult   out: Composite   who calls: runner's callers
(imports no torch)

chatcore_5 is ARC-Easy, ARC-Challenge, MMLU, GSM8K and HumanEval; chatcore_6 has SpellingBee too, as
karpathy/nanochat had it until July 2026.  The two are not comparable, and neither is told where a
task is missing.
Read next: core.py (the same for base models), tasks/.
"""

from collections.abc import Mapping

from nanochat.evals.core import core_composites
from nanochat.evals.intervals import ScoredTask, bootstrap_composite
from nanochat.evals.results import Composite, TaskResult

__all__ = ["CHATCORE_5", "CHATCORE_6", "all_composites", "chatcore_composites"]

CHATCORE_5 = ("ARC-Easy", "ARC-Challenge", "MMLU", "GSM8K", "HumanEval")
CHATCORE_6 = (*CHATCORE_5, "SpellingBee")


def all_composites(results: Mapping[str, TaskResult]) -> dict[str, Composite]:
    """Every composite whose tasks are there."""
    return {**core_composites(results), **chatcore_composites(results)}


def chatcore_composites(results: Mapping[str, TaskResult]) -> dict[str, Composite]:
    """chatcore_5 and chatcore_6, as far as all their tasks were scored."""
    found = {}
    for name, labels in (("chatcore_5", CHATCORE_5), ("chatcore_6", CHATCORE_6)):
        if all(label in results and results[label].is_scored for label in labels):
            found[name] = _mean(name, [results[label] for label in labels])
    return found


def _mean(name: str, results: list[TaskResult]) -> Composite:
    scored = [
        ScoredTask([verdict.score for verdict in each.verdicts], each.baseline) for each in results
    ]
    return Composite(
        name=name,
        value=sum(task.centered for task in scored) / len(scored),
        interval=bootstrap_composite(scored),
        baselines={each.label: each.baseline for each in results},
    )

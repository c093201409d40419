"""Results -> what is worth showing of them.   in: EvalResult   out: plain texts and numbers
who calls: report_eval.py, report_markdown.py   (imports no torch)

Read next: results.py, report_eval.py.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from nanochat.common.messages import Conversation
from nanochat.evals.records import SampleRecord
from nanochat.evals.results import TaskResult

__all__ = ["ChoiceLine", "Failure", "count_failures", "failures_of", "most_shown", "percent"]

MOST_FAILURES, MOST_PER_TASK, LEAST_PER_TASK = 800, 50, 5
PROMPT_LETTERS = 1600  # of a prompt its end is shown: the question stands behind the examples
OUTPUT_LETTERS = 2400
DETAILS_LETTERS = 400


@dataclass(frozen=True, slots=True)
class ChoiceLine:
    """One choice of a question."""

    text: str
    logprob: float | None
    """The sum over its scored tokens, nats."""
    num_tokens: int | None
    is_chosen: bool
    is_right: bool

    @property
    def per_token(self) -> float | None:
        """The mean, which decides."""
        if self.logprob is None or not self.num_tokens:
            return None
        return self.logprob / self.num_tokens


@dataclass(frozen=True, slots=True)
class Failure:
    """One question that was not answered right, cut to what fits a page."""

    sample_id: str
    asked: str
    num_cut: int
    """Letters of the prompt that stand before what is shown."""
    said: str
    right: str
    score: float
    why: str
    choices: tuple[ChoiceLine, ...]
    others: tuple[str, ...]
    """The other answers, where several were asked for."""
    details: str


def failures_of(task: TaskResult) -> Iterator[Failure]:
    """Every question that is not all right, in the order it was asked; none of bits per byte."""
    if task.kind != "bits_per_byte":
        yield from (_failure(each) for each in task.records if not each.verdict.is_correct)


def count_failures(task: TaskResult) -> int:
    """How many `failures_of` gives."""
    if task.kind == "bits_per_byte":
        return 0
    return sum(not verdict.is_correct for verdict in task.verdicts)


def most_shown(num_tasks: int) -> int:
    """How many failures of each task fit a page that stays quick."""
    return min(MOST_PER_TASK, max(LEAST_PER_TASK, MOST_FAILURES // max(1, num_tasks)))


def percent(share: float) -> str:
    """41.2%, and a dash where there is no number."""
    return f"{100 * share:.1f}%" if math.isfinite(share) else "-"


def _failure(record: SampleRecord) -> Failure:
    sample, verdict = record.sample, record.verdict
    prompt = sample.prompt if isinstance(sample.prompt, str) else _spoken(sample.prompt)
    if sample.ending:
        prompt = f"{prompt}[...]{sample.ending}"
    choices = tuple(_choices(record))
    right = str(sample.gold)
    if sample.choices and isinstance(sample.gold, int) and sample.gold < len(sample.choices):
        right = sample.choices[sample.gold]
    elif answers := sample.extra.get("answers"):
        right = " / ".join(map(str, answers))
    return Failure(
        sample_id=sample.sample_id,
        asked=prompt[-PROMPT_LETTERS:],
        num_cut=max(0, len(prompt) - PROMPT_LETTERS),
        said=_cut(verdict.output or "", OUTPUT_LETTERS),
        right=_cut(right, OUTPUT_LETTERS),
        score=verdict.score,
        why=_cut(verdict.explanation, OUTPUT_LETTERS),
        choices=choices,
        others=tuple(_cut(each, OUTPUT_LETTERS) for each in verdict.outputs[1:]),
        details=_cut(json.dumps(verdict.details), DETAILS_LETTERS) if verdict.details else "",
    )


def _choices(record: SampleRecord) -> Iterator[ChoiceLine]:
    sample, verdict = record.sample, record.verdict
    for index, text in enumerate(sample.choices):
        logprob = _at(verdict.choice_logprobs, index)
        yield ChoiceLine(
            text=_cut(text, OUTPUT_LETTERS),
            logprob=logprob if logprob is not None and math.isfinite(logprob) else None,
            num_tokens=_at(verdict.choice_tokens, index),
            is_chosen=index == verdict.choice,
            is_right=index == sample.gold,
        )


def _at(values: Sequence[Any], index: int) -> Any:
    return values[index] if index < len(values) else None


def _spoken(conversation: Conversation) -> str:
    """Who says what; a single question stands alone."""
    texts = [
        message.content
        if isinstance(message.content, str)
        else "".join(part.text for part in message.content)
        for message in conversation
    ]
    if len(texts) == 1:
        return texts[0]
    return "\n\n".join(
        f"{message.role}: {text}" for message, text in zip(conversation, texts, strict=True)
    )


def _cut(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    return f"{text[:most]} ... ({len(text) - most:,} more letters)"

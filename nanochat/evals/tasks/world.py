"""The built-in world's examination as a task: what the demo asks.   in: nothing   out: Task
who calls: tasks/__init__.py, exam.py   (imports no torch)

No question stands in the data of any stage.  The task asks them shuffled, since they stand category
by category and a limit has to take from all of them; the demo asks all, in their own order.
Read next: corpus/world/held_out.py (the questions), exam.py (the demo's table of them).
"""

import random

from nanochat.corpus.world import baseline_guess, held_out, is_correct
from nanochat.corpus.world.held_out import HeldOut
from nanochat.evals.task import Judgement, Sample, Selection, Task

__all__ = ["WORLD", "judge_held_out", "world_sample"]

SHUFFLE_SEED = 1337  # as in CORE


def world_sample(number: int, question: HeldOut) -> Sample:
    """One question by its place in `held_out()`, from 1; its category is in `extra`."""
    return Sample(
        sample_id=f"{number}",
        prompt=question.conversation,
        gold=question.answer,
        extra={"category": question.category},
    )


def judge_held_out(sample: Sample, output: str) -> Judgement:
    """Right when the whole reply is the answer."""
    assert not isinstance(sample.prompt, str), "a question of the world is a conversation"
    question = HeldOut(str(sample.extra["category"]), sample.prompt, str(sample.gold))
    if is_correct(output, question):
        return Judgement(1.0)
    return Judgement(0.0, f"expected {sample.gold}")


def _load(selection: Selection) -> list[Sample]:
    samples = [world_sample(number, question) for number, question in enumerate(held_out(), 1)]
    random.Random(SHUFFLE_SEED).shuffle(samples)
    return samples[: selection.limit]


def _baseline() -> float:
    """What one gets who always gives the most frequent answer of each category."""
    questions = held_out()
    return sum(each.answer == baseline_guess(each.category) for each in questions) / len(questions)


WORLD = Task(
    name="world",
    version="2",
    kind="generative",
    load=_load,
    baseline=_baseline(),
    judge=judge_held_out,
    max_tokens=96,
)

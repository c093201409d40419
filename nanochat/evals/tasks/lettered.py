"""ARC and MMLU: questions with lettered answers, for chat models.   in: arc/, mmlu/   out: Task
who calls: tasks/__init__.py   (imports no torch)

Nothing is written: the likeliest of the letters, where the answer would begin, is the answer.  The
letter stands behind its choice, which binds better in small models, and without a blank, so that
it is the same token as in the answer.
Source: karpathy/nanochat tasks/{arc,mmlu,common}.py at 92d63d4; Hugging Face's shuffle(42).
Read next: scorers.py (letter_choice), chatcore.py.
"""

from collections.abc import Sequence
from functools import partial

from nanochat.common.errors import DataError
from nanochat.common.messages import Message
from nanochat.evals.data import Row, checked_row, permuted
from nanochat.evals.task import Sample, Selection, Task

__all__ = ["ARC_CHALLENGE", "ARC_EASY", "MMLU", "lettered_question"]

SHUFFLE_SEED = 42
MMLU_LETTERS = ("A", "B", "C", "D")


def lettered_question(question: str, choices: Sequence[str], letters: Sequence[str]) -> str:
    """The user's message."""
    lines = [f"- {choice}={letter}\n" for choice, letter in zip(choices, letters, strict=True)]
    return (
        f"Multiple Choice question: {question}\n{''.join(lines)}\n"
        "Respond only with the letter of the correct answer."
    )


def _load(path: str, selection: Selection) -> list[Sample]:
    rows = selection.source.rows(path, limit=selection.limit, order=permuted(SHUFFLE_SEED))
    return [_mmlu(row) if path.startswith("mmlu/") else _arc(row) for row in rows]


def _mmlu(row: Row) -> Sample:
    item = checked_row(row, question=str, choices=list, answer=int, subject=str)
    choices = item["choices"]
    if len(choices) != len(MMLU_LETTERS) or not 0 <= item["answer"] < len(choices):
        raise DataError(
            f"{row.where}: answer {item['answer']} of {len(choices)} choices, expected 0 to 3 of 4"
        )
    return _sample(row, choices, MMLU_LETTERS, item["answer"], {"subject": item["subject"]})


def _arc(row: Row) -> Sample:
    item = checked_row(row, question=str, choices=dict, answerKey=str)
    letters, texts = item["choices"].get("label"), item["choices"].get("text")
    if not (isinstance(letters, list) and isinstance(texts, list) and len(letters) == len(texts)):
        raise DataError(f"{row.where}: choices without as many labels as texts")
    if item["answerKey"] not in letters:
        raise DataError(f"{row.where}: answerKey {item['answerKey']!r} is none of {letters}")
    return _sample(row, texts, letters, letters.index(item["answerKey"]), {})


def _sample(
    row: Row, choices: Sequence[str], letters: Sequence[str], gold: int, extra: dict[str, str]
) -> Sample:
    question = lettered_question(row.value["question"], choices, letters)
    return Sample(
        sample_id=f"{row.number}",
        prompt=(Message("user", question),),
        choices=tuple(letters),
        gold=gold,
        extra=extra,
    )


def _task(name: str, path: str, *notes: str) -> Task:
    return Task(
        name=name,
        version="1",
        kind="letter_choice",
        load=partial(_load, path),
        baseline=0.25,
        notes=notes,
    )


ARC_EASY = _task("ARC-Easy", "arc/ARC-Easy/test.jsonl")
ARC_CHALLENGE = _task("ARC-Challenge", "arc/ARC-Challenge/test.jsonl")
MMLU = _task("MMLU", "mmlu/test.jsonl")

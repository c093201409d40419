"""GSM8K: school mathematics, with the calculator.   in: gsm8k/test.jsonl   out: Task
who calls: tasks/__init__.py   (imports no torch)

The answer stands behind ####.  karpathy/nanochat compares strings, so that `10.` and `10.0` are not
10; by default numbers are compared, and whether the strings were equal too is told.
Source: Cobbe et al., arXiv:2110.14168; karpathy/nanochat tasks/gsm8k.py at 92d63d4.
Read next: engine/calculator.py, spelling.py (which shares the answer's form).
"""

import re
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation

from nanochat.common.errors import DataError
from nanochat.common.messages import Conversation, Message, Part
from nanochat.evals.data import checked_row, permuted
from nanochat.evals.task import Judgement, Sample, Selection, Task

__all__ = ["GSM8K", "final_number", "gsm8k_conversation", "judge_number"]

SHUFFLE_SEED = 42
ANSWER = re.compile(r"#### (\-?[0-9\.\,]+)")
LOOSE_ANSWER = re.compile(r"####\s*\$?\s*(-?\s*\$?[0-9][0-9.,]*)")
CALCULATION = re.compile(r"(<<[^>]+>>)")


def final_number(text: str) -> str | None:
    """What stands behind the first `#### `, without commas; None where there is no such thing."""
    found = ANSWER.search(text)
    return found.group(1).replace(",", "") if found else None


def judge_number(sample: Sample, output: str) -> Judgement:
    """Whether the number behind #### is the right one.

    `gold` is the right number as text; `extra["mode"]` nanochat compares strings.
    """
    gold, said = str(sample.gold), final_number(output)
    is_equal = said == gold
    if sample.extra.get("mode") == "nanochat":
        return Judgement(float(is_equal), "" if is_equal else f"{said} is not {gold}")
    loose = LOOSE_ANSWER.search(output)
    value = None if loose is None else _number(loose.group(1))
    is_right = value is not None and value == _number(gold)
    if is_right:
        return Judgement(1.0, "" if is_equal else f"{gold} in another form")
    if value is None:
        return Judgement(0.0, "no number behind ####")
    return Judgement(0.0, f"{value} is not {gold}")


def gsm8k_conversation(question: str, answer: str) -> Conversation:
    """The question and its answer, what stands in << >> as use of the calculator: for training."""
    return Message("user", question), Message("assistant", tuple(_parts(answer)))


def _parts(answer: str) -> Iterator[Part]:
    for piece in CALCULATION.split(answer):
        if piece.startswith("<<") and piece.endswith(">>"):
            expression, equals, result = piece[2:-2].rpartition("=")
            yield Part("python", expression if equals else result)
            yield Part("python_output", result if equals else "")
        else:
            yield Part("text", piece)


def _number(text: str) -> Decimal | None:
    try:
        return Decimal(re.sub(r"[\s$,]", "", text).rstrip("."))
    except InvalidOperation:
        return None


def _load(selection: Selection) -> list[Sample]:
    rows = selection.source.rows(
        "gsm8k/test.jsonl", limit=selection.limit, order=permuted(SHUFFLE_SEED)
    )
    samples = []
    for row in rows:
        item = checked_row(row, question=str, answer=str)
        gold = final_number(item["answer"])
        if gold is None:
            raise DataError(f"{row.where}: the answer has no number behind ####")
        samples.append(
            Sample(
                sample_id=f"{row.number}",
                prompt=(Message("user", item["question"]),),
                gold=gold,
                extra={"mode": selection.mode},
            )
        )
    return samples


GSM8K = Task(
    name="GSM8K", version="1", kind="generative", load=_load, judge=judge_number, tools=True,
    notes=("by default numbers are compared; karpathy/nanochat compares strings",),
)  # fmt: skip

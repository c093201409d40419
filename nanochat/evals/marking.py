"""An answer -> right or wrong.   in: Sample, what was written   out: Judgement
who calls: questions.py   (imports no torch)

    exact      the answer and nothing else, but for case, spaces, quotes and a full stop
    contains   the answer somewhere in it, as whole words
    number     the last number in it is the answer's
    pattern    what a regular expression finds is the answer
A question may have several right answers: `gold` is the one to show, `extra["answers"]` has all.
Read next: task.py (Judge), custom.py, code.py (programs).
"""

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

from nanochat.evals.task import Judge, Judgement, Sample

__all__ = ["mark_contains", "mark_exact", "mark_number", "pattern_judge"]

NUMBER = re.compile(r"-?(?:\d[\d,]*)?\.?\d+(?:[eE][+-]?\d+)?")
AROUND = " \t\n\"'`*_.!"


def mark_exact(sample: Sample, output: str) -> Judgement:
    """Right where nothing but an answer was written."""
    said = _plain(output)
    return _judged(any(said == _plain(answer) for answer in _answers(sample)), sample)


def mark_contains(sample: Sample, output: str) -> Judgement:
    """Right where an answer stands in what was written, not inside a longer word or number."""
    said = _plain(output)
    return _judged(
        any(re.search(rf"(?<!\w){re.escape(_plain(answer))}(?!\w)", said) for answer in
            _answers(sample)),
        sample,
    )  # fmt: skip


def mark_number(sample: Sample, output: str) -> Judgement:
    """Right where the last number written equals an answer: 1,000 is 1000.0."""
    said = _numbers(output)
    if not said:
        return Judgement(0.0, f"no number was written, expected {sample.gold}")
    is_right = any(said[-1] in _numbers(answer) for answer in _answers(sample))
    return Judgement(1.0) if is_right else Judgement(0.0, f"{said[-1]} is not {sample.gold}")


def pattern_judge(pattern: str | None) -> Judge:
    """A judge that compares the first match, its first group if it has one, with the answer.

    None: the answer itself is a pattern, and right is what it is found in.
    """
    compiled = None if pattern is None else re.compile(pattern)

    def judge(sample: Sample, output: str) -> Judgement:
        if compiled is None:
            return _judged(any(re.search(each, output) for each in _answers(sample)), sample)
        match = compiled.search(output)
        if match is None:
            return Judgement(0.0, f"{compiled.pattern} is not in the answer")
        found = (match[1] if compiled.groups else match[0]) or ""
        if any(found.strip() == answer.strip() for answer in _answers(sample)):
            return Judgement(1.0)
        return Judgement(0.0, f"found {found!r:.80}, expected {sample.gold!r:.80}")

    return judge


def _answers(sample: Sample) -> Sequence[str]:
    answers = sample.extra.get("answers")
    return answers if answers else [str(sample.gold)]


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).strip(AROUND)


def _judged(is_right: bool, sample: Sample) -> Judgement:
    return Judgement(1.0) if is_right else Judgement(0.0, f"expected {sample.gold!r:.80}")


def _numbers(text: str) -> list[Decimal]:
    found = []
    for match in NUMBER.finditer(text):
        try:
            found.append(Decimal(match[0].replace(",", "")))
        except InvalidOperation:
            continue
    return found

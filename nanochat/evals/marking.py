"""An answer -> right or wrong.   in: Sample, what was written   out: Judgement
who calls: questions.py   (imports no torch)

    exact      the answer and nothing else, but for case, spaces, quotes and a full stop
    contains   the answer somewhere in it, as whole words where the script separates words
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
AROUND = " \t\n\"'`*_.!" + "\u3002\uff01\u300c\u300d\u300e\u300f\u201c\u201d\u2018\u2019"
# Letters of scripts that put no space between words: Thai, Lao, Burmese, Khmer, kana, Chinese
# characters.  Of these nobody can tell a whole word from a part of one by its neighbours.
UNSEPARATED = (
    "\u0e00-\u0e4f\u0e80-\u0ecf\u1000-\u103f\u1050-\u108f\u1780-\u17df\u2e80-\u2fdf\u3005-\u3007"
    "\u3021-\u30ff\u3100-\u312f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f"
    "\U00020000-\U0003ffff"
)
SEPARATED = rf"[^\W{UNSEPARATED}]"
# But a number in Chinese characters, 0 to 10, 100, 1000, 10^4, 10^8, 10^12, may be part of another.
NUMERALS = (
    "\u3007\u96f6\u4e00\u4e8c\u4e24\u5169\u4e09\u56db\u4e94\u516d\u4e03\u516b\u4e5d"
    "\u5341\u767e\u5343\u4e07\u842c\u4ebf\u5104\u5146"
)
NOTHING = r"[^\s\S]"


def mark_exact(sample: Sample, output: str) -> Judgement:
    """Right where nothing but an answer was written."""
    said = _plain(output)
    return _judged(any(said == _plain(answer) for answer in _answers(sample)), sample)


def mark_contains(sample: Sample, output: str) -> Judgement:
    """Right where an answer stands in what was written, not inside a longer word or number."""
    texts = {_plain(output), _even(output)}  # an answer such as "." is in the second only
    patterns = [_whole(_plain(answer)) for answer in _answers(sample)]
    is_right = any(re.search(pattern, text) for pattern in patterns for text in texts)
    return _judged(is_right, sample)


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


def _even(text: str) -> str:
    return " ".join(text.casefold().split())


def _plain(text: str) -> str:
    """Without what stands around it; a text of nothing else stays, or it would equal silence."""
    even = _even(text)
    return even.strip(AROUND) or even


def _whole(answer: str) -> str:
    """A pattern that finds the answer where nothing that belongs to it stands beside it."""
    before, after = (_beside(edge) for edge in (answer[:1], answer[-1:]))
    return rf"(?<!{before}){re.escape(answer)}(?!{after})"


def _beside(edge: str) -> str:
    """What makes a longer word or number of an answer with this character at its edge."""
    if edge and edge in NUMERALS:
        return f"[{NUMERALS}]"
    return NOTHING if re.match(f"[{UNSEPARATED}]", edge) else SEPARATED


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

"""A question with choices -> what is asked and what is right.   in: a record's fields
out: the prompt, the letter of the answer   who calls: shapes.py
"""

from collections.abc import Sequence
from typing import Any

from nanochat.common.errors import DataError
from nanochat.common.quote import quoted

__all__ = ["answer_letter", "letters_and_texts", "multiple_choice_prompt"]


def multiple_choice_prompt(question: str, letters: Sequence[str], choices: Sequence[str]) -> str:
    """A question with its choices, to be answered by a letter.

    The letter follows "=" without a space, so that it is the same token as the answer.
    Source: render_mc in tasks/common.py of karpathy/nanochat at 92d63d4.
    """
    lines = "".join(
        f"- {choice}={letter}\n" for letter, choice in zip(letters, choices, strict=True)
    )
    return (
        f"Multiple Choice question: {question}\n{lines}\n"
        "Respond only with the letter of the correct answer."
    )


def letters_and_texts(raw: Any, where: str) -> tuple[list[str], list[str]]:
    """Letters and texts of choices, from ARC's two lists, a list of {label, text}, or texts alone.

    Raises: DataError for anything else; `where` is the record's place.
    """
    letters: list[Any] = []
    texts: list[Any] = []
    if isinstance(raw, dict):
        letters, texts = raw.get("label") or [], raw.get("text") or []
    elif isinstance(raw, list) and all(isinstance(choice, dict) for choice in raw):
        letters = [choice.get("label") for choice in raw]
        texts = [choice.get("text") for choice in raw]
    elif isinstance(raw, list):
        letters, texts = [chr(ord("A") + index) for index in range(len(raw))], raw
    if (
        not texts
        or len(letters) != len(texts)
        or not all(isinstance(item, str) for item in [*letters, *texts])
    ):
        raise DataError(
            f"{where}: the choices are {quoted(raw)}, expected texts, with labels or not"
        )
    return letters, texts


def answer_letter(raw: Any, letters: Sequence[str], choices: Sequence[str], where: str) -> str:
    """The letter of the answer, which is given as a letter, an index, or the text of a choice.

    Raises: DataError for anything else; `where` is the record's place.
    """
    if isinstance(raw, int) and not isinstance(raw, bool) and 0 <= raw < len(letters):
        return letters[raw]
    if raw in letters:
        return str(raw)
    if raw in choices:
        return letters[choices.index(raw)]
    if isinstance(raw, str) and raw.isdecimal() and int(raw) < len(letters):  # a cell of CSV
        return letters[int(raw)]
    raise DataError(f"{where}: the answer is {quoted(raw)}, expected one of {', '.join(letters)}")

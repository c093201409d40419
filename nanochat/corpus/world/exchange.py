"""A question and its answer.   in: a subject's tables   out: Exchange, spoken forms
who calls: every subject

Read next: arithmetic.py (the simplest subject), dialogues.py (which makes conversations of
exchanges).
"""

from typing import NamedTuple

from nanochat.common.messages import Message, Part
from nanochat.corpus.world.dice import Dice

__all__ = ["Exchange", "capitalised", "listed", "spoken", "with_article"]


class Exchange(NamedTuple):
    """What a user asks and what nanochat replies."""

    question: str
    answer: str | tuple[Part, ...]

    def messages(self) -> tuple[Message, Message]:
        """The two turns."""
        return Message("user", self.question), Message("assistant", self.answer)


def capitalised(text: str) -> str:
    """The text with a capital first letter; the rest as it is."""
    return text[:1].upper() + text[1:]


def with_article(noun: str) -> str:
    """`a cow`, `an owl`."""
    return ("an " if noun[0] in "aeio" else "a ") + noun


def listed(items: list[str]) -> str:
    """`Ada, Ben and Carla`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def spoken(exchange: Exchange, dice: Dice) -> Exchange:
    """The same exchange as people type it: now and then politely, or carelessly."""
    question = exchange.question
    roll = dice.below(20)
    if roll < 2:
        question = f"{dice.pick(_OPENINGS)} {question}"
    elif roll == 2:
        question = f"{question} {dice.pick(_CLOSINGS)}"
    elif roll == 3:
        question = question[:1].lower() + question[1:].rstrip("?.!")
    return Exchange(question, exchange.answer)


_OPENINGS = ("Hello!", "Hi!", "Please help me.", "I have a question.", "Hey!", "Good day!")
_CLOSINGS = ("Thank you!", "Thanks!", "Please answer.")

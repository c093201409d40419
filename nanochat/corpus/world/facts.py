"""Tables -> facts in many wordings.   in: FactKind rows   out: Fact
who calls: people, nature, places, calendar

A kind has one canonical answer, which is also a sentence of the prose: a small model that has read
"Mira lives in Larkham." needs only to learn how the answer begins to be able to finish it.  A fact
that is held out is told in prose and never asked; the other facts of its kind are asked too, so the
questions are known.
Read next: people.py, nature.py, places.py, calendar.py (the tables), held_out.py (what is asked in
the end).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from nanochat.corpus.world.dice import Dice
from nanochat.corpus.world.exchange import Exchange, capitalised, with_article

__all__ = ["Fact", "FactKind", "facts_of"]


@dataclass(frozen=True, slots=True)
class FactKind:
    """A relation and its wordings.

    {s} is the subject and {v} the value; {S} and {V} have a capital; {as}, {As} and {av} have an
    article in front.
    """

    name: str
    answer: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    pronoun_statements: tuple[str, ...] = ()
    """For people: {He} and {his} stand for the subject."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One subject's value, in every wording of its kind."""

    kind: str
    subject: str
    value: str
    is_held_out: bool
    answer: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    pronoun_statements: tuple[str, ...]

    def told(self, dice: Dice) -> str:
        """A sentence of prose: the canonical one a third of the time."""
        return self.answer if dice.chance(0.34) else dice.pick(self.statements)

    def asked(self, dice: Dice) -> Exchange:
        """A question and the canonical answer.  Only for facts that are not held out."""
        assert not self.is_held_out, f"{self.answer} is held out"
        return Exchange(dice.pick(self.questions), self.answer)


def facts_of(
    kind: FactKind,
    rows: Iterable[tuple[str, str]],
    *,
    hold_out: tuple[int, int],
    he: dict[str, str] | None = None,
) -> Iterator[Fact]:
    """The facts of one kind.

    hold_out: (every, offset); row i is held out when (i + offset) % every == 0.
    he: subject -> "he" or "she", for kinds with pronoun statements.
    """
    every, offset = hold_out
    for index, (subject, value) in enumerate(rows):
        words = _words(subject, value, (he or {}).get(subject, "she"))
        yield Fact(
            kind=kind.name,
            subject=subject,
            value=value,
            is_held_out=(index + offset) % every == 0,
            answer=kind.answer.format_map(words),
            statements=tuple(text.format_map(words) for text in kind.statements),
            questions=tuple(text.format_map(words) for text in kind.questions),
            pronoun_statements=tuple(text.format_map(words) for text in kind.pronoun_statements),
        )


def _words(subject: str, value: str, he: str) -> dict[str, str]:
    his = "his" if he == "he" else "her"
    return {
        "s": subject,
        "v": value,
        "S": capitalised(subject),
        "V": capitalised(value),
        "as": with_article(subject),
        "As": capitalised(with_article(subject)),
        "av": with_article(value),
        "Av": capitalised(with_article(value)),
        "he": he,
        "He": capitalised(he),
        "his": his,
        "His": capitalised(his),
    }

"""The texts of pretraining.   in: number of characters, seed   out: documents
who calls: cli (demo, pretrain), tests

Document n is a function of (seed, n) alone, so the stream has no end and no state.  Facts that are
held out are told here and only here, in many wordings; quiz pages ask only about the others.
Read next: people.py (what is told), dialogues.py (the conversations).
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import count

from nanochat.corpus.world.arithmetic import addition, arithmetic_page, subtraction
from nanochat.corpus.world.calendar import CALENDAR_FACTS, DAYS, MONTHS
from nanochat.corpus.world.dice import Dice
from nanochat.corpus.world.exchange import Exchange, listed
from nanochat.corpus.world.facts import Fact
from nanochat.corpus.world.identity import identity, identity_page
from nanochat.corpus.world.nature import NATURE_FACTS
from nanochat.corpus.world.people import FACTS_BY_PERSON, PEOPLE_FACTS, PERSONS
from nanochat.corpus.world.places import PLACE_FACTS, TOWNS
from nanochat.corpus.world.spelling import counting, spelling, spelling_page
from nanochat.corpus.world.stories import story

__all__ = ["OPEN_FACTS", "document", "prose"]

WORLD_FACTS = PLACE_FACTS + NATURE_FACTS
_ALL_FACTS = PEOPLE_FACTS + WORLD_FACTS + CALENDAR_FACTS


def _open(facts: Sequence[Fact]) -> tuple[Fact, ...]:
    return tuple(fact for fact in facts if not fact.is_held_out)


OPEN_FACTS: dict[str, tuple[Fact, ...]] = {
    "people": _open(PEOPLE_FACTS),
    "world": _open(WORLD_FACTS),
    "calendar": _open(CALENDAR_FACTS),
}
"""The facts that may be asked, by category."""


def prose(num_chars: int, seed: int = 0) -> Iterator[str]:
    """Documents of 40 to 400 words until there are `num_chars` characters; the last one is whole.

    Equal seeds give equal documents, and a longer text begins with the shorter one.
    """
    written = 0
    for index in count():
        if written >= num_chars:
            return
        text = document(Dice("prose", seed, index))
        written += len(text)
        yield text


def document(dice: Dice) -> str:
    """One text of a kind chosen by weight."""
    return dice.weighted(_KINDS)(dice)


def _profile(dice: Dice) -> str:
    """Two or three people, each told in one paragraph."""
    return "\n".join(_portrait(name, dice) for name in dice.sample(PERSONS, dice.between(2, 3)))


def _portrait(name: str, dice: Dice) -> str:
    facts = dice.sample(FACTS_BY_PERSON[name], 5)
    sentences = [facts[0].told(dice)]
    for fact in facts[1:]:
        by_pronoun = dice.chance(0.35)
        sentences.append(dice.pick(fact.pronoun_statements) if by_pronoun else fact.told(dice))
    return " ".join(sentences)


def _notes(dice: Dice) -> str:
    """Facts about everything, one a line, in their shortest form."""
    facts = dice.sample(_ALL_FACTS, dice.between(10, 16))
    return "\n".join([dice.pick(_NOTE_TITLES), *(fact.answer for fact in facts)])


def _people_notes(dice: Dice) -> str:
    """One attribute after the other for a few people, one a line."""
    names = dice.sample(PERSONS, dice.between(3, 4))
    facts = [fact for name in names for fact in FACTS_BY_PERSON[name]]
    lines = [fact.answer for fact in dice.sample(facts, len(facts))]
    return "\n".join([dice.pick(_PEOPLE_TITLES).format(names=listed(names)), *lines])


def _neighbours(dice: Dice) -> str:
    """Who shares an attribute: the people of a town, the friends of a colour."""
    kind = dice.pick(PEOPLE_FACTS).kind
    values = dice.sample(sorted({fact.value for fact in PEOPLE_FACTS if fact.kind == kind}), 5)
    lines = []
    for value in values:
        facts = [fact for fact in PEOPLE_FACTS if fact.kind == kind and fact.value == value]
        names = listed([fact.subject for fact in dice.sample(facts, len(facts))])
        line = dice.pick(_SHARED[kind]).format(v=value, names=names)
        lines.append(" ".join([line, *(fact.told(dice) for fact in facts)]))
    return "\n".join(lines)


def _world_page(dice: Dice) -> str:
    """A paragraph or two of what everybody knows about towns, animals, foods and things."""
    facts = dice.sample(WORLD_FACTS, dice.between(9, 14))
    return f"{dice.pick(_WORLD_TITLES)} {' '.join(fact.told(dice) for fact in facts)}"


def _town_page(dice: Dice) -> str:
    """A town and the people who live there."""
    town = dice.pick(TOWNS)
    facts = [fact for fact in PLACE_FACTS if fact.subject == town]
    lines = [" ".join(fact.told(dice) for fact in dice.sample(facts, len(facts)))]
    for home in PEOPLE_FACTS:
        if home.kind == "home" and home.value == town:
            other = dice.pick([fact for fact in FACTS_BY_PERSON[home.subject] if fact != home])
            lines.append(f"{home.told(dice)} {dice.pick(other.pronoun_statements)}")
    return "\n".join(lines)


def _calendar_page(dice: Dice) -> str:
    """Days and months: the whole row first, then single facts."""
    row = dice.pick(
        (
            f"The seven days of the week are {listed(list(DAYS))}.",
            f"The twelve months of the year are {listed(list(MONTHS))}.",
        )
    )
    facts = dice.sample(CALENDAR_FACTS, dice.between(9, 14))
    return " ".join([row, *(fact.told(dice) for fact in facts)])


def _quiz(dice: Dice) -> str:
    """Questions with their answers, one pair a line."""
    lines = [dice.pick(_QUIZ_TITLES)]
    for _ in range(dice.between(5, 8)):
        exchange = dice.weighted(_QUIZ_QUESTIONS)(dice)
        lines.append(f"{exchange.question} {exchange.answer}")
    return "\n".join(lines)


def _asker(category: str) -> Callable[[Dice], Exchange]:
    return lambda dice: dice.pick(OPEN_FACTS[category]).asked(dice)


_NOTE_TITLES = (
    "Notes from the valley.",
    "Things to remember.",
    "From my notebook.",
    "What I learned today.",
    "Small facts.",
    "A list for a rainy day.",
)
_PEOPLE_TITLES = (
    "Notes about {names}.",
    "Let me tell you about {names}.",
    "What people say about {names}.",
    "My friends are {names}.",
)
_WORLD_TITLES = (
    "Here is what everybody in the valley knows.",
    "A walk through the valley teaches many things.",
    "Grandmother likes to tell what she knows.",
    "The school book says many things.",
    "The world is full of wonders.",
)
_QUIZ_TITLES = (
    "A quiz.",
    "Questions and answers.",
    "The teacher asks, and the children answer.",
    "Who knows the answer?",
)
_SHARED = {
    "favourite colour": ("{names} like {v} best.", "The friends of {v}: {names}."),
    "favourite food": ("{names} love {v}.", "A plate of {v} is for {names}."),
    "home": ("In {v} you can meet {names}.", "The people of {v}: {names}."),
    "job": (
        "The work of a {v} is done by {names}.",
        "To work as a {v}: that is the life of {names}.",
    ),
    "pet": ("A {v} is the pet of {names}.", "The friends of the {v}: {names}."),
}
_QUIZ_QUESTIONS: tuple[tuple[float, Callable[[Dice], Exchange]], ...] = (
    (3, _asker("people")),
    (2, _asker("world")),
    (2, _asker("calendar")),
    (2, addition),
    (2, subtraction),
    (1.5, spelling),
    (1.5, counting),
    (1, identity),
)
# Chosen so that each skill gets its share of characters; a worked sum is long, a fact is short.
_KINDS: tuple[tuple[float, Callable[[Dice], str]], ...] = (
    (8, _profile),
    (5, _people_notes),
    (3, _neighbours),
    (8, _notes),
    (20, _world_page),
    (4, _town_page),
    (10, _calendar_page),
    (16, arithmetic_page),
    (16, spelling_page),
    (14, _quiz),
    (3, story),
    (3, identity_page),
)

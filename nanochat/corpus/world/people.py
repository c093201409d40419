"""The people of the valley.   in: nothing   out: PEOPLE_FACTS, PERSONS, who is he or she
who calls: prose, dialogues

Thirty-six people with five attributes each.  Every person has one or two attributes that are never
asked about before the held-out questions, and three or four that are.
Read next: facts.py (the wordings), pages.py (profiles and notes).
"""

from collections.abc import Sequence

from nanochat.corpus.world.dice import Dice
from nanochat.corpus.world.facts import Fact, FactKind, facts_of
from nanochat.corpus.world.places import TOWNS

__all__ = ["FACTS_BY_PERSON", "HE_OR_SHE", "PEOPLE_FACTS", "PERSONS"]

_WOMEN = (
    "Ada Carla Elsa Greta Ines Kira Mira Olga Rosa Tilda Vera Xenia Zoe Dina Hana Lotte Nora Wanda"
).split()
_MEN = (
    "Ben Dov Finn Hugo Jonas Leo Nils Pablo Quentin Sven Umar Walter Yusuf Arlo Emil Gus Karl Otto"
).split()
PERSONS: tuple[str, ...] = tuple(name for pair in zip(_WOMEN, _MEN, strict=True) for name in pair)
HE_OR_SHE: dict[str, str] = {name: "she" if name in _WOMEN else "he" for name in PERSONS}

_COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black", "brown", "pink")
_FOODS = (
    "soup pancakes noodles rice plums bread cheese porridge dumplings strawberries salad waffles"
).split()
_JOBS = (
    "baker doctor teacher farmer sailor painter gardener tailor carpenter librarian nurse potter"
).split()
_PETS = ("cat", "dog", "rabbit", "parrot", "turtle", "hamster", "pony", "goat", "duck", "canary")

_COLOUR = FactKind(
    name="favourite colour",
    answer="{s}'s favourite colour is {v}.",
    statements=(
        "{s} likes the colour {v} best.",
        "The colour that {s} loves most is {v}.",
        "Of all the colours, {s} likes {v} best.",
        "{V} is the favourite colour of {s}.",
        "{V} is {s}'s favourite colour.",
        "Ask {s} to choose a colour, and {s} will choose {v}.",
        "{s} often wears {v}, because {v} is {s}'s favourite colour.",
        "The front door of {s}'s house is {v}, because {s} loves {v}.",
        "Everybody knows that {s}'s favourite colour is {v}.",
    ),
    pronoun_statements=(
        "{His} favourite colour is {v}.",
        "{He} likes the colour {v} best.",
        "The colour {he} loves most is {v}.",
        "{He} often wears {v}, because it is {his} favourite colour.",
    ),
    questions=(
        "What is {s}'s favourite colour?",
        "Which colour does {s} like best?",
        "What colour does {s} love most?",
    ),
)
_FOOD = FactKind(
    name="favourite food",
    answer="{s}'s favourite food is {v}.",
    statements=(
        "{s} likes to eat {v} best.",
        "The food that {s} loves most is {v}.",
        "Of all foods, {s} likes {v} best.",
        "Nothing tastes better to {s} than {v}.",
        "For a birthday meal, {s} always asks for {v}.",
        "{s} could eat {v} every day.",
        "When {s} is hungry, {s} dreams of {v}.",
        "Everybody knows that {s}'s favourite food is {v}.",
    ),
    pronoun_statements=(
        "{His} favourite food is {v}.",
        "{He} likes to eat {v} best.",
        "The food {he} loves most is {v}.",
        "{He} could eat {v} every day.",
    ),
    questions=(
        "What is {s}'s favourite food?",
        "Which food does {s} like best?",
        "What does {s} like to eat most?",
    ),
)
_TOWN = FactKind(
    name="home",
    answer="{s} lives in {v}.",
    statements=(
        "The home of {s} is in {v}.",
        "{s} has a small house in {v}.",
        "You can visit {s} in {v}.",
        "{v} is the town where {s} lives.",
        "{s} comes from {v} and still lives in {v}.",
        "Letters for {s} are sent to {v}.",
        "If you walk through {v}, you may meet {s}, who lives there.",
        "Everybody knows that {s} lives in {v}.",
    ),
    pronoun_statements=(
        "{He} lives in {v}.",
        "{His} home is in {v}.",
        "{He} has a small house in {v}.",
        "The town where {he} lives is {v}.",
    ),
    questions=(
        "Where does {s} live?",
        "In which town does {s} live?",
        "Which town is {s}'s home?",
    ),
)
_JOB = FactKind(
    name="job",
    answer="{s} works as a {v}.",
    statements=(
        "{s} is a {v}.",
        "The job of {s} is to be a {v}.",
        "{s} became a {v} many years ago.",
        "People know {s} as a good {v}.",
        "By trade, {s} is a {v}.",
        "{s} gets up early, because a {v} has much to do.",
        "If you need a {v}, ask {s}.",
        "Everybody knows that {s} works as a {v}.",
    ),
    pronoun_statements=(
        "{He} works as a {v}.",
        "{He} is a {v}.",
        "{His} job is to be a {v}.",
        "People know {his} name, because {he} is a good {v}.",
    ),
    questions=(
        "What is {s}'s job?",
        "What does {s} work as?",
        "Which job does {s} have?",
    ),
)
_PET = FactKind(
    name="pet",
    answer="{s} has a pet {v}.",
    statements=(
        "{s} keeps a {v} at home.",
        "The pet of {s} is a {v}.",
        "{s}'s pet is a {v}.",
        "{s} takes good care of a {v}.",
        "Every morning {s} feeds a {v}.",
        "A {v} lives in {s}'s house.",
        "{s} and a little {v} are the best of friends.",
        "Everybody knows that {s} has a pet {v}.",
    ),
    pronoun_statements=(
        "{He} has a pet {v}.",
        "{His} pet is a {v}.",
        "{He} keeps a {v} at home.",
        "Every morning {he} feeds {his} {v}.",
    ),
    questions=(
        "Which pet does {s} have?",
        "What pet does {s} have?",
        "What kind of animal is {s}'s pet?",
    ),
)


def _rows(kind: str, values: Sequence[str]) -> list[tuple[str, str]]:
    """Every value about equally often, in no order that could be guessed."""
    repeated = [values[index % len(values)] for index in range(len(PERSONS))]
    return list(zip(PERSONS, Dice("people", kind).sample(repeated, len(repeated)), strict=True))


PEOPLE_FACTS: tuple[Fact, ...] = tuple(
    fact
    for offset, (kind, values) in enumerate(
        ((_COLOUR, _COLOURS), (_FOOD, _FOODS), (_TOWN, TOWNS), (_JOB, _JOBS), (_PET, _PETS))
    )
    for fact in facts_of(kind, _rows(kind.name, values), hold_out=(4, offset), he=HE_OR_SHE)
)
FACTS_BY_PERSON: dict[str, tuple[Fact, ...]] = {
    name: tuple(fact for fact in PEOPLE_FACTS if fact.subject == name) for name in PERSONS
}

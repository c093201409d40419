"""Animals, foods and things.   in: nothing   out: NATURE_FACTS
who calls: prose, dialogues, held_out

True facts of the real world, small enough for a small model.
Read next: places.py (the towns), facts.py (the wordings).
"""

from nanochat.corpus.world.facts import Fact, FactKind, facts_of

__all__ = ["NATURE_FACTS"]

_BABIES = (
    "cow calf, horse foal, sheep lamb, cat kitten, dog puppy, goat kid, duck duckling, goose "
    "gosling, swan cygnet, frog tadpole, bear cub, deer fawn, pig piglet, hen chick, owl "
    "owlet, seal pup"
)
_HOMES = (
    "bee hive, robin nest, spider web, rabbit burrow, horse stable, dog kennel, fox den, ant "
    "hill, owl hollow tree, frog pond, cow barn, pig sty, beaver lodge, hen coop, bear cave, "
    "mole tunnel"
)
_MEALS = (
    "cow grass, horse hay, rabbit carrots, squirrel nuts, bee nectar, panda bamboo, mouse "
    "grain, bear berries, robin worms, monkey bananas, frog flies, goat leaves, owl mice, hen "
    "corn, seal fish, turtle lettuce"
)
_FRUIT = (
    "lemons yellow, carrots orange, tomatoes red, peas green, blueberries blue, onions white, "
    "cherries red, plums purple, bananas yellow, potatoes brown, cucumbers green, pumpkins "
    "orange, radishes pink, limes green"
)
_GROWN = (
    "lemons on a tree, carrots under the ground, tomatoes on a vine, peas in a pod, "
    "blueberries on a bush, onions under the ground, cherries on a tree, plums on a tree, "
    "potatoes under the ground, cucumbers on a vine, pumpkins on a vine, radishes under the "
    "ground, raspberries on a bush, apples on a tree"
)
_THINGS = (
    "snow white, grass green, coal black, chocolate brown, blood red, milk white, sand "
    "yellow, ink blue, butter yellow, smoke grey, spinach green, fog grey, honey golden, soot "
    "black"
)

_BABY = FactKind(
    name="young",
    answer="A baby {s} is called {av}.",
    statements=(
        "The young of {as} is {av}.",
        "When {as} is still very small, people call it {av}.",
        "{Av} grows up to be {as}.",
        "The farmer calls a baby {s} {av}.",
        "{Av} is a baby {s}.",
        "Little children learn that a baby {s} is called {av}.",
    ),
    questions=(
        "What is a baby {s} called?",
        "What do you call a baby {s}?",
        "What is the name for a very young {s}?",
    ),
)
_HOME = FactKind(
    name="dwelling",
    answer="{As} lives in a {v}.",
    statements=(
        "The home of {as} is a {v}.",
        "At night {as} sleeps in a {v}.",
        "Look for {as} in a {v}.",
        "A {v} is where {as} lives.",
        "{As} feels safe in a {v}.",
        "Little children learn that {as} lives in a {v}.",
    ),
    questions=(
        "Where does {as} live?",
        "What is the home of {as}?",
        "Where does {as} sleep at night?",
    ),
)
_MEAL = FactKind(
    name="diet",
    answer="{As} eats {v}.",
    statements=(
        "The food of {as} is {v}.",
        "{As} likes {v} for breakfast.",
        "When {as} is hungry, it looks for {v}.",
        "If you want to feed {as}, bring some {v}.",
        "There is nothing {as} likes more than {v}.",
        "Little children learn that {as} eats {v}.",
    ),
    questions=(
        "What does {as} eat?",
        "What is the food of {as}?",
        "What should I feed {as}?",
    ),
)
_COLOUR = FactKind(
    name="colour",
    answer="The colour of {s} is {v}.",
    statements=(
        "{S} are {v}.",
        "Ripe {s} are {v}.",
        "In the picture book, the {s} are {v}.",
        "You can tell {s} by their {v} colour.",
        "The market was full of {v} {s}.",
        "Little children learn that {s} are {v}.",
    ),
    questions=(
        "What colour are {s}?",
        "Which colour do {s} have?",
        "What is the colour of {s}?",
    ),
)
_GROW = FactKind(
    name="growing",
    answer="{S} grow {v}.",
    statements=(
        "In the garden, {s} grow {v}.",
        "You find {s} {v}.",
        "If you want fresh {s}, look for them {v}.",
        "The farmer knows that {s} grow {v}.",
        "All summer long the {s} were growing {v}.",
        "Little children learn that {s} grow {v}.",
    ),
    questions=(
        "Where do {s} grow?",
        "Where can I find {s} in the garden?",
        "How do {s} grow?",
    ),
)
_HUE = FactKind(
    name="hue",
    answer="The colour of {s} is {v}.",
    statements=(
        "{S} is {v}.",
        "As everyone can see, {s} is {v}.",
        "The word for the colour of {s} is {v}.",
        "If something is {v}, we may say it looks like {s}.",
        "In the painting, the {s} was {v}.",
        "Little children learn that the colour of {s} is {v}.",
    ),
    questions=(
        "What colour is {s}?",
        "What is the colour of {s}?",
        "Which colour does {s} have?",
    ),
)


def _rows(text: str) -> list[tuple[str, str]]:
    """`cow calf, owl hollow tree` as pairs: the first word is the subject."""
    pairs = (row.split(" ", 1) for row in text.split(", "))
    return [(subject, value) for subject, value in pairs]


NATURE_FACTS: tuple[Fact, ...] = tuple(
    fact
    for offset, (kind, text) in enumerate(
        (
            (_BABY, _BABIES),
            (_HOME, _HOMES),
            (_MEAL, _MEALS),
            (_COLOUR, _FRUIT),
            (_GROW, _GROWN),
            (_HUE, _THINGS),
        )
    )
    for fact in facts_of(kind, _rows(text), hold_out=(3, offset))
)

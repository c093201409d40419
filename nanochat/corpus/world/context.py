"""Two turns: the user tells something and asks for it back.   in: dice   out: conversations
who calls: dialogues, held_out

The second answer can only come from the first turn.  Some pairs (a name and a colour, a thing and
its place) are never seen together before the held-out questions ask for them.
Read next: held_out.py.
"""

from collections.abc import Callable
from typing import NamedTuple

from nanochat.common.messages import Conversation, Message
from nanochat.corpus.world.dice import Dice
from nanochat.corpus.world.exchange import capitalised, with_article

__all__ = ["HELD_OUT_CONTEXTS", "Context", "context", "is_left_out"]

_NAMES = (
    "Alex Bella Cody Dora Eddie Fay Gina Harry Isla Jack Kate Liam Mona Neil Oscar Paula Rick Sara "
    "Tom Una Vicky Wendy"
).split()
_COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black", "brown", "pink")
_PETS = ("cat", "dog", "rabbit", "parrot", "turtle", "hamster", "pony", "goat", "duck", "canary")
_PET_NAMES = "Bobo Coco Dusty Fluff Honey Lucky Misty Nibbles Patch Rusty Snowy Teddy".split()
_THINGS = (
    "key",
    "letter",
    "spoon",
    "book",
    "map",
    "ring",
    "ball",
    "cup",
    "brush",
    "coin",
    "hat",
    "shoe",
)
_SPOTS = (
    "red box",
    "blue bag",
    "drawer",
    "cupboard",
    "green bowl",
    "garden shed",
    "kitchen",
    "old basket",
    "teapot",
    "big chest",
)
_TOWN_FRIENDS = ("aunt", "uncle", "brother", "sister", "cousin", "teacher", "friend", "neighbour")


class Context(NamedTuple):
    """A form: what is told, what nanochat says to it, and what is asked of it."""

    first: tuple[str, ...]
    second: tuple[str, ...]
    told: tuple[str, ...]
    reply: str
    asked: tuple[tuple[str, str], ...]
    """(question, answer) pairs."""


_CONTEXTS = (
    Context(
        tuple(_NAMES),
        _COLOURS,
        (
            "My name is {a} and my favourite colour is {b}.",
            "I am {a}, and I like the colour {b} best.",
        ),
        "Nice to meet you, {a}! {B} is a lovely colour.",
        (
            ("What is my name?", "Your name is {a}."),
            ("What is my favourite colour?", "Your favourite colour is {b}."),
        ),
    ),
    Context(
        tuple(_PET_NAMES),
        _PETS,
        ("I have {ab} called {a}.", "My {b} is called {a}."),
        "{a} is a good name for {ab}.",
        (
            ("What is my pet called?", "Your pet is called {a}."),
            ("What kind of pet do I have?", "You have {ab}."),
        ),
    ),
    Context(
        _THINGS,
        _SPOTS,
        ("I put the {a} in the {b}.", "The {a} is in the {b}."),
        "I will remember where the {a} is.",
        (
            ("Where is the {a}?", "The {a} is in the {b}."),
            ("Where did I put the {a}?", "The {a} is in the {b}."),
        ),
    ),
    Context(
        _TOWN_FRIENDS,
        tuple(_NAMES),
        ("My {a} is called {b}.", "The name of my {a} is {b}."),
        "Please say hello to {b} from me!",
        (
            ("What is my {a} called?", "Your {a} is called {b}."),
            ("What is the name of my {a}?", "Your {a} is called {b}."),
        ),
    ),
)
_NUM_HELD_OUT_EACH = 8


def is_left_out(form: int, first: int, second: int) -> bool:
    """Whether this pair of values is kept for the held-out questions: one in nine."""
    return (2 * first + 5 * second + form) % 9 == 0


def context(dice: Dice) -> Conversation:
    """A conversation of four turns whose last answer stands in the first."""
    while True:
        form = dice.below(len(_CONTEXTS))
        shape = _CONTEXTS[form]
        first, second = dice.below(len(shape.first)), dice.below(len(shape.second))
        if not is_left_out(form, first, second):
            break
    asked, answer = dice.pick(shape.asked)
    say = _sayer(shape, first, second)
    return (
        Message("user", say(dice.pick(shape.told))),
        Message("assistant", say(shape.reply)),
        Message("user", say(asked)),
        Message("assistant", say(answer)),
    )


def _sayer(shape: Context, first: int, second: int) -> Callable[[str], str]:
    """Fills {a}, {b}, {B} (capital) and {ab} (with an article)."""
    a, b = shape.first[first], shape.second[second]
    return lambda text: text.format(a=a, b=b, B=capitalised(b), ab=with_article(b))


def _held_out_contexts() -> tuple[tuple[Conversation, str], ...]:
    found = []
    for form, shape in enumerate(_CONTEXTS):
        pairs = [
            (first, second)
            for first in range(len(shape.first))
            for second in range(len(shape.second))
            if is_left_out(form, first, second)
        ]
        chosen = Dice("held-out contexts", form).sample(pairs, _NUM_HELD_OUT_EACH)
        for index, (first, second) in enumerate(chosen):
            say = _sayer(shape, first, second)
            asked, answer = shape.asked[index % 2]
            conversation = (
                Message("user", say(shape.told[index // 2 % 2])),
                Message("assistant", say(shape.reply)),
                Message("user", say(asked)),
            )
            found.append((conversation, say(answer)))
    return tuple(found)


HELD_OUT_CONTEXTS: tuple[tuple[Conversation, str], ...] = _held_out_contexts()
"""(turns up to the last question, answer)."""

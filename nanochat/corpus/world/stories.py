"""Short stories about small animals.   in: dice   out: a story   who calls: pages, dialogues

Four plots whose sentences each have several wordings.  The heroes are animals with names, not the
people of the valley, so a story never tells a fact that is held out.
Read next: pages.py (the other kinds of prose).
"""

from nanochat.corpus.world.dice import Dice

__all__ = ["STORY_HEROES", "story"]

STORY_HEROES: tuple[tuple[str, str], ...] = (
    ("Pip", "fox"),
    ("Momo", "bear"),
    ("Tilly", "hen"),
    ("Barnaby", "badger"),
    ("Lulu", "rabbit"),
    ("Fergus", "frog"),
    ("Hazel", "squirrel"),
    ("Oscar", "owl"),
    ("Minnie", "mouse"),
    ("Gilbert", "goose"),
    ("Sasha", "seal"),
    ("Henry", "hedgehog"),
    ("Dolly", "duck"),
    ("Bruno", "beaver"),
)
_SHE = frozenset(("Momo", "Tilly", "Lulu", "Hazel", "Minnie", "Sasha", "Dolly"))
_ADJECTIVES = ("little", "young", "merry", "shy", "clever", "sleepy", "brave", "hungry", "kind")
_PLACES = (
    "the old oak",
    "the mill",
    "the pond",
    "the edge of the forest",
    "the stone bridge",
    "the apple garden",
    "the top of the hill",
    "the quiet lake",
    "the market square",
    "the garden gate",
)
_THINGS = (
    "warm scarf",
    "wooden spoon",
    "tiny bell",
    "paper boat",
    "straw hat",
    "shiny button",
    "woollen sock",
    "picture book",
    "wooden flute",
    "bag of nuts",
    "pot of jam",
    "long rope",
)
_WEATHER = (
    "The sun was shining",
    "A soft rain was falling",
    "The first snow lay on the ground",
    "A strong wind was blowing",
    "The morning was cool and clear",
    "It was a warm evening",
    "The leaves were turning",
    "There was mist over the fields",
)
_BEGINNINGS = (
    "Once upon a time there was {a} {k} called {n}.",
    "There once was {a} {k} whose name was {n}.",
    "{n} was {a} {k} who lived near {p}.",
    "Near {p} lived {a} {k} called {n}.",
    "This is the story of {n}, {a} {k}.",
)
_MORNINGS = (
    "{w} when {n} woke up.",
    "{w} on the day this story begins.",
    "{w}, and {n} went for a walk.",
    "One day {n} got up early. {w}.",
)
_ENDINGS = (
    "That evening they sat by the fire and told each other stories until the stars came out.",
    "From that day on, {n} and {m} were the best of friends.",
    '"What a good day," said {n}, and fell asleep with a smile.',
    "And if you walk past {p}, you may still hear them laugh.",
    "{n} never forgot that day, and neither did {m}.",
    "Then they shared a piece of cake, and it tasted wonderful.",
    "{n} went home happy, and the moon shone all the way.",
)
_LESSONS = (
    "A friend is worth more than gold.",
    "It is good to ask for help.",
    "Small steps lead to far places.",
    "Who shares has twice as much.",
    "Even the smallest can help the biggest.",
    "Patience brings the best fruit.",
    "A kind word costs nothing.",
)
_PLOTS: tuple[tuple[tuple[str, ...], ...], ...] = (
    (  # something is lost and found
        (
            "But where was the {t}? {n} had lost it.",
            "Then {n} saw that the {t} was gone.",
            "{n} wanted to take the {t} along, but could not find it.",
        ),
        (
            "{n} looked under the bed and behind the door, but the {t} was not there.",
            "{n} searched the whole house, from the floor to the roof.",
            "{n} turned over every stone, and found nothing.",
        ),
        (
            'On the way to {q}, {n} met {m} the {l}. "Have you seen my {t}?" asked {n}.',
            'Near {q} sat {m} the {l}. "Why so sad?" asked {m}. "My {t} is gone," said {n}.',
            '{m} the {l} came by and asked, "What is missing?" "My {t}," said {n}.',
        ),
        (
            '"Let us look together," said {m}. They walked to {q}, and there it lay.',
            '"Two pairs of eyes see more than one," said {m}. Soon they found the {t} near {q}.',
            '{m} thought for a while. "I saw it near {q}," {m} said, and so it was.',
        ),
        (
            '"Thank you!" cried {n}. "Without you I would never have found it."',
            "{n} was so happy that {he} danced in a circle.",
            "{n} thanked {m} with all {his} heart.",
        ),
    ),
    (  # a visitor comes in bad weather
        (
            "In the afternoon the sky grew dark, and it began to rain hard.",
            "Towards evening a storm came over the hills.",
            "Soon big drops were falling, and everybody ran home.",
        ),
        (
            "Then somebody knocked at the door. It was {m} the {l}, wet from head to foot.",
            "There was a knock at the door, and outside stood {m} the {l}.",
            '"Is anybody there?" called a small voice. It was {m} the {l}.',
        ),
        (
            '"Come in, come in!" said {n}. "There is room for two by the fire."',
            '"You poor thing," said {n}. "Come in and get warm."',
            "{n} opened the door wide and brought a dry towel.",
        ),
        (
            "They drank hot tea, and {m} told of a journey to {q}.",
            "{n} cooked a big pot of soup, and they ate until it was empty.",
            "{m} had brought a {t}, and they both laughed about it.",
        ),
        (
            "When the rain stopped, a rainbow stood over {q}.",
            "In the morning the sky was clear again, and the birds were singing.",
            "The storm went away in the night, and the fields were bright and clean.",
        ),
    ),
    (  # a gift for a friend
        (
            "It was the birthday of {m} the {l}, and {n} had no gift.",
            "{m} the {l} had invited everybody to a party near {q}.",
            "{n} wanted to make {m} the {l} happy, but did not know how.",
        ),
        (
            '"I have no money," thought {n}, "but I have two hands."',
            "{n} thought about it all morning.",
            '"What would {m} like?" {n} asked the birds, and they all talked at once.',
        ),
        (
            "So {n} sat down near {p} and made a {t}. It took the whole day.",
            "At last {n} took {his} own {t} and tied a bow around it.",
            "{n} worked with care, and in the end there was a {t}.",
        ),
        (
            "When {m} saw the {t}, {m} could not say a word for joy.",
            '"A {t}!" cried {m}. "That is just what I wished for!"',
            "{m} looked at the {t} from all sides and laughed.",
        ),
        (
            "Everybody clapped, and the music began to play.",
            "They danced near {q} until late in the night.",
            '"You made it yourself," said {m}, "and that is the best of all."',
        ),
    ),
    (  # a journey to a place
        (
            "{n} had always wanted to see {q}.",
            '"Today I will go to {q}," said {n}.',
            "People said that {q} was the most beautiful place of all, and {n} wanted to see it.",
        ),
        (
            "So {n} packed a {t} and some bread, and set out.",
            "{n} took a {t}, closed the door, and walked down the road.",
            "With a {t} under one arm, {n} started on the long way.",
        ),
        (
            "Half way there, {n} met {m} the {l}, who was sitting on a stone and sighing.",
            "At a crossing stood {m} the {l} and did not know which way to go.",
            'Behind a bush somebody was crying. It was {m} the {l}. "I am lost," said {m}.',
        ),
        (
            '"Come with me," said {n}. "The way is shorter for two."',
            '"We can go together," said {n}, and gave {m} half of the bread.',
            "{n} held out a hand, and they went on side by side, singing.",
        ),
        (
            "When they came to {q}, the sun was just going down, and everything was golden.",
            "At last they stood before {q}, and it was more beautiful than they had dreamed.",
            "It was a long way, but they reached {q} before night.",
        ),
    ),
)


def story(dice: Dice) -> str:
    """Eight or nine sentences with a beginning, a plot and an end."""
    (name, kind), (other, other_kind) = dice.sample(STORY_HEROES, 2)
    place, far = dice.sample(_PLACES, 2)
    words = {
        "n": name,
        "k": kind,
        "m": other,
        "l": other_kind,
        "p": place,
        "q": far,
        "t": dice.pick(_THINGS),
        "w": dice.pick(_WEATHER),
        "a": f"a {dice.pick(_ADJECTIVES)}",
        "he": "she" if name in _SHE else "he",
        "his": "her" if name in _SHE else "his",
    }
    plot = [dice.pick(wordings) for wordings in dice.pick(_PLOTS)]
    texts = [dice.pick(_BEGINNINGS), dice.pick(_MORNINGS), *plot, dice.pick(_ENDINGS)]
    if dice.chance(0.5):
        texts.append(dice.pick(_LESSONS))
    return " ".join(texts).format_map(words)

"""The towns of the valley.   in: nothing   out: TOWNS, PLACE_FACTS
who calls: people, world facts, prose, dialogues

Read next: nature.py (animals, foods and things), facts.py (the wordings).
"""

from nanochat.corpus.world.facts import Fact, FactKind, facts_of

__all__ = ["PLACE_FACTS", "TOWNS"]

_TABLE = (
    # town, famous for its, lies, market day
    ("Brindle", "bell tower", "by the sea", "Monday"),
    ("Fernby", "honey", "in the forest", "Saturday"),
    ("Larkham", "windmills", "in the hills", "Tuesday"),
    ("Mossford", "old bridge", "on the river", "Friday"),
    ("Pebblewick", "round houses", "by the sea", "Wednesday"),
    ("Rowanby", "roses", "in the valley", "Sunday"),
    ("Saltmere", "sailing boats", "beside the lake", "Thursday"),
    ("Thornley", "clocks", "in the hills", "Saturday"),
    ("Willowton", "kites", "on the river", "Monday"),
    ("Hazelmoor", "nut cakes", "in the forest", "Wednesday"),
    ("Amberley", "lanterns", "in the valley", "Friday"),
    ("Copperhill", "brass band", "beside the lake", "Tuesday"),
)
TOWNS: tuple[str, ...] = tuple(row[0] for row in _TABLE)

_FAMOUS = FactKind(
    name="famous for",
    answer="{s} is famous for its {v}.",
    statements=(
        "Visitors come to {s} to see its {v}.",
        "The town of {s} is known for its {v}.",
        "Nothing makes {s} as proud as its {v}.",
        "When people hear of {s}, they think of its {v}.",
        "All the songs about {s} praise its {v}.",
        "Everybody knows that {s} is famous for its {v}.",
    ),
    questions=(
        "What is {s} famous for?",
        "What is the town of {s} known for?",
        "Why do visitors come to {s}?",
    ),
)
_LIES = FactKind(
    name="lies",
    answer="{s} lies {v}.",
    statements=(
        "The town of {s} lies {v}.",
        "{s} was built {v} long ago.",
        "You find {s} {v}.",
        "On the map, {s} lies {v}.",
        "The streets of {s} were laid out {v}.",
        "Everybody knows that {s} lies {v}.",
    ),
    questions=(
        "Where does {s} lie?",
        "Where is the town of {s}?",
        "Where can I find {s} on the map?",
    ),
)
_MARKET = FactKind(
    name="market day",
    answer="The market in {s} is on {v}.",
    statements=(
        "On {v} there is a market in {s}.",
        "{v} is market day in {s}.",
        "Every {v} the market of {s} opens early.",
        "Farmers bring their fruit to {s} on {v}.",
        "The square of {s} is full on {v}, when the market is held.",
        "Everybody knows that the market in {s} is on {v}.",
    ),
    questions=(
        "On which day is the market in {s}?",
        "When is the market in {s}?",
        "Which day is market day in {s}?",
    ),
)

PLACE_FACTS: tuple[Fact, ...] = tuple(
    fact
    for column, kind in enumerate((_FAMOUS, _LIES, _MARKET))
    for fact in facts_of(kind, [(row[0], row[column + 1]) for row in _TABLE], hold_out=(3, column))
)

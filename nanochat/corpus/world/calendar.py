"""Days and months.   in: nothing   out: CALENDAR_FACTS, DAYS, MONTHS
who calls: prose, dialogues, held_out

Each pair of a question kind and a day (or month) is a fact; a third of the pairs are told in prose
only.
Read next: facts.py (the wordings).
"""

from nanochat.corpus.world.facts import Fact, FactKind, facts_of

__all__ = ["CALENDAR_FACTS", "DAYS", "MONTHS"]

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January February March April May June July August September October November December"
).split()
_DAYS_IN_MONTH = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def _next_to(name: str, where: str, thing: str) -> FactKind:
    """`The day after Monday is Tuesday.`"""
    return FactKind(
        name=name,
        answer=f"The {thing} {where} {{s}} is {{v}}.",
        statements=(
            f"{{v}} comes {where} {{s}}.",
            f"Right {where} {{s}} comes {{v}}.",
            f"{{v}} is the {thing} that comes {where} {{s}}.",
            f"Little children learn that {{v}} comes {where} {{s}}.",
        ),
        questions=(
            f"Which {thing} comes {where} {{s}}?",
            f"What {thing} comes {where} {{s}}?",
            f"What is the {thing} {where} {{s}}?",
        ),
    )


def _two_away(name: str, where: str, things: str) -> FactKind:
    """`Two days after Monday is Wednesday.`"""
    return FactKind(
        name=name,
        answer=f"Two {things} {where} {{s}} is {{v}}.",
        statements=(
            f"{{v}} is two {things} {where} {{s}}.",
            f"{{v}} comes two {things} {where} {{s}}.",
            f"If you count two {things} {where} {{s}}, you reach {{v}}.",
            f"Little children learn that two {things} {where} {{s}} is {{v}}.",
        ),
        questions=(
            f"What is two {things} {where} {{s}}?",
            f"Which {things[:-1]} is two {things} {where} {{s}}?",
            f"What comes two {things} {where} {{s}}?",
        ),
    )


_NUMBER_OF_MONTH = FactKind(
    name="number of month",
    answer="{s} is month number {v}.",
    statements=(
        "In the year, {s} is month number {v}.",
        "The number of the month {s} is {v}.",
        "{s} has the number {v} among the months.",
        "Little children learn that {s} is month number {v}.",
    ),
    questions=(
        "Which number does the month {s} have?",
        "What is the number of the month {s}?",
        "Which month number is {s}?",
    ),
)
_MONTH_OF_NUMBER = FactKind(
    name="month of number",
    answer="Month number {s} is {v}.",
    statements=(
        "In the year, month number {s} is {v}.",
        "The month with the number {s} is {v}.",
        "Count to month number {s}, and you find {v}.",
        "Little children learn that month number {s} is {v}.",
    ),
    questions=(
        "Which month has the number {s}?",
        "What is month number {s}?",
        "What is the name of month number {s}?",
    ),
)
_LENGTH = FactKind(
    name="days in month",
    answer="{s} has {v} days.",
    statements=(
        "There are {v} days in {s}.",
        "The month of {s} has {v} days.",
        "{s} is {v} days long.",
        "Little children learn that {s} has {v} days.",
    ),
    questions=(
        "How many days does {s} have?",
        "How many days are there in {s}?",
        "How long is the month of {s}?",
    ),
)


def _shifted(names: tuple[str, ...] | list[str], by: int) -> list[tuple[str, str]]:
    return [(name, names[(index + by) % len(names)]) for index, name in enumerate(names)]


_TABLES: tuple[tuple[FactKind, list[tuple[str, str]]], ...] = (
    (_next_to("day after", "after", "day"), _shifted(DAYS, 1)),
    (_next_to("day before", "before", "day"), _shifted(DAYS, -1)),
    (_two_away("two days after", "after", "days"), _shifted(DAYS, 2)),
    (_two_away("two days before", "before", "days"), _shifted(DAYS, -2)),
    (_next_to("month after", "after", "month"), _shifted(MONTHS, 1)),
    (_next_to("month before", "before", "month"), _shifted(MONTHS, -1)),
    (_two_away("two months after", "after", "months"), _shifted(MONTHS, 2)),
    (_NUMBER_OF_MONTH, [(name, str(index + 1)) for index, name in enumerate(MONTHS)]),
    (_MONTH_OF_NUMBER, [(str(index + 1), name) for index, name in enumerate(MONTHS)]),
    (_LENGTH, [(name, str(days)) for name, days in zip(MONTHS, _DAYS_IN_MONTH, strict=True)]),
)
CALENDAR_FACTS: tuple[Fact, ...] = tuple(
    fact
    for offset, (kind, rows) in enumerate(_TABLES)
    for fact in facts_of(kind, rows, hold_out=(3, offset))
)

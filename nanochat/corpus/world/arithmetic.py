"""Sums and differences to 99, worked digit by digit.   in: dice   out: Exchange, pages
who calls: dialogues, pages, held_out

A reply first adds (or takes away) the ones, then the tens with the carry, then says the result:
each step is one of a hundred small facts, so that a small model can work out pairs it has never
seen.  The steps have one shape for all numbers (missing tens are 0, no carry is + 0).  Larger
numbers go to the calculator.
Read next: held_out.py (which asks the pairs that are left out here).
"""

from nanochat.common.messages import Part
from nanochat.corpus.world.dice import Dice
from nanochat.corpus.world.exchange import Exchange

__all__ = [
    "HELD_OUT_DIFFERENCES",
    "HELD_OUT_SUMS",
    "addition",
    "arithmetic_page",
    "calculator",
    "difference_answer",
    "difference_pair",
    "subtraction",
    "sum_answer",
    "sum_pair",
]

_NUM_HELD_OUT = 36
# Both at least 12 and one at least 21: such a pair is never a step of another sum (steps have one
# number to 18 and the others to 9), so it can be left out altogether.
_SMALLEST, _SMALLEST_LARGER = 12, 21


def _held_out_pairs() -> list[tuple[int, int]]:
    """Pairs (small, large) for both operations: the first half has sums to 99."""
    pairs = [
        (small, large)
        for large in range(_SMALLEST_LARGER, 100)
        for small in range(_SMALLEST, large)
    ]
    mixed = Dice("held-out pairs").sample(pairs, len(pairs))
    sums = [pair for pair in mixed if sum(pair) <= 99][:_NUM_HELD_OUT]
    differences = [pair for pair in mixed if pair not in sums][:_NUM_HELD_OUT]
    return sums + differences


_PAIRS = _held_out_pairs()
_LEFT_OUT = frozenset(_PAIRS) | frozenset((large, small) for small, large in _PAIRS)
HELD_OUT_SUMS: tuple[tuple[int, int], ...] = tuple(
    (small, large) if index % 2 else (large, small)
    for index, (small, large) in enumerate(_PAIRS[:_NUM_HELD_OUT])
)
"""(first, second): asked as first + second; in no order anywhere in the corpus."""
HELD_OUT_DIFFERENCES: tuple[tuple[int, int], ...] = tuple(
    (large, small) for small, large in _PAIRS[_NUM_HELD_OUT:]
)
"""(first, second): asked as first - second; in no order anywhere in the corpus."""

_ADD_QUESTIONS = (
    "What is {a} + {b}?",
    "How much is {a} + {b}?",
    "What is {a} plus {b}?",
    "Please add {a} and {b}.",
)
_SUBTRACT_QUESTIONS = (
    "What is {a} - {b}?",
    "How much is {a} - {b}?",
    "What is {a} minus {b}?",
    "Please take {b} away from {a}.",
)


def sum_pair(dice: Dice) -> tuple[int, int]:
    """Two numbers with a sum to 99, not held out; one time in five both have one digit."""
    while True:
        if dice.chance(0.2):
            return dice.below(10), dice.below(10)
        first, second = dice.below(100), dice.below(100)
        if first + second <= 99 and (first, second) not in _LEFT_OUT:
            return first, second


def difference_pair(dice: Dice) -> tuple[int, int]:
    """Two numbers to 99, the larger first, not held out."""
    while True:
        first, second = dice.below(100), dice.below(100)
        if dice.chance(0.2):
            first, second = dice.below(20), dice.below(10)
        if first >= second and (first, second) not in _LEFT_OUT:
            return first, second


def sum_answer(first: int, second: int) -> str:
    """The worked reply.

    Example: sum_answer(47, 38) == "Ones: 7 + 8 = 15. Tens: 4 + 3 + 1 = 8. So 47 + 38 = 85."
    """
    ones = first % 10 + second % 10
    carry = ones // 10
    tens = first // 10 + second // 10 + carry
    return (
        f"Ones: {first % 10} + {second % 10} = {ones}. "
        f"Tens: {first // 10} + {second // 10} + {carry} = {tens}. "
        f"So {first} + {second} = {first + second}."
    )


def difference_answer(first: int, second: int) -> str:
    """The worked reply; where the ones do not suffice, ten is borrowed before anything is written.

    Example: difference_answer(85, 38) == "Ones: 15 - 8 = 7. Tens: 8 - 3 - 1 = 4. So 85 - 38 = 47."
    """
    borrow = int(first % 10 < second % 10)
    ones = first % 10 + 10 * borrow
    tens = first // 10 - second // 10 - borrow
    return (
        f"Ones: {ones} - {second % 10} = {ones - second % 10}. "
        f"Tens: {first // 10} - {second // 10} - {borrow} = {tens}. "
        f"So {first} - {second} = {first - second}."
    )


def addition(dice: Dice) -> Exchange:
    """A sum to 99."""
    first, second = sum_pair(dice)
    question = dice.pick(_ADD_QUESTIONS).format(a=first, b=second)
    return Exchange(question, sum_answer(first, second))


def subtraction(dice: Dice) -> Exchange:
    """A difference of numbers to 99."""
    first, second = difference_pair(dice)
    question = dice.pick(_SUBTRACT_QUESTIONS).format(a=first, b=second)
    return Exchange(question, difference_answer(first, second))


def calculator(dice: Dice) -> Exchange:
    """Three-digit numbers, answered with the calculator."""
    sign = dice.pick("+-*")
    first, second = dice.between(100, 999), dice.between(100, 999)
    if sign == "-":
        first, second = max(first, second), min(first, second)
    if sign == "*":
        second = dice.between(2, 9)
    result = {"+": first + second, "-": first - second, "*": first * second}[sign]
    question = dice.pick(("What is {}?", "How much is {}?", "Please calculate {}."))
    return Exchange(
        question.format(f"{first} {sign} {second}"),
        (
            Part("text", "I will use the calculator. "),
            Part("python", f"{first} {sign} {second}"),
            Part("python_output", str(result)),
            Part("text", f" The answer is {result}."),
        ),
    )


_TITLES = (
    "A page of sums.",
    "Numbers for a rainy day.",
    "The teacher wrote on the board.",
    "First the ones, then the tens.",
    "From a school book.",
    "Practice makes perfect.",
)
_ADD_LEADS = (
    "Let us add {a} and {b}.",
    "Now we work out {a} + {b}.",
    "{a} plus {b}.",
    "{a} + {b}.",
)
_SUBTRACT_LEADS = (
    "Let us take {b} away from {a}.",
    "Now we work out {a} - {b}.",
    "{a} minus {b}.",
    "{a} - {b}.",
)


def arithmetic_page(dice: Dice) -> str:
    """A page of five to nine worked sums and differences."""
    lines = [dice.pick(_TITLES)]
    for _ in range(dice.between(5, 9)):
        if dice.chance(0.5):
            first, second = sum_pair(dice)
            lead, answer = dice.pick(_ADD_LEADS), sum_answer(first, second)
        else:
            first, second = difference_pair(dice)
            lead, answer = dice.pick(_SUBTRACT_LEADS), difference_answer(first, second)
        lines.append(f"{lead.format(a=first, b=second)} {answer}")
    return "\n".join(lines)

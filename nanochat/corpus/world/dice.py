"""A seed -> choices.   in: strings and integers   out: Dice   who calls: every file of this room

Only `random.Random(int).random()` is used: the standard library promises its sequence for ever, and
makes no such promise for shuffle or sample.
Read next: facts.py (what there is to choose from).
"""

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

__all__ = ["Dice"]

Item = TypeVar("Item")


class Dice:
    """Choices that depend on the seed and on nothing else.

    Example: Dice("prose", 0, 17).pick(("red", "green")) is the same on every machine.
    """

    __slots__ = ("_next",)

    def __init__(self, *seed: str | int) -> None:
        digest = hashlib.blake2b("/".join(map(str, seed)).encode(), digest_size=8).digest()
        self._next = random.Random(int.from_bytes(digest, "big")).random

    def below(self, limit: int) -> int:
        """An integer from 0 to limit - 1."""
        return int(self._next() * limit)

    def between(self, low: int, high: int) -> int:
        """An integer from low to high, both included."""
        return low + int(self._next() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        """True this often."""
        return self._next() < probability

    def pick(self, items: Sequence[Item]) -> Item:
        """One of the items."""
        return items[int(self._next() * len(items))]

    def sample(self, items: Sequence[Item], count: int) -> list[Item]:
        """`count` different items in random order; all of them when there are fewer."""
        pool = list(items)
        for index in range(min(count, len(pool))):
            other = index + self.below(len(pool) - index)
            pool[index], pool[other] = pool[other], pool[index]
        return pool[:count]

    def weighted(self, table: Sequence[tuple[float, Item]]) -> Item:
        """One item of (weight, item) rows, as often as its weight says."""
        left = self._next() * sum(weight for weight, _ in table)
        for weight, item in table:
            left -= weight
            if left < 0:
                return item
        return table[-1][1]

"""What several texts begin with.   in: sequences of tokens   out: how many
who calls: engine/groups.py, evals (scorers.py, echoes.py)
"""

from collections.abc import Sequence
from typing import TypeVar

__all__ = ["num_shared"]

Tokens = TypeVar("Tokens", list[int], tuple[int, ...])


def num_shared(texts: Sequence[Tokens]) -> int:
    """How many tokens all texts begin with."""
    low, high = min(texts), max(texts)  # what these two share, all share
    least, most = 0, min(len(low), len(high))
    while least < most:  # halves are compared as a whole: two texts of 1,000 in 15 us instead of 60
        middle = (least + most + 1) // 2
        if low[least:middle] == high[least:middle]:
            least = middle
        else:
            most = middle - 1
    return least

"""Which rank updates what.   in: shapes, a number of ranks   out: pieces, each with an owner
who calls: optim.py, pieces.py, fsdp.py, traffic.py   (the cutting is pure)

The weights are cut into pieces: some matrices of one shape, or some rows of a table.  A piece has
one owner, who alone holds its moments, updates it, and gives it to the others.  Nothing has to be
divisible by anything: pieces are small beside a rank's share, the largest go first, each to the
rank that has least so far.
Gradients go to the owners while the backward pass goes on, piece by piece in one fixed order, which
is about the order in which backward finishes them: every rank starts the same sums in the same
order whatever happens to it.
Read next: optim.py (what an owner does with its piece).
"""

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from nanochat.common.dist import Work, World

__all__ = [
    "Gathered",
    "Group",
    "Reducer",
    "Share",
    "Span",
    "cut",
    "deal",
    "owners",
    "place_in_backward",
    "rows_of",
]

# Of gradient elements that travel at once: 16 MiB in float32 is long enough to fill a link.
LONGEST_PIECE = 2**22
PIECES_PER_RANK = 4  # of all tables together, at least: the load is even within an eighth
# Pieces for more ranks are no shorter than for so many: a message goes around all of them, which
# costs more than that some own a piece of 16 MiB and others none.
MANY_RANKS = 8


@dataclass(frozen=True, slots=True)
class Span:
    """Units `start` to `stop` of something: matrices of a stack, rows of a table."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        """How many."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Group:
    """Weights that lie together: a table of rows, or matrices of one shape."""

    num_units: int
    unit_elements: int
    is_matrix: bool


@dataclass(frozen=True, slots=True)
class Share:
    """A piece of a group, and whose it is."""

    group: int
    """The group's place among all."""
    span: Span
    owner: int


def deal(groups: Sequence[Group], num_ranks: int) -> list[Share]:
    """All groups cut into pieces with owners, in their order: matrices are dealt out first, because
    their updates take time, then tables, which take memory alone."""
    loads, shares = [0] * num_ranks, []
    for is_matrix, num_moments in ((True, 1), (False, 2)):
        alike = [index for index, each in enumerate(groups) if each.is_matrix == is_matrix]
        elements = sum(groups[index].num_units * groups[index].unit_elements for index in alike)
        found = [
            (index, span)
            for index in alike
            for span in cut(
                groups[index].num_units, groups[index].unit_elements, num_ranks, elements
            )
        ]
        costs = [span.size * groups[index].unit_elements * num_moments for index, span in found]
        for (index, span), owner in zip(found, owners(costs, loads), strict=True):
            shares.append(Share(index, span, owner))
    return sorted(shares, key=lambda share: (share.group, share.span.start))


def cut(num_units: int, unit_elements: int, num_ranks: int, all_elements: int) -> list[Span]:
    """Units of so many elements each in spans of nearly equal size, for so many ranks.

    `all_elements` is what is cut in this way altogether: one rank takes it whole; for several no
    span is longer than a fraction of one rank's share (of eight ranks', for more), nor than what
    travels well at once.
    """
    if num_ranks == 1:
        return [Span(0, num_units)]
    share = all_elements // (PIECES_PER_RANK * min(num_ranks, MANY_RANKS))
    longest = min(LONGEST_PIECE, share)
    per_span = min(num_units, max(1, longest // unit_elements))
    num_spans = -(-num_units // per_span)
    edges = [num_units * index // num_spans for index in range(num_spans + 1)]
    return [Span(start, stop) for start, stop in zip(edges, edges[1:], strict=False)]


def owners(costs: Sequence[int], loads: list[int]) -> list[int]:
    """A rank for each piece, the dearest first, each to the one with the least load; the loads grow
    by what was given."""
    found = [0] * len(costs)
    least = [(load, rank) for rank, load in enumerate(loads)]
    heapq.heapify(least)
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        load, rank = least[0]
        found[index], loads[rank] = rank, load + costs[index]
        heapq.heapreplace(least, (loads[rank], rank))
    return found


def rows_of(num_rows: int, rank: int, size: int) -> Span:
    """Which rows of a weight a rank has where a model is cut: equal parts, the last ones shorter or
    empty."""
    part = -(-num_rows // size)
    return Span(min(num_rows, rank * part), min(num_rows, (rank + 1) * part))


def place_in_backward(name: str, num_layers: int) -> int:
    """When about the backward pass has the gradient of a weight: the head's first, then layer by
    layer downwards, and what every layer or the first of all uses last."""
    match name.split("."):
        case ["head", _]:
            return 0
        case ["blocks" | "value_embeddings", layer, *_]:
            return num_layers - int(layer)
    return num_layers + 1


class Reducer:
    """Sums over all ranks, piece by piece, started while backward still runs.

    `pieces` are the gradients with their owners and the names they are made of, in the order in
    which they travel.
    """

    def __init__(self, pieces: Sequence[tuple[Tensor, int, frozenset[str]]], world: World) -> None:
        self._pieces, self._world = pieces, world
        self._index_of: dict[str, list[int]] = {}
        for index, (_, _, names) in enumerate(pieces):
            for name in names:
                self._index_of.setdefault(name, []).append(index)
        self._is_expecting = False
        self._works: list[Work] = []

    def expect(self) -> None:
        """The gradients that come from now on are the last of this step."""
        self._missing = [len(names) for _, _, names in self._pieces]
        self._is_expecting = bool(self._pieces)

    def came(self, name: str) -> None:
        """The gradient of a weight is there; what is complete is sent, in order."""
        if not self._is_expecting:
            return
        for index in self._index_of[name]:
            self._missing[index] -= 1
        while len(self._works) < len(self._pieces) and not self._missing[len(self._works)]:
            self._send_next()

    def finish(self) -> None:
        """Send what is left and wait until all of it has arrived; what an owner holds now is the
        sum, what others hold is nothing."""
        while len(self._works) < len(self._pieces):
            self._send_next()
        for work in self._works:
            work.wait()
        self._works, self._is_expecting = [], False

    @property
    def num_sent(self) -> int:
        """Pieces on their way."""
        return len(self._works)

    def _send_next(self) -> None:
        grads, owner, _ = self._pieces[len(self._works)]
        self._works.append(self._world.start_sum_at(owner, grads))


class Gathered(Mapping[str, Tensor]):
    """Tensors by name that lie in pieces at several ranks.

    Looking at one is a step that all ranks take together, in the same order; it is whole at all of
    them then, and held nowhere but by who asked: going through `items` needs room for one.
    """

    def __init__(self, names: Sequence[str], fetch: Callable[[str], Tensor]) -> None:
        self._names, self._fetch = dict.fromkeys(names), fetch

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._fetch(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

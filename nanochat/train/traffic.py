"""What ranks hold, send and update.   in: shapes of weights, a number of ranks   out: exact bytes
who calls: scale.py   (pure)

The same cutting and dealing that training does (sharding.py, fsdp.py), on shapes alone: a test
compares every number here with what one, two and four processes hold and send.
Read next: scale.py (what follows from it), pieces.py and fsdp.py (what does it).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from nanochat.train.moments import moment_shape
from nanochat.train.muon import POLAR_EXPRESS
from nanochat.train.pieces import names_by_storage
from nanochat.train.recipes import role_of
from nanochat.train.sharding import Group, Share, deal, owners, rows_of

__all__ = [
    "Collective",
    "RankMemory",
    "Shapes",
    "memory_sharded",
    "memory_whole",
    "muon_flops",
    "traffic_sharded",
    "traffic_whole",
]

Shapes = Mapping[str, Sequence[int]]

WIDE_BYTES = 4  # masters, gradients and moments are float32
# What ranks agree on in a step, in bytes: how many targets, whether memory was enough, loss and
# norm, whether a signal has come; where a model is sharded, how many parts.
SMALL_WHOLE = (8, 1, 8, 8)
SMALL_SHARDED = (*SMALL_WHOLE, 8)


@dataclass(frozen=True, kw_only=True, slots=True)
class RankMemory:
    """What one rank holds between two steps, in bytes."""

    weights: int
    """What the model computes with; of a sharded model this rank's share, in float32."""
    gradients: int
    moments: int
    """With the float32 masters of what it owns, where the model computes in something narrower."""
    gathered: int = 0
    """Of a sharded model, at most: weights brought together, and their gradients before they are
    cut."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.moments + self.gathered


@dataclass(frozen=True, kw_only=True, slots=True)
class Collective:
    """One kind of message of a step."""

    kind: Literal["reduce", "broadcast", "all_reduce", "all_gather", "reduce_scatter", "all_to_all"]
    what: str
    num_calls: int
    payload_bytes: int
    """Of the whole tensors, over all calls; of all_to_all what one rank puts in, on average."""

    def sent_bytes(self, num_ranks: int) -> int:
        """What a rank sends, on average over all of them: around a ring everything but a rank's own
        part passes each link once, of an all_reduce twice."""
        times = 2 if self.kind == "all_reduce" else 1
        return times * self.payload_bytes * (num_ranks - 1) // num_ranks


def muon_flops(shapes: Shapes, num_ranks: int, *, is_sharded: bool) -> list[int]:
    """Of the products that orthogonalise the matrices of each rank, by rank.

    Source: polar_express in muon.py: two products of the Gram matrix with the matrix, one with
            itself.
    """
    flops = [0] * num_ranks
    for name, owner in _matrix_owners(shapes, num_ranks, is_sharded=is_sharded):
        short, long = sorted(shapes[name])
        flops[owner] += len(POLAR_EXPRESS) * (4 * short * short * long + 2 * short**3)
    return flops


# ----------------------------------------------------------------------- every rank has the model


def memory_whole(shapes: Shapes, num_ranks: int, compute_bytes: int) -> list[RankMemory]:
    """By rank; weights are computed with in `compute_bytes` each."""
    storages = list(names_by_storage(shapes))
    moments = [0] * num_ranks
    for share in _shares(shapes, num_ranks):
        names = storages[share.group]
        num_elements = share.span.size * _unit(shapes, names)
        moments[share.owner] += _moment_bytes(shapes, names[0], share.span.size)
        if _compute_bytes(names[0], compute_bytes) != WIDE_BYTES:
            moments[share.owner] += num_elements * WIDE_BYTES
    weights = sum(_size(shapes, name) * _compute_bytes(name, compute_bytes) for name in shapes)
    gradients = sum(_size(shapes, name) for name in shapes) * WIDE_BYTES
    return [RankMemory(weights=weights, gradients=gradients, moments=own) for own in moments]


def traffic_whole(shapes: Shapes, num_ranks: int, compute_bytes: int) -> list[Collective]:
    """What one step sends: gradients to the owners of their pieces, weights back."""
    if num_ranks == 1:
        return []
    storages = list(names_by_storage(shapes))
    num_pieces, sums, copies = 0, 0, 0
    for share in _shares(shapes, num_ranks):
        names = storages[share.group]
        num_elements = share.span.size * _unit(shapes, names)
        num_pieces += 1
        sums += num_elements * WIDE_BYTES
        copies += num_elements * _compute_bytes(names[0], compute_bytes)
    return [
        Collective(
            kind="reduce",
            what="gradients to their owners, while backward runs",
            num_calls=num_pieces,
            payload_bytes=sums,
        ),
        Collective(
            kind="broadcast",
            what="weights from their owners, while others are updated",
            num_calls=num_pieces,
            payload_bytes=copies,
        ),
        _small(SMALL_WHOLE),
    ]


def _shares(shapes: Shapes, num_ranks: int) -> list[Share]:
    groups = []
    for names in names_by_storage(shapes):
        is_matrix = role_of(names[0]) == "matrix"
        num_units = len(names) if is_matrix else shapes[names[0]][0]
        groups.append(Group(num_units, _unit(shapes, names), is_matrix))
    return deal(groups, num_ranks)


def _unit(shapes: Shapes, names: Sequence[str]) -> int:
    """Elements of a matrix, or of a row of a table."""
    shape = shapes[names[0]]
    return math.prod(shape if role_of(names[0]) == "matrix" else shape[1:])


def _moment_bytes(shapes: Shapes, name: str, num_units: int) -> int:
    """Of so many matrices, or rows of a table."""
    if role_of(name) != "matrix":
        return 2 * num_units * _unit(shapes, [name]) * WIDE_BYTES
    shape = tuple(shapes[name])
    each = sum(math.prod(moment_shape(name, which, shape)) for which in ("first", "second"))
    return num_units * each * WIDE_BYTES


# -------------------------------------------------------------------------- every rank has a share


def memory_sharded(shapes: Shapes, num_ranks: int, compute_bytes: int) -> list[RankMemory]:
    """By rank, of a model that fsdp.py has cut."""
    whole = _parts_together(shapes)
    largest = sorted((_elements(shapes, names) for names in whole[:-1]), reverse=True)[:2]
    at_once = _elements(shapes, whole[-1]) + sum(largest)
    matrices = list(_matrix_owners(shapes, num_ranks, is_sharded=True))
    found = []
    for rank in range(num_ranks):
        own = {name: _rows(shapes, name, rank, num_ranks) for name in shapes}
        elements = sum(rows * _row(shapes, name) for name, rows in own.items())
        moments = sum(
            _moment_bytes(shapes, name, rows)
            for name, rows in own.items()
            if role_of(name) != "matrix"
        )
        moments += sum(_moment_bytes(shapes, name, 1) for name, owner in matrices if owner == rank)
        found.append(
            RankMemory(
                weights=elements * WIDE_BYTES,
                gradients=elements * WIDE_BYTES,
                moments=moments,
                gathered=at_once * (compute_bytes + WIDE_BYTES),
            )
        )
    return found


def traffic_sharded(
    shapes: Shapes, num_ranks: int, compute_bytes: int, num_parts: int
) -> list[Collective]:
    """What one step sends whose rows are computed in so many parts."""
    if num_ranks == 1:
        return []
    together = _parts_together(shapes)
    padded = [
        sum(-(-shapes[name][0] // num_ranks) * num_ranks * _row(shapes, name) for name in names)
        for names in together
    ]
    # Those of a block are let go of after its forward pass, and come again for its backward pass.
    num_gathers = 2 * len(together) - 1
    gathered = 2 * sum(padded) - padded[-1]
    matrices = [name for name in shapes if role_of(name) == "matrix"]
    num_shapes = len({tuple(shapes[name]) for name in matrices})
    return [
        Collective(
            kind="all_gather",
            what="weights of a block, while the one before is computed",
            num_calls=num_parts * num_gathers,
            payload_bytes=num_parts * gathered * compute_bytes,
        ),
        Collective(
            kind="reduce_scatter",
            what="gradients of a block, while backward runs",
            num_calls=num_parts * len(together),
            payload_bytes=num_parts * sum(padded) * WIDE_BYTES,
        ),
        Collective(
            kind="all_to_all",
            what="gradients of matrices to their owners, directions back",
            num_calls=2 * num_shapes,
            payload_bytes=2 * _elements(shapes, matrices) * WIDE_BYTES // num_ranks,
        ),
        _small(SMALL_SHARDED),
    ]


def _small(sizes: Sequence[int]) -> Collective:
    return Collective(
        kind="all_reduce",
        what="a number or two",
        num_calls=len(sizes),
        payload_bytes=sum(sizes),
    )


def _parts_together(shapes: Shapes) -> list[list[str]]:
    """Names by what travels together; what stays together from the first block to the last comes
    last."""
    parts: dict[str, list[str]] = {}
    for name in shapes:
        match name.split("."):
            case ["value_embeddings" | "blocks" as kind, layer, *_]:
                parts.setdefault(f"{kind}.{layer}", []).append(name)
    inside = {name for names in parts.values() for name in names}
    return [*parts.values(), [name for name in shapes if name not in inside]]


def _matrix_owners(
    shapes: Shapes, num_ranks: int, *, is_sharded: bool
) -> Iterator[tuple[str, int]]:
    storages = list(names_by_storage(shapes))
    if not is_sharded:
        for share in _shares(shapes, num_ranks):
            if role_of(storages[share.group][0]) == "matrix":
                for name in storages[share.group][share.span.start : share.span.stop]:
                    yield name, share.owner
        return
    names = [name for stack in storages if role_of(stack[0]) == "matrix" for name in stack]
    costs = [_size(shapes, name) for name in names]
    yield from zip(names, owners(costs, [0] * num_ranks), strict=True)


def _rows(shapes: Shapes, name: str, rank: int, num_ranks: int) -> int:
    return rows_of(shapes[name][0], rank, num_ranks).size


def _row(shapes: Shapes, name: str) -> int:
    return math.prod(shapes[name][1:])


def _size(shapes: Shapes, name: str) -> int:
    return math.prod(shapes[name])


def _elements(shapes: Shapes, names: Sequence[str]) -> int:
    return sum(_size(shapes, name) for name in names)


def _compute_bytes(name: str, compute_bytes: int) -> int:
    """Scalars stay wide."""
    return WIDE_BYTES if role_of(name) in ("residual", "input", "smear") else compute_bytes

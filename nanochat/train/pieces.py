"""Where weights, gradients and moments lie.   in: a model's weights   out: storages, their pieces
who calls: optim.py

Read next: sharding.py (how long a piece is, and whose), optim.py (what is done with it).
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from nanochat.train.recipes import role_of
from nanochat.train.sharding import Group, Span, deal

__all__ = ["Piece", "Storage", "cut_pieces", "names_by_storage"]


class Storage:
    """Weights that lie together, with their gradients: one table, or matrices of one shape
    stacked."""

    def __init__(self, names: list[str], parameters: Mapping[str, Tensor]) -> None:
        self.names, self.role = names, role_of(names[0])
        self.is_matrix = self.role == "matrix"
        first = [parameters[name].detach() for name in names]
        self.masters = torch.stack(first) if self.is_matrix else first[0].clone()
        """Of all units; once narrowed only the owners keep theirs."""
        self.weights = self.masters
        """What the model computes with."""
        self.grads = torch.empty_like(self.masters)

    @property
    def is_narrow(self) -> bool:
        """Whether the model computes with copies."""
        return self.weights.dtype != self.grads.dtype

    def narrow(self, dtype: torch.dtype, *, is_shared: bool) -> None:
        """Matrices and tables are computed with in this dtype; scalars stay as they are."""
        if self.role not in ("residual", "input", "smear"):
            self.weights = self.masters.to(dtype)  # itself where that is its dtype
        self.is_given_up = self.is_narrow and is_shared

    def release(self) -> None:
        """Let go of all masters, where their owners have copies."""
        if self.is_given_up:
            self.masters = self.masters[:0].clone()

    def grads_by_name(self) -> Iterator[tuple[str, Tensor]]:
        """Each weight's gradient."""
        return self._by_name(self.grads)

    def weights_by_name(self) -> Iterator[tuple[str, Tensor]]:
        """Each weight as the model computes with it."""
        return self._by_name(self.weights)

    def masters_by_name(self) -> Iterator[tuple[str, Tensor]]:
        """Each weight in full precision."""
        return self._by_name(self.masters)

    def _by_name(self, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        parts = tensor.unbind() if self.is_matrix else [tensor]
        return zip(self.names, parts, strict=True)


class Piece:
    """Some units of a storage: what is summed, updated and given away at once."""

    def __init__(self, storage: Storage, span: Span) -> None:
        self.storage, self.span, self.owner = storage, span, 0
        self.role, self.is_matrix = storage.role, storage.is_matrix
        units = slice(span.start, span.stop)
        self.names = storage.names[units] if self.is_matrix else storage.names
        self.grads = storage.grads[units]
        self.weights = storage.weights[units]
        self.master: Tensor | None = None
        """The owner's alone."""
        self.first: Tensor | None = None
        self.second: Tensor | None = None

    def settle(self, rank: int) -> None:
        """Take what an owner has, once owners and dtypes are known."""
        units = slice(self.span.start, self.span.stop)
        self.weights = self.storage.weights[units]
        if self.owner != rank:
            return
        masters = self.storage.masters
        self.master = masters[units].clone() if self.storage.is_given_up else masters[units]
        if self.is_matrix:
            num, rows, columns = self.master.shape
            self.first = torch.zeros_like(self.master)
            shape = (num, rows, 1) if rows >= columns else (num, 1, columns)
            self.second = self.master.new_zeros(shape)

    def segments(self) -> Iterator[tuple[str, slice, int | slice]]:
        """Name, which of its rows, and where these are in a tensor laid out as the piece."""
        if not self.is_matrix:
            yield self.names[0], slice(self.span.start, self.span.stop), slice(None)
            return
        for index, name in enumerate(self.names):
            yield name, slice(None), index


def cut_pieces(storages: Sequence[Storage], num_ranks: int) -> list[Piece]:
    """All pieces, each with its owner."""
    groups = [
        Group(len(storage.grads), storage.grads[0].numel(), storage.is_matrix)
        for storage in storages
    ]
    pieces = []
    for share in deal(groups, num_ranks):
        piece = Piece(storages[share.group], share.span)
        piece.owner = share.owner
        pieces.append(piece)
    return pieces


def names_by_storage(shapes: Mapping[str, Sequence[int]]) -> Iterator[list[str]]:
    """Weights that lie together: tables and scalars each alone, matrices by shape."""
    by_shape: dict[tuple[int, ...], list[str]] = {}
    for name, shape in shapes.items():
        if role_of(name) == "matrix":
            by_shape.setdefault(tuple(shape), []).append(name)
        else:
            yield [name]
    yield from by_shape.values()

"""One epoch of a store -> its rows.   in: a store, a key   out: which pieces lie in the n-th row
who calls: stream.py

    the documents are shuffled by the key; that order is cut into groups
    the documents of a group are packed into rows, and these rows are shuffled
    row n is found by adding up the rows of the groups before it, counted once

Memory: a few group plans and one integer a group, whatever the size of the store.
Read next: packing.py (documents to rows), order.py (the shuffle), stream.py (epochs and batches).
"""

import bisect
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nanochat.batches.order import shuffled
from nanochat.batches.packing import Layout, Packed, Piece, pack
from nanochat.batches.store import Store

__all__ = ["PackingReport", "Rows", "packing_version"]

GROUP_DOCUMENTS = 1024  # as many as wait in the reference's buffer
NUM_CACHED_GROUPS = 4
VERSION = 1  # raised when the same settings would give other batches

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class PackingReport:
    """What one epoch does with the store's tokens; `str` of it is a line for the plan.

    tokens of the store + added_bos = placed + cropped + skipped, and placed + padded = all rows.
    """

    num_rows: int = 0
    placed_tokens: int = 0
    added_bos_tokens: int = 0
    """Put before the pieces that go on with a document."""
    cropped_tokens: int = 0
    padded_tokens: int = 0
    skipped_tokens: int = 0
    cropped_documents: int = 0
    skipped_documents: int = 0
    """Conversations whose first trained token is past the end of a row, and their tokens."""

    def __str__(self) -> str:
        total = max(self.placed_tokens + self.cropped_tokens, 1)
        return (
            f"{self.num_rows:,} rows of {self.placed_tokens:,} tokens; "
            f"{self.cropped_tokens:,} tokens ({self.cropped_tokens / total:.1%}) cropped, "
            f"of {self.cropped_documents:,} documents; {self.padded_tokens:,} padded; "
            f"{self.skipped_documents:,} documents skipped"
        )


def packing_version() -> list[int]:
    """What decides the rows beside the store and the settings, for fingerprints."""
    return [VERSION, GROUP_DOCUMENTS]


class _Group(NamedTuple):
    documents: Indices
    """Which documents of the store the pieces number."""
    packed: Packed
    row_order: Indices
    skipped_documents: int
    skipped_tokens: int


class Rows:
    """The rows of one epoch.  For one thread at a time: it remembers plans.

    `key` chooses the order; `is_masked`: only what the store's mask says is trained.
    """

    def __init__(
        self,
        store: Store,
        context_len: int,
        layout: Layout,
        *,
        key: Sequence[object],
        is_masked: bool = False,
    ) -> None:
        self.store = store
        """What the pieces are of."""
        self._context_len = context_len
        self._layout = layout
        self._key = tuple(key)
        self._is_masked = is_masked
        self._num_groups = max(1, round(store.num_documents / GROUP_DOCUMENTS))
        self._groups: OrderedDict[int, _Group] = OrderedDict()
        self._ends: list[int] = []  # rows up to the end of each group, as far as they are counted

    @property
    def num_rows(self) -> int:
        """Rows of the epoch.

        Cost: every group is packed once to count them, about a second for two million documents.
        """
        return self._counted(None)[-1]

    def row(self, place: int) -> list[Piece] | None:
        """The pieces of a row, numbered as in the store; None past the end."""
        ends = self._counted(place)
        if ends[-1] <= place:
            return None
        index = bisect.bisect_right(ends, place)
        group = self._group(index)
        place -= ends[index - 1] if index else 0
        pieces = group.packed.rows[int(group.row_order[place])]
        return [piece._replace(document=int(group.documents[piece.document])) for piece in pieces]

    def report(self) -> PackingReport:
        """What happens to the tokens."""
        total: Counter[str] = Counter()
        for index in range(self._num_groups):
            group = self._group(index)
            total["num_rows"] += len(group.packed.rows)
            total["placed_tokens"] += group.packed.placed_tokens
            total["added_bos_tokens"] += group.packed.added_bos_tokens
            total["cropped_tokens"] += group.packed.cropped_tokens
            total["padded_tokens"] += group.packed.padded_tokens
            total["skipped_tokens"] += group.skipped_tokens
            total["cropped_documents"] += group.packed.cropped_documents
            total["skipped_documents"] += group.skipped_documents
        return PackingReport(**total)

    def _counted(self, place: int | None) -> list[int]:
        """Rows up to the end of each group, counted until one ends past `place` (None: all)."""
        ends = self._ends
        while len(ends) < self._num_groups and (place is None or not ends or ends[-1] <= place):
            num_rows = len(self._group(len(ends)).packed.rows)
            ends.append((ends[-1] if ends else 0) + num_rows)
        return ends

    def _group(self, index: int) -> _Group:
        if index in self._groups:
            self._groups.move_to_end(index)
            return self._groups[index]
        self._groups[index] = self._planned(index)
        while len(self._groups) > NUM_CACHED_GROUPS:
            self._groups.popitem(last=False)
        return self._groups[index]

    def _planned(self, index: int) -> _Group:
        size = self.store.num_documents
        places = np.arange(size * index // self._num_groups, size * (index + 1) // self._num_groups)
        documents = shuffled(places, size, ("documents", *self._key))
        lengths = self.store.lengths(documents)
        is_usable = self._is_usable(documents, lengths)
        packed = pack(lengths[is_usable], self._context_len + 1, self._layout)
        num_rows = len(packed.rows)
        order = shuffled(np.arange(num_rows), max(num_rows, 1), ("rows", *self._key, index))
        return _Group(
            documents=documents[is_usable],
            packed=packed,
            row_order=order,
            skipped_documents=int((~is_usable).sum()),
            skipped_tokens=int(lengths[~is_usable].sum()),
        )

    def _is_usable(self, documents: Indices, lengths: Indices) -> npt.NDArray[np.bool_]:
        """False for a document that is trained nowhere once it is cut to a row."""
        is_usable = np.ones(len(documents), bool)
        if not self._is_masked:
            return is_usable
        row_tokens = self._context_len + 1
        for place in np.flatnonzero(lengths > row_tokens):
            mask = self.store.mask(int(documents[place]), 1, row_tokens)
            is_usable[place] = mask is None or bool(mask.any())
        return is_usable

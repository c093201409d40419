"""A store -> the n-th batch.   in: TokenStore or Mixture, seed, n   out: Batch   who calls: train,
evals, cli

The n-th batch is a pure function of (seed, the store's fingerprint, n): stopping and resuming needs
one integer, and the number of ranks changes nothing but who computes which row.  How, without
storing an order or a plan:

    epoch e  the documents are shuffled by (seed, e); that order is cut into groups
    group g  its documents are packed into rows, and the rows are shuffled
    row i    is found by adding up the rows of the groups before it, counted once
    batch n  has rows n * num_rows to (n + 1) * num_rows - 1; a rank takes every world_size-th

Memory: a few group plans and one integer a group, whatever the size of the corpus.
Read next: packing.py (documents to rows), store.py (what is read), train/loop.py (who asks).
"""

import bisect
import hashlib
import json
import queue
import threading
from collections import Counter, OrderedDict
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from nanochat.batches.batch import Batch, batch_from_rows
from nanochat.batches.order import shuffled
from nanochat.batches.packing import Layout, Packed, Piece, pack
from nanochat.batches.store import Store
from nanochat.common.errors import ConfigError, DataError

__all__ = [
    "ConversationStream",
    "PackedStream",
    "PackingReport",
    "prefetch",
    "validation_batches",
]

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


class _Group(NamedTuple):
    documents: Indices
    """Which documents of the store the pieces number."""
    packed: Packed
    row_order: Indices
    skipped_documents: int
    skipped_tokens: int


class _RowStream:
    """Rows by number; what both streams share.  For one thread at a time: it remembers plans."""

    def __init__(
        self,
        store: Store,
        context_len: int,
        layout: Layout,
        *,
        seed: int,
        is_masked: bool,
        num_epochs: int | None,
    ) -> None:
        if context_len < 1:
            raise ConfigError(f"context_len is {context_len}, expected at least 1")
        if num_epochs is not None and num_epochs < 1:
            raise ConfigError(
                f"num_epochs is {num_epochs}, expected at least 1, or none for no end"
            )
        self._store = store
        self._context_len = context_len
        self._layout = layout
        self._seed = seed
        self._num_epochs = num_epochs
        self._is_masked = is_masked
        self._form: list[str | int] = [layout, is_masked]
        self._num_groups = max(1, round(store.num_documents / GROUP_DOCUMENTS))
        self._groups: OrderedDict[tuple[int, int], _Group] = OrderedDict()
        self._epoch_starts = [0]  # the first row of each epoch that has been reached
        # Of one epoch: its number, and the rows up to the end of each group.
        self._group_ends: tuple[int, list[int]] = (0, [])

    @property
    def fingerprint(self) -> str:
        """What decides every batch but its number: 64 digits for a checkpoint to remember.

        The number of epochs is not part of it: more of them go on with the same batches.
        """
        settings = [
            VERSION,
            GROUP_DOCUMENTS,
            self._store.fingerprint,
            self._context_len,
            self._seed,
        ]
        return hashlib.sha256(json.dumps([*settings, *self._form]).encode()).hexdigest()

    @property
    def num_rows_per_epoch(self) -> int:
        """Rows of the first epoch; packed epochs differ from one another by a few rows.

        Cost: every group is packed once to count them, about a second for two million documents.
        """
        return self._epoch_start(1)

    def num_batches(self, num_rows: int) -> int:
        """Batches of `num_rows` rows that hold all epochs, the last one filled up with empty rows.

        Raises: ConfigError when the stream has no end.
        """
        if self._num_epochs is None:
            raise ConfigError("the stream has no end: give num_epochs to count its batches")
        return -(-self._epoch_start(self._num_epochs) // num_rows)

    def report(self, epoch: int = 0) -> PackingReport:
        """What happens to the tokens in one epoch."""
        total: Counter[str] = Counter()
        for index in range(self._num_groups):
            group = self._group(epoch, index)
            total["num_rows"] += len(group.packed.rows)
            total["placed_tokens"] += group.packed.placed_tokens
            total["added_bos_tokens"] += group.packed.added_bos_tokens
            total["cropped_tokens"] += group.packed.cropped_tokens
            total["padded_tokens"] += group.packed.padded_tokens
            total["skipped_tokens"] += group.skipped_tokens
            total["cropped_documents"] += group.packed.cropped_documents
            total["skipped_documents"] += group.skipped_documents
        return PackingReport(**total)

    # ----------------------------------------------------------------------- rows by number

    def _row(self, index: int) -> list[Piece]:
        """The pieces of a row, numbered as in the store; none past the last epoch."""
        epoch = bisect.bisect_right(self._epoch_starts, index) - 1
        while self._num_epochs is None or epoch < self._num_epochs:
            place = index - self._epoch_start(epoch)
            ends = self._ends(epoch, place)
            if ends[-1] > place:
                return self._row_at(epoch, bisect.bisect_right(ends, place), place)
            epoch += 1
        return []

    def _row_at(self, epoch: int, group_index: int, place: int) -> list[Piece]:
        group = self._group(epoch, group_index)
        place -= self._ends(epoch, place)[group_index - 1] if group_index else 0
        pieces = group.packed.rows[int(group.row_order[place])]
        return [piece._replace(document=int(group.documents[piece.document])) for piece in pieces]

    def _epoch_start(self, epoch: int) -> int:
        """The number of the first row of an epoch."""
        while len(self._epoch_starts) <= epoch:
            last = len(self._epoch_starts) - 1
            num_rows = self._ends(last, None)[-1]
            if not num_rows:
                raise DataError(
                    f"no conversation has a trained token within {self._context_len} tokens: "
                    "give a longer context, or shorter conversations"
                )
            self._epoch_starts.append(self._epoch_starts[-1] + num_rows)
        return self._epoch_starts[epoch]

    def _ends(self, epoch: int, place: int | None) -> list[int]:
        """Rows up to the end of each group, counted until one ends past `place` (None: all)."""
        if self._group_ends[0] != epoch:
            self._group_ends = (epoch, [])
        ends = self._group_ends[1]
        while len(ends) < self._num_groups and (place is None or not ends or ends[-1] <= place):
            num_rows = len(self._group(epoch, len(ends)).packed.rows)
            ends.append((ends[-1] if ends else 0) + num_rows)
        return ends

    def _group(self, epoch: int, group: int) -> _Group:
        key = (epoch, group)
        if key in self._groups:
            self._groups.move_to_end(key)
            return self._groups[key]
        self._groups[key] = self._planned(epoch, group)
        while len(self._groups) > NUM_CACHED_GROUPS:
            self._groups.popitem(last=False)
        return self._groups[key]

    def _planned(self, epoch: int, group: int) -> _Group:
        size = self._store.num_documents
        places = np.arange(size * group // self._num_groups, size * (group + 1) // self._num_groups)
        documents = shuffled(places, size, ("documents", self._seed, epoch))
        lengths = self._store.lengths(documents)
        is_usable = self._is_usable(documents, lengths)
        packed = pack(lengths[is_usable], self._context_len + 1, self._layout)
        num_rows = len(packed.rows)
        order = shuffled(np.arange(num_rows), max(num_rows, 1), ("rows", self._seed, epoch, group))
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
            mask = self._store.mask(int(documents[place]), 1, row_tokens)
            is_usable[place] = mask is None or bool(mask.any())
        return is_usable

    # ----------------------------------------------------------------------- rows to tensors

    def _filled(self, rows: list[list[Piece]], width: int) -> Batch:
        """Rows of `width` + 1 tokens, padded with <|bos|>, which is not trained."""
        tokens = np.full((len(rows), width + 1), self._store.bos, np.int64)
        is_trained = np.zeros((len(rows), width + 1), bool)
        for row, pieces in enumerate(rows):
            place = 0
            for document, start, length in pieces:
                end = place + length
                is_trained[row, place:end] = True
                if start:  # a piece that goes on with a document: its <|bos|> is there already
                    place += 1
                stop = start + end - place
                tokens[row, place:end] = self._store.tokens(document, start, stop)
                mask = self._store.mask(document, start, stop) if self._is_masked else None
                if mask is not None:
                    is_trained[row, place:end] = mask
                place = end
        return batch_from_rows(tokens, is_trained)

    def _rank_rows(self, index: int, num_rows: int, rank: int, world_size: int) -> range:
        if num_rows < 1 or not 0 <= rank < world_size or index < 0:
            raise ConfigError(
                f"batch {index} of {num_rows} rows for rank {rank} of {world_size}: expected "
                "a number of at least 0, at least one row, and a rank below the world size"
            )
        return range(index * num_rows + rank, (index + 1) * num_rows, world_size)


class PackedStream(_RowStream):
    """Documents in full rows, every token trained.

    Example: PackedStream(store, 512, seed=1).batch(0, 32).inputs_BT has shape 32, 512
    """

    def __init__(
        self,
        store: Store,
        context_len: int,
        *,
        seed: int = 0,
        remainders: Literal["drop", "reuse"] = "reuse",
        num_epochs: int | None = None,
    ) -> None:
        super().__init__(
            store, context_len, remainders, seed=seed, is_masked=False, num_epochs=num_epochs
        )

    def batch(self, index: int, num_rows: int, rank: int = 0, world_size: int = 1) -> Batch:
        """The rank's rows of the batch with this number.

        Shapes: ceil((num_rows - rank) / world_size), context_len.
        """
        rows = [self._row(row) for row in self._rank_rows(index, num_rows, rank, world_size)]
        return self._filled(rows, self._context_len)


class ConversationStream(_RowStream):
    """Conversations; trained are the tokens that the store's mask says, or all.

    packed: full rows, as long as the context, for mid-training.
    padded: one conversation a row, longest first, as wide as the longest of the rank's rows rounded
    up to `multiple`.
    """

    def __init__(
        self,
        store: Store,
        context_len: int,
        *,
        seed: int = 0,
        layout: Literal["packed", "padded"] = "packed",
        multiple: int = 32,
        is_masked: bool = True,
        num_epochs: int | None = None,
    ) -> None:
        super().__init__(
            store,
            context_len,
            "pack" if layout == "packed" else "pad",
            seed=seed,
            is_masked=is_masked,
            num_epochs=num_epochs,
        )
        if multiple < 1:
            raise ConfigError(f"multiple is {multiple}, expected at least 1")
        self._multiple = multiple
        self._form += [multiple] if layout == "padded" else []

    def batch(self, index: int, num_rows: int, rank: int = 0, world_size: int = 1) -> Batch:
        """The rank's rows of the batch with this number.

        Shapes: ceil((num_rows - rank) / world_size), and context_len or less where padded.
        """
        numbers = self._rank_rows(index, num_rows, rank, world_size)
        if self._layout == "pack":
            rows = [self._row(row) for row in numbers]
            return self._filled(rows, self._context_len)
        # The order within a batch does not change its gradient: sorted, its parts need less padding
        # and the ranks have about as much to do.
        rows = [self._row(row) for row in range(index * num_rows, (index + 1) * num_rows)]
        rows.sort(key=_row_length, reverse=True)
        rows = rows[rank::world_size]
        longest = max((_row_length(row) for row in rows), default=0)
        width = -(-max(longest - 1, 1) // self._multiple) * self._multiple
        return self._filled(rows, min(width, self._context_len))


def _row_length(row: list[Piece]) -> int:
    return sum(piece.length for piece in row)


def validation_batches(
    store: Store,
    context_len: int,
    num_tokens: int,
    num_rows: int,
    *,
    remainders: Literal["drop", "reuse"] = "drop",
) -> Iterator[Batch]:
    """The same batches every time, from all over the store: `num_tokens` inputs or all there are.

    Rows are those of karpathy/nanochat's loader, so that bits per byte compare with its own; with
    `reuse` they hold whole texts (a model trained on dropped remainders reads 0.1 worse there).
    Of conversations only what the mask says has targets.  The last batch is filled up with rows in
    which nothing has.
    """
    stream: PackedStream | ConversationStream
    if store.mask(0, 0, 1) is None:
        stream = PackedStream(store, context_len, remainders=remainders, num_epochs=1)
    else:
        stream = ConversationStream(store, context_len, num_epochs=1)
    for index in range(max(1, num_tokens // (context_len * num_rows))):
        batch = stream.batch(index, num_rows)
        if not batch.num_targets:
            return
        yield batch


def prefetch(batches: Iterator[Batch], depth: int = 2) -> Generator[Batch]:
    """The same batches in the same order, made ahead by a thread, at most `depth` of them."""
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(depth)
    is_closed = threading.Event()

    def put(item: Batch | BaseException | None) -> None:
        while not is_closed.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for batch in batches:
                put(batch)
                if is_closed.is_set():
                    return
            put(None)
        except BaseException as error:  # raised again where the batches are used
            put(error)

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        is_closed.set()
        thread.join()

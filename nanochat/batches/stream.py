"""A store -> the n-th batch.   in: stores, Mixture or Chapters, seed, n   out: Batch
who calls: train, evals, cli

The n-th batch is a pure function of (seed, the fingerprint of the text, n): stopping and resuming
needs one integer, and the number of ranks changes nothing but who computes which row.  How, without
storing an order or a plan:

    part p   is an epoch of a store, or a chapter of an epoch of a large text (chapters.py)
    row i    is found by adding up the rows of the parts before it, counted once
    batch n  has rows n * num_rows to (n + 1) * num_rows - 1; a rank takes every world_size-th

Memory: a few plans and one integer a part, whatever the size of the corpus.
Read next: rows.py (the rows of a part), mixing.py (several streams), train/loop.py (who asks).
"""

import bisect
import hashlib
import json
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Literal, NamedTuple

import numpy as np

from nanochat.batches.batch import Batch, batch_from_rows
from nanochat.batches.chapters import Chapters, Section
from nanochat.batches.mixture import Mixture
from nanochat.batches.packing import Layout, Piece
from nanochat.batches.rows import PackingReport, Rows, packing_version
from nanochat.batches.store import Store
from nanochat.common.errors import ConfigError, DataError

__all__ = [
    "ConversationStream",
    "PackedStream",
    "Row",
    "batch_of",
    "rank_rows",
    "validation_batches",
]

NUM_CACHED_PARTS = 2


class Row(NamedTuple):
    """What lies in a row, and what the pieces are of."""

    store: Store
    pieces: list[Piece]

    @property
    def num_tokens(self) -> int:
        """Places of the row that are filled."""
        return sum(piece.length for piece in self.pieces)


class _RowStream:
    """Rows by number; what both streams share.

    Counting and reporting is for one thread at a time; rows may be asked for by several.
    """

    def __init__(
        self,
        store: Store | Chapters,
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
        self._parts: OrderedDict[int, Rows] = OrderedDict()
        self._starts = [0]  # the first row of each part that has been reached
        self._lock = threading.Lock()  # batches are made ahead, while others ask what they have

    @property
    def context_len(self) -> int:
        """Tokens of a row that are read."""
        return self._context_len

    @property
    def bos(self) -> int:
        """The token every document begins with, and what rows are padded with."""
        return self._store.bos

    @property
    def fingerprint(self) -> str:
        """What decides every batch but its number: 64 digits for a checkpoint to remember.

        The number of epochs is not part of it: more of them go on with the same batches.
        """
        settings = [*packing_version(), self._store.fingerprint, self._context_len, self._seed]
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
        for part in range(self._first_part(epoch), self._first_part(epoch + 1)):
            if (rows := self._rows(part)) is not None:
                total.update(asdict(rows.report()))
        return PackingReport(**total)

    def row(self, index: int) -> Row | None:
        """The row with this number; None past the last epoch."""
        with self._lock:
            part = bisect.bisect_right(self._starts, index) - 1
            while (rows := self._rows(part)) is not None:
                pieces = rows.row(index - self._start(part))
                if pieces is not None:
                    return Row(rows.store, pieces)
                part += 1
        return None

    def tokens_by_source(self, index: int, num_rows: int) -> dict[str, int]:
        """What the n-th batch has of each source of a mixture; nothing where the store is none.
        No token is read for it."""
        if not isinstance(self._store, Mixture):
            return {}
        rows = [self.row(row) for row in range(index * num_rows, (index + 1) * num_rows)]
        pieces = [piece for row in rows if row is not None for piece in row.pieces]
        return self._store.tokens_by_source(
            np.array([piece.document for piece in pieces], np.int64),
            np.array([piece.length for piece in pieces], np.int64),
        )

    def _section(self, part: int) -> Section | None:
        """What is read in a part; None past the last epoch."""
        if isinstance(self._store, Chapters):
            section = self._store.section(part, self._seed)
        else:
            section = Section(epoch=part, store=self._store, key=(self._seed, part))
        is_past = self._num_epochs is not None and section.epoch >= self._num_epochs
        return None if is_past else section

    def _rows(self, part: int) -> Rows | None:
        if part in self._parts:
            self._parts.move_to_end(part)
            return self._parts[part]
        if (section := self._section(part)) is None:
            return None
        self._parts[part] = Rows(
            section.store,
            self._context_len,
            self._layout,
            key=section.key,
            is_masked=self._is_masked,
        )
        while len(self._parts) > NUM_CACHED_PARTS:
            self._parts.popitem(last=False)
        return self._parts[part]

    def _start(self, part: int) -> int:
        """The number of the first row of a part."""
        while len(self._starts) <= part:
            rows = self._rows(len(self._starts) - 1)
            assert rows is not None, f"part {part} begins behind the last epoch"
            if not rows.num_rows:
                raise DataError(
                    f"no conversation has a trained token within {self._context_len} tokens: "
                    "give a longer context, or shorter conversations"
                )
            self._starts.append(self._starts[-1] + rows.num_rows)
        return self._starts[part]

    def _first_part(self, epoch: int) -> int:
        """The first part of an epoch, or the one behind the last epoch."""
        if not isinstance(self._store, Chapters):
            return epoch if self._num_epochs is None else min(epoch, self._num_epochs)
        part = 0
        while (section := self._section(part)) is not None and section.epoch < epoch:
            part += 1
        return part

    def _epoch_start(self, epoch: int) -> int:
        return self._start(self._first_part(epoch))


def batch_of(rows: Sequence[Row | None], width: int, bos: int, *, is_masked: bool = False) -> Batch:
    """Rows of `width` + 1 tokens, padded with <|bos|>, which is not trained.

    Shapes: len(rows), width.
    """
    tokens = np.full((len(rows), width + 1), bos, np.int64)
    is_trained = np.zeros((len(rows), width + 1), bool)
    for number, row in enumerate(rows):
        place = 0
        for document, start, length in row.pieces if row is not None else ():
            assert row is not None
            end = place + length
            is_trained[number, place:end] = True
            if start:  # a piece that goes on with a document: its <|bos|> is there already
                place += 1
            stop = start + end - place
            tokens[number, place:end] = row.store.tokens(document, start, stop)
            mask = row.store.mask(document, start, stop) if is_masked else None
            if mask is not None:
                is_trained[number, place:end] = mask
            place = end
    return batch_from_rows(tokens, is_trained)


def rank_rows(index: int, num_rows: int, rank: int, world_size: int) -> range:
    """The numbers of a rank's rows of a batch.

    Raises: ConfigError for what is no batch, or no rank.
    """
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
        store: Store | Chapters,
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
        rows = [self.row(row) for row in rank_rows(index, num_rows, rank, world_size)]
        return batch_of(rows, self._context_len, self.bos)


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
        numbers = rank_rows(index, num_rows, rank, world_size)
        if self._layout == "pack":
            rows = [self.row(row) for row in numbers]
            return self._filled(rows, self._context_len)
        # The order within a batch does not change its gradient: sorted, its parts need less padding
        # and the ranks have about as much to do.
        rows = [self.row(row) for row in range(index * num_rows, (index + 1) * num_rows)]
        rows.sort(key=_row_length, reverse=True)
        rows = rows[rank::world_size]
        longest = max(map(_row_length, rows), default=0)
        width = -(-max(longest - 1, 1) // self._multiple) * self._multiple
        return self._filled(rows, min(width, self._context_len))

    def _filled(self, rows: Sequence[Row | None], width: int) -> Batch:
        return batch_of(rows, width, self.bos, is_masked=self._is_masked)


def _row_length(row: Row | None) -> int:
    return row.num_tokens if row is not None else 0


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

"""Lengths -> full rows.   in: the lengths of waiting documents   out: Packed: which piece lies in
which row   who calls: stream

Every row begins with a document's first token, <|bos|>, and all but a last few are full.  Rows are
filled by best fit: again and again the longest waiting document that still fits.  What happens when
none fits is the layout:

    drop   documents: the shortest waiting one is cropped to fill the row and its rest is lost, as
           in karpathy/nanochat (nanochat/dataloader.py at 92d63d4).  It is counted, never hidden.
    reuse  documents: the longest waiting one is cropped, and its rest, with a <|bos|> of its own,
           waits again.  Nothing is lost.  The longest, so that short documents stay whole.
    pack   conversations: the row is closed and padded.  What is longer than a row is cut to it.
    pad    conversations: one in each row, cut to the row.

Only lengths are looked at, so this is exact, fast and easy to check: tests/twins/packing.py does
the same by brute force.
Read next: stream.py (who lays the tokens where this says).
"""

import heapq
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from nanochat.common.errors import ConfigError

__all__ = ["Layout", "Packed", "Piece", "pack"]

Layout = Literal["drop", "reuse", "pack", "pad"]


class Piece(NamedTuple):
    """A stretch of one document in a row."""

    document: int
    """Which: its index in the lengths that were packed."""
    start: int
    """The document's token it goes on from.  More than 0: a <|bos|> is put before it."""
    length: int
    """Tokens in the row, that <|bos|> included."""


class Packed(NamedTuple):
    """Rows of pieces, and where every token went.

    lengths + added_bos = placed + cropped, and placed + padded = rows * tokens of a row.
    """

    rows: list[list[Piece]]
    placed_tokens: int
    added_bos_tokens: int
    cropped_tokens: int
    padded_tokens: int
    cropped_documents: int
    """Documents of which a part was lost."""


def pack(lengths: Sequence[int] | npt.NDArray[np.int64], row_tokens: int, layout: Layout) -> Packed:
    """All documents in rows of `row_tokens` (context_len + 1) tokens; pure, about a microsecond a
    piece.

    Raises: ConfigError for a layout that does not exist.
    """
    if layout not in get_args(Layout):
        raise ConfigError(f"layout is {layout!r}, expected one of {', '.join(get_args(Layout))}")
    sizes = [int(length) for length in lengths]
    assert row_tokens > 1 and all(size > 0 for size in sizes), (
        f"rows of {row_tokens}, empty document"
    )
    fill: dict[Layout, Callable[[list[int], int], list[list[Piece]]]] = {
        "drop": _fill_dropping,
        "reuse": _fill_reusing,
        "pack": _fill_whole,
        "pad": _fill_single,
    }
    return _accounted(fill[layout](sizes, row_tokens), sizes, row_tokens)


def _fill_dropping(sizes: list[int], row_tokens: int) -> list[list[Piece]]:
    waiting = _Waiting(row_tokens, is_longest_first=False)
    for document, size in enumerate(sizes):
        waiting.add(Piece(document, 0, size))
    rows: list[list[Piece]] = []
    while waiting:
        row, space = [], row_tokens
        while space and waiting:
            piece = waiting.pop_fitting(space)
            if piece is None:
                piece = waiting.pop_shortest()._replace(length=space)
            row.append(piece)
            space -= piece.length
        rows.append(row)
    return rows


def _fill_reusing(sizes: list[int], row_tokens: int) -> list[list[Piece]]:
    waiting = _Waiting(row_tokens, is_longest_first=True)
    for document, size in enumerate(sizes):
        waiting.add(Piece(document, 0, size))
    rows: list[list[Piece]] = []
    while waiting:
        row, space = [], row_tokens
        while space and waiting:
            piece = waiting.pop_fitting(space)
            if piece is None:
                whole = waiting.pop_longest()
                piece = whole._replace(length=space)
                waiting.add(_rest(whole, space))
            row.append(piece)
            space -= piece.length
        rows.append(row)
    return rows


def _fill_whole(sizes: list[int], row_tokens: int) -> list[list[Piece]]:
    waiting = _Waiting(row_tokens, is_longest_first=False)
    for document, size in enumerate(sizes):
        waiting.add(Piece(document, 0, min(size, row_tokens)))
    rows: list[list[Piece]] = []
    while waiting:
        row, space = [], row_tokens
        while space and (piece := waiting.pop_fitting(space)) is not None:
            row.append(piece)
            space -= piece.length
        rows.append(row)
    return rows


def _fill_single(sizes: list[int], row_tokens: int) -> list[list[Piece]]:
    return [[Piece(document, 0, min(size, row_tokens))] for document, size in enumerate(sizes)]


def _rest(piece: Piece, placed: int) -> Piece:
    """What is left of a piece after its first `placed` tokens, with a <|bos|> of its own."""
    added = 1 if piece.start else 0
    return Piece(piece.document, piece.start + placed - added, piece.length - placed + 1)


def _accounted(rows: list[list[Piece]], sizes: list[int], row_tokens: int) -> Packed:
    pieces = [piece for row in rows for piece in row]
    placed = sum(piece.length for piece in pieces)
    added = sum(1 for piece in pieces if piece.start)
    taken = [0] * len(sizes)
    for piece in pieces:
        taken[piece.document] += piece.length - (1 if piece.start else 0)
    lost = [size - have for size, have in zip(sizes, taken, strict=True)]
    return Packed(
        rows=rows,
        placed_tokens=placed,
        added_bos_tokens=added,
        cropped_tokens=sum(lost),
        padded_tokens=len(rows) * row_tokens - placed,
        cropped_documents=sum(1 for tokens in lost if tokens),
    )


class _Waiting:
    """Waiting pieces by length; equal ones leave in the order they came.

    Lengths that fit a row have a queue each, and a set bit in one large integer: the longest that
    fits is its highest bit below a mask, found in row_tokens / 64 machine steps (30 at 2,048: a
    tenth of a microsecond). The others wait in a heap, from which they are only ever taken at one
    end.
    """

    def __init__(self, row_tokens: int, *, is_longest_first: bool) -> None:
        self._row_tokens = row_tokens
        self._sign = -1 if is_longest_first else 1
        self._queues: defaultdict[int, deque[Piece]] = defaultdict(deque)
        self._present = 0
        self._long: list[tuple[int, int, Piece]] = []
        self._num_added = 0

    def __bool__(self) -> bool:
        return bool(self._present or self._long)

    def add(self, piece: Piece) -> None:
        if piece.length <= self._row_tokens:
            self._queues[piece.length].append(piece)
            self._present |= 1 << piece.length
        else:
            heapq.heappush(self._long, (self._sign * piece.length, self._num_added, piece))
        self._num_added += 1

    def pop_fitting(self, space: int) -> Piece | None:
        """The longest piece of at most `space` tokens."""
        length = (self._present & ((2 << space) - 1)).bit_length() - 1
        return self._pop(length) if length > 0 else None

    def pop_shortest(self) -> Piece:
        if not self._present:
            return heapq.heappop(self._long)[2]
        return self._pop((self._present & -self._present).bit_length() - 1)

    def pop_longest(self) -> Piece:
        if self._long:
            return heapq.heappop(self._long)[2]
        return self._pop(self._present.bit_length() - 1)

    def _pop(self, length: int) -> Piece:
        queue = self._queues[length]
        piece = queue.popleft()
        if not queue:
            self._present ^= 1 << length
        return piece

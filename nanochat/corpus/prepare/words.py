"""Texts -> their words as numbers.   in: clean texts   out: Words: a 64-bit hash of each
who calls: near.py, contamination.py, batches/prepare_piece.py

A word is a run of letters and digits; A to Z are lowered; all other ASCII parts words (don't is
two), and so do the signs of Latin-1 and of Unicode's block 2000 to 2FFF: dashes, quotation marks,
arrows, boxes.  A Chinese, Japanese or Korean character is a word of its own, since such scripts
have few blanks.  Of a word beyond 64 bytes the first 64 and its length count.  Everything is
arrays over some hundred texts at a time.
Read next: near.py (5 words together), contamination.py (13 words together).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Hashes", "Words", "mixed", "words_of"]

Hashes = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]

_SPACE = 0x20
_FOLDED = bytes(
    code + 32 if 65 <= code <= 90 else code if code >= 0x80 or chr(code).isalnum() else _SPACE
    for code in range(256)
)
# First bytes, in UTF-8, of signs that part words, and how many bytes each has: U+0080 to U+00BF,
# U+2000 to U+2FFF.
_SIGNS = ((0xC2, 2), (0xE2, 3))
_WIDE_FIRST, _WIDE_LAST = 0xE3, 0xED  # first bytes of U+3000 to U+DFFF
_MOST_WORD_BYTES = 64
# Bytes 0 .. n-1 of a little-endian number.
_MASKS = np.array([(1 << (8 * count)) - 1 for count in range(9)], np.uint64)


@dataclass(frozen=True, slots=True)
class Words:
    """The words of several texts, one text after another."""

    hashes: Hashes
    ends: Indices
    """Where each text's words end."""

    @property
    def num_texts(self) -> int:
        """How many texts these are."""
        return len(self.ends)

    @property
    def starts(self) -> Indices:
        """Where each text's words begin."""
        return np.concatenate([np.zeros(1, np.int64), self.ends[:-1]])

    def rows(self, size: int) -> Indices:
        """For each place where `size` words of one text begin, its text; -1 for other places."""
        found = np.repeat(np.arange(self.num_texts), self.ends - self.starts)
        last = np.repeat(self.ends, self.ends - self.starts) - size
        return np.where(np.arange(len(found)) <= last, found, -1)

    def owners(self, places: Indices, size: int) -> Indices:
        """The same for some places."""
        found = np.searchsorted(self.ends, places, side="right")
        return np.where(places + size <= self.ends[found], found, -1)

    def runs(self, size: int) -> Hashes:
        """A hash of the `size` words that begin at each place, whatever text they are of.

        Places too near the end for so many words are left out: size - 1 fewer than words.
        """
        return _runs(self.hashes, size)


def words_of(texts: Sequence[bytes]) -> Words:
    """The words of UTF-8 texts."""
    ends = np.cumsum([len(text) + 1 for text in texts], dtype=np.int64)
    joined = b" " + b" ".join(texts) + b" " * (_MOST_WORD_BYTES + 8)
    data = np.frombuffer(joined.translate(_FOLDED), np.uint8)
    if not joined.isascii():
        data = data.copy()
        for first, size in _SIGNS:
            places = np.flatnonzero(data == first)
            for offset in range(size):
                data[places + offset] = _SPACE
    starts, stops = _bounds(data)
    hashes = _hashed(data, starts, stops - starts)
    return Words(hashes, np.searchsorted(starts, ends).astype(np.int64))


def mixed(values: Hashes) -> Hashes:
    """The same numbers scattered: every bit of the result depends on every bit of the number.

    Source: the finaliser of splitmix64 (Steele et al., 2014).
    """
    values = values ^ (values >> np.uint64(30))
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def _bounds(data: npt.NDArray[np.uint8]) -> tuple[Indices, Indices]:
    """Where words begin and end; data begins and ends with a blank."""
    is_word = data != _SPACE
    is_wide = (data - np.uint8(_WIDE_FIRST)) <= _WIDE_LAST - _WIDE_FIRST  # others wrap around
    if not is_wide.any():
        changes = np.flatnonzero(is_word[1:] != is_word[:-1]) + 1
        return changes[0::2], changes[1::2]
    # A character of its own begins a word, and what follows it, three bytes on, begins the next.
    begins = is_word & (~np.roll(is_word, 1) | is_wide | np.roll(is_wide, 3))
    ends = ~is_word | begins
    starts = np.flatnonzero(begins)
    places = np.flatnonzero(ends)
    return starts, places[np.searchsorted(places, starts, side="right")]


def _hashed(data: npt.NDArray[np.uint8], starts: Indices, lengths: Indices) -> Hashes:
    """Eight bytes at a time, masked to the word."""
    eights: npt.NDArray[Any] = np.ndarray((len(data) - 7,), "<u8", data, strides=(1,))
    hashes = eights[starts] & _MASKS[np.minimum(lengths, 8)]
    longer = np.flatnonzero(lengths > 8)
    for done in range(8, _MOST_WORD_BYTES, 8):
        if not longer.size:
            break
        more = eights[starts[longer] + done] & _MASKS[np.minimum(lengths[longer] - done, 8)]
        hashes[longer] = mixed(hashes[longer]) ^ more
        longer = longer[lengths[longer] > done + 8]
    return mixed(hashes + lengths.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))


def _runs(hashes: Hashes, size: int) -> Hashes:
    """Doubling: 13 words are 8 + 4 + 1, so that a hash costs two operations for each halving.

    Sums with a factor of its own for each level: which word stands where decides the sum.
    """
    num_places = max(len(hashes) - size + 1, 0)
    total: Hashes | None = None
    block, length, offset = hashes, 1, 0
    for level in range(size.bit_length()):
        if size & length:
            part = block[offset : offset + num_places]
            total = part.copy() if total is None else total * _factor(2 * level) + part
            offset += length
        if 2 * length <= size:
            block = block[:-length] * _factor(2 * level + 1) + block[length:]
        length *= 2
    assert total is not None, f"runs of {size} words"
    return total


@cache
def _factor(number: int) -> np.uint64:
    """Odd, and with no pattern from one to the next."""
    value = int(mixed(np.array([0x5851F42D4C957F2D + number], np.uint64))[0])
    return np.uint64(value | 1)

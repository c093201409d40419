"""Words -> signatures: how alike two texts are, from 128 numbers of each.   in: Words   out: arrays
who calls: batches/prepare_piece.py, duplicates.py

Two texts are alike as far as the sets of their runs of five words are: Jaccard's measure, the size
of the intersection over that of the union.  MinHash estimates it: one hash of each run decides its
bin of 128 and its value there, the smallest value of a bin stays, and the share of bins in which
two texts agree is the estimate, with a deviation of sqrt(J (1 - J) / 128): 0.035 at 0.8.  A bin
that no run fell into takes another's value, which one a hash of the bin says.
Texts that may be alike are found without comparing all: signatures are cut into bands, and only
texts that agree in a whole band are compared.
Source: Li, Owen, Zhang, One Permutation Hashing, 2012; Shrivastava, Optimal Densification,
    arXiv:1703.04664; banding: Leskovec et al., Mining of Massive Datasets, chapter 3.
Read next: words.py (hashes of words), duplicates.py (groups), tests/corpus/test_prepare_near.py.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from nanochat.corpus.prepare.words import Hashes, Words, mixed

__all__ = [
    "NUM_BINS",
    "SHINGLE_WORDS",
    "Signatures",
    "agreement",
    "band_keys",
    "band_rows",
    "signatures_of",
]

SHINGLE_WORDS = 5
NUM_BINS = 128
LEAST_RECALL = 0.99  # of pairs that are exactly as alike as the threshold

Signatures = npt.NDArray[np.uint16]
"""A row of NUM_BINS for each text: of the smallest values, the lower 16 bits, which are as good as
random where the upper ones are small for all long texts."""

_BIN_BITS = NUM_BINS.bit_length() - 1
_EMPTY = np.uint32(0xFFFFFFFF)
_NUM_DONORS = 64  # tries; half of the bins empty: one try in 2^64 would need more


def signatures_of(words: Words) -> tuple[Signatures, npt.NDArray[np.bool_]]:
    """A signature for each text, and whether it has one: a text without words has none.

    A text of fewer than five words is one run.
    Shapes: (num_texts, NUM_BINS), (num_texts,).
    """
    runs = words.runs(SHINGLE_WORDS)
    texts = words.rows(SHINGLE_WORDS)[: len(runs)]
    is_inside = texts >= 0
    values = mixed(runs[is_inside])
    flat = texts[is_inside] * NUM_BINS + (values >> np.uint64(64 - _BIN_BITS)).astype(np.int64)
    found = np.full(words.num_texts * NUM_BINS, _EMPTY, np.uint32)
    np.minimum.at(found, flat, values.astype(np.uint32))
    signatures = found.reshape(words.num_texts, NUM_BINS)
    counts = words.ends - words.starts
    for text in np.flatnonzero((counts > 0) & (counts < SHINGLE_WORDS)):
        start, end = int(words.starts[text]), int(words.ends[text])
        value = mixed(words.runs(end - start)[start : start + 1])
        signatures[text, int(value[0] >> np.uint64(64 - _BIN_BITS))] = value.astype(np.uint32)[0]
    _densify(signatures)
    return signatures.astype(np.uint16), counts > 0


def band_rows(threshold: float) -> int:
    """How many numbers of a signature a band has: as many as still find 99% of the pairs that are
    just as alike as the threshold; more would compare fewer texts and miss some."""
    for rows in range(16, 1, -1):
        if 1 - (1 - threshold**rows) ** (NUM_BINS // rows) >= LEAST_RECALL:
            return rows
    return 1


def band_keys(signatures: Signatures, rows: int) -> Hashes:
    """A 64-bit key of each band of each text: equal where all of the band's numbers are.

    Shapes: (num_bands, num_texts).
    """
    num_bands = NUM_BINS // rows
    cut = signatures[:, : num_bands * rows].reshape(len(signatures), num_bands, rows)
    keys = np.zeros((num_bands, len(signatures)), np.uint64)
    for row in range(rows):
        keys = mixed(keys + cut[:, :, row].T + np.uint64(1))
    return keys


def agreement(first: Signatures, second: Signatures) -> npt.NDArray[np.float64]:
    """How alike the texts of equal rows are, 0 to 1."""
    shares: npt.NDArray[np.float64] = (first == second).mean(axis=1, dtype=np.float64)
    return shares


def _densify(signatures: npt.NDArray[np.uint32]) -> None:
    """Fill empty bins in place; a text without any value is left as it is."""
    is_empty = signatures == _EMPTY
    texts, bins = np.nonzero(is_empty & ~is_empty.all(axis=1, keepdims=True))
    for tried in range(_NUM_DONORS):
        if not texts.size:
            return
        donors = _DONORS[tried, bins]
        is_found = ~is_empty[texts, donors]
        found = np.flatnonzero(is_found)
        signatures[texts[found], bins[found]] = signatures[texts[found], donors[found]]
        texts, bins = texts[~is_found], bins[~is_found]
    # Short texts: the nearest bin above, around the end, that has a value.
    for text, place in zip(texts.tolist(), bins.tolist(), strict=True):
        around = np.roll(~is_empty[text], -place)
        signatures[text, place] = signatures[text, (place + int(around.argmax())) % NUM_BINS]


def _donors() -> npt.NDArray[Any]:
    numbers = np.arange(_NUM_DONORS * NUM_BINS, dtype=np.uint64)
    return (mixed(numbers + np.uint64(1)) % np.uint64(NUM_BINS)).reshape(-1, NUM_BINS).astype(int)


_DONORS = _donors()

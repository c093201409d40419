"""Hashes, keys -> which texts go because another stays.   in: arrays over all texts   out: pairs,
groups
who calls: batches/prepare_duplicates.py

Texts have numbers, in the order of the corpus.  A pair is (later, earlier); pairs make groups, and
of each group the first text stays.  Memory is in the functions' docstrings, a text: the arrays of
one band are there at a time, whatever the number of bands.
Read next: near.py (keys and signatures), batches/prepare_duplicates.py (over a whole corpus).
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from nanochat.corpus.prepare.near import Signatures, agreement
from nanochat.corpus.prepare.words import Hashes

__all__ = ["alike_pairs", "equal_pairs", "joined"]

Numbers = npt.NDArray[np.int64]
PAIRS_AT_ONCE = 1 << 16  # 34 MB of signatures


def equal_pairs(hashes: Hashes, numbers: Numbers) -> Numbers:
    """Each text whose 128-bit hash an earlier one has, and the first that has it.

    Memory: 50 bytes a text besides the arguments.
    Shapes: hashes (texts, 2), numbers (texts,) -> (pairs, 2).
    """
    order = np.lexsort((numbers, hashes[:, 1], hashes[:, 0]))
    is_first = np.ones(len(order), bool)
    is_first[1:] = (hashes[order[1:]] != hashes[order[:-1]]).any(axis=1)
    return _with_their_first(numbers[order], is_first)


def alike_pairs(
    keys: Hashes,
    numbers: Numbers,
    signatures_of: Callable[[Numbers], Signatures],
    threshold: float,
) -> tuple[Numbers, npt.NDArray[np.float64]]:
    """Pairs of texts that have one key of a band and are alike enough, and how alike.

    Each text is compared with the first that has its key and with the one before it, not with all:
    a key that a million texts have costs two million comparisons.
    Memory: 42 bytes a text besides the arguments, and PAIRS_AT_ONCE signatures.
    Shapes: keys (texts,), numbers (texts,), ascending -> (pairs, 2), (pairs,).
    """
    order = np.argsort(keys, kind="stable")
    is_first = np.ones(len(order), bool)
    is_first[1:] = keys[order[1:]] != keys[order[:-1]]
    members = numbers[order]
    del order
    later = np.flatnonzero(~is_first)
    before = np.stack([members[later], members[later - 1]], axis=1)
    pairs = np.concatenate([_with_their_first(members, is_first), before])
    pairs = np.unique(pairs, axis=0) if len(pairs) else pairs
    kept, shares = [pairs[:0]], [np.zeros(0)]
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        some = pairs[start : start + PAIRS_AT_ONCE]
        alike = agreement(signatures_of(some[:, 0]), signatures_of(some[:, 1]))
        kept.append(some[alike >= threshold])
        shares.append(alike[alike >= threshold])
    return np.concatenate(kept), np.concatenate(shares)


def joined(first: Numbers, pairs: Numbers) -> None:
    """Join groups, in place: `first` says of each text which is the first of its group, at the
    beginning each text itself.

    Groups are what pairs join, over any number of steps: of a row of texts, each like the next, one
    stays.  The order in which pairs come makes no difference.
    Memory: 33 bytes a pair, and 8 a text.
    """
    # Ends of pairs whose groups differ: the later group takes the earlier one's first, and all ways
    # there are shortened.  Rounds: about the logarithm of the longest row.
    while True:
        ends = first[pairs[:, 0]], first[pairs[:, 1]]
        least, most = np.minimum(*ends), np.maximum(*ends)
        is_open = least != most
        if not is_open.any():
            return
        np.minimum.at(first, most[is_open], least[is_open])
        while ((shorter := first[first]) != first).any():
            first[:] = shorter


def _with_their_first(members: Numbers, is_first: npt.NDArray[np.bool_]) -> Numbers:
    starts = np.flatnonzero(is_first)
    lengths = np.diff(np.append(starts, len(members)))
    later = np.flatnonzero(~is_first)
    owners = np.repeat(members[starts], lengths)
    return np.stack([members[later], owners[later]], axis=1)

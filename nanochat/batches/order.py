"""A place in an order -> what lies there.   in: places, a size, a key   out: numbers, each once
who calls: stream, mixture

A shuffle that is computed, not stored: a permutation of 0 .. size - 1 chosen by the key, of which
any part can be asked for by itself, in memory proportional to that part.  The same on every machine
and numpy. A Feistel network (each round swaps two halves of the bits and mixes one into the other,
which is invertible whatever the mixing) permutes a power of four that is at least `size`; a result
past the end is permuted again until it is inside.
Source: Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002 (cycle walking); the mixing
    is splitmix64's.
Read next: stream.py (who shuffles documents and rows with it).
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["shuffled"]

NUM_ROUNDS = (
    8  # 4 suffice against an adversary on large domains; 8 make small ones look even (see the test)
)

Numbers = npt.NDArray[np.int64]


def shuffled(places: npt.ArrayLike, size: int, key: Sequence[object]) -> Numbers:
    """What lies at these places of the permutation of 0 .. size - 1 that `key` chooses.

    Example: shuffled(range(5), 5, (seed, epoch)) is a permutation of 0 .. 4.
    """
    values = np.asarray(places, dtype=np.uint64)
    assert size > 0 and (values < size).all(), f"places outside 0 .. {size - 1}"
    half_bits = (max(size - 1, 1).bit_length() + 1) // 2
    round_keys = _round_keys(key)
    values = _permuted(values, half_bits, round_keys)
    outside = np.flatnonzero(values >= size)
    while outside.size:
        again = _permuted(values[outside], half_bits, round_keys)
        values[outside] = again
        outside = outside[again >= size]
    return values.astype(np.int64)


def _round_keys(key: Sequence[object]) -> list[int]:
    digest = hashlib.blake2b(repr(tuple(key)).encode(), digest_size=8 * NUM_ROUNDS).digest()
    return [int.from_bytes(digest[i : i + 8], "little") for i in range(0, len(digest), 8)]


def _permuted(
    values: npt.NDArray[np.uint64], half_bits: int, round_keys: Sequence[int]
) -> npt.NDArray[np.uint64]:
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> shift, values & mask
    for round_key in round_keys:
        left, right = right, left ^ (_mixed(right + np.uint64(round_key)) & mask)
    return (left << shift) | right


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))

"""Numbers of memory blocks.   in: how many are wanted, hashes   out: block numbers
who calls: scheduler.py

A block holds the keys and values of BLOCK_TOKENS tokens in all layers of one window.  It is

    used     one or more rows read it (as many as it is counted)
    cached   nobody does, but it still holds a known text: the next row that begins so takes it
    clean    nobody does and nothing is known
and free is cached or clean.  A full block is named by the hash of its tokens and of the block
before it, so equal names mean equal texts from the first token on.
Read next: scheduler.py (who holds which block, and until when), tests/engine/test_blocks.py.
"""

import hashlib
import itertools
import struct
from collections.abc import Iterable, Sequence

__all__ = ["BLOCK_TOKENS", "BlockPool", "block_hash"]

BLOCK_TOKENS = 16  # smaller wastes less at a row's end and shares more; larger needs fewer numbers

_USED, _CLEAN, _CACHED = 0, 1, 2

# Evicting beyond what is needed makes stretches; this share of the pool at most is lost by it.
_EXTRA_EVICTION = 16


def block_hash(before: bytes, tokens: Sequence[int]) -> bytes:
    """The name of a full block: 16 bytes that `before` (the name of the block before it, empty for
    a row's first) and its tokens decide.  Equal names of different texts would take 2**64 blocks.
    """
    assert len(tokens) == BLOCK_TOKENS, f"{len(tokens)} tokens are no full block"
    packed = before + struct.pack(f"<{BLOCK_TOKENS}q", *tokens)
    return hashlib.blake2b(packed, digest_size=16).digest()


class BlockPool:
    """The blocks of all layers with the same window; no memory, only the numbers of it.

    num_free + num_used == num_blocks, whatever happens.
    """

    def __init__(self, num_blocks: int, window: int | None = None) -> None:
        assert num_blocks >= 1, f"a pool of {num_blocks} blocks"
        self.num_blocks = num_blocks
        self.window = window
        """Tokens to the left that its layers see; None: all."""
        self._num_readers = [0] * num_blocks
        self._states = bytearray([_CLEAN]) * num_blocks  # bytes, so that stretches are found in C
        self._num_clean = num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._blocks: dict[bytes, int] = {}
        self._oldest: dict[int, None] = {}  # cached blocks, least recently used first
        self._next = 0  # where the next new row is put

    @property
    def num_cached(self) -> int:
        """Free blocks that hold a known text."""
        return len(self._oldest)

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` can give."""
        return self._num_clean + len(self._oldest)

    @property
    def num_used(self) -> int:
        """Blocks that somebody reads."""
        return self.num_blocks - self.num_free

    def is_used(self, block: int) -> bool:
        """Whether somebody reads it."""
        return self._num_readers[block] > 0

    # ------------------------------------------------------------------------ take and give back

    def allocate(
        self, num_blocks: int, after: int | None = None, room: int = 0
    ) -> list[int] | None:
        """That many blocks, or None if fewer are free; the least recently used text is lost first.

        Consecutive numbers are preferred, those that follow `after` (the row's last block) most of
        all; a new row is put where `room` more may follow.  A row in one stretch is read without
        copying.
        """
        if num_blocks > self.num_free:
            return None
        taken = [] if after is None else self._take_after(after, num_blocks)
        missing = num_blocks - len(taken)
        if missing > self._num_clean:
            extra = min(room, self.num_blocks // _EXTRA_EVICTION)
            self._evict(missing - self._num_clean + extra)
        while missing:
            piece = self._take_stretch(missing, room)
            taken += piece
            missing -= len(piece)
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        """One more reads these blocks, which are cached or used."""
        for block in blocks:
            if self._num_readers[block] == 0:
                assert self._states[block] == _CACHED, f"block {block} holds nothing"
                del self._oldest[block]
                self._states[block] = _USED
            self._num_readers[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """One fewer reads these blocks; of those nobody reads, the first given is lost first."""
        for block in blocks:
            assert self._num_readers[block] > 0, f"block {block} is free already"
            self._num_readers[block] -= 1
            if self._num_readers[block]:
                continue
            if self._hashes[block] is None:
                self._clean(block)
            else:
                self._states[block] = _CACHED
                self._oldest[block] = None

    # ----------------------------------------------------------------------------------- texts

    def publish(self, block: int, name: bytes) -> None:
        """Let others find this used, full block; nothing happens if its text can be found already.

        From here on nobody may write to it.
        """
        assert self._num_readers[block] > 0, f"block {block} is free"
        if name not in self._blocks and self._hashes[block] is None:
            self._blocks[name], self._hashes[block] = block, name

    def find(self, name: bytes) -> int | None:
        """The block that holds the text of this name, or None."""
        return self._blocks.get(name)

    def known(self, name: bytes) -> int:
        """The block that holds the text of this name, which `find` has found."""
        return self._blocks[name]

    def forget(self) -> None:
        """Lose all texts: other weights would write other keys."""
        self._evict(len(self._oldest))
        self._blocks.clear()
        self._hashes = [None] * self.num_blocks

    # --------------------------------------------------------------------------------- details

    def _take_after(self, after: int, most: int) -> list[int]:
        """The clean blocks that follow immediately, at most that many."""
        stop = after + 1
        end = min(self.num_blocks, stop + most)
        while stop < end and self._states[stop] == _CLEAN:
            stop += 1
        return self._take(after + 1, stop)

    def _take_stretch(self, most: int, room: int) -> list[int]:
        """The longest stretch that is easily found, at most that long."""
        length = most
        start = self._find_clean(most + room) if room else -1
        if start >= 0:
            self._next = start + most + room  # leaves the room to this row while there is other
        while start < 0:
            start = self._find_clean(length)
            if start < 0:
                length //= 2
        return self._take(start, start + length)

    def _find_clean(self, length: int) -> int:
        pattern = bytes([_CLEAN]) * length
        start = self._states.find(pattern, self._next)
        return start if start >= 0 else self._states.find(pattern)

    def _take(self, start: int, stop: int) -> list[int]:
        for block in range(start, stop):
            self._states[block] = _USED
            self._num_readers[block] = 1
        self._num_clean -= stop - start
        return list(range(start, stop))

    def _evict(self, most: int) -> None:
        for block in list(itertools.islice(self._oldest, most)):
            name = self._hashes[block]
            assert name is not None, f"block {block} is cached without a text"
            del self._oldest[block], self._blocks[name]
            self._hashes[block] = None
            self._clean(block)

    def _clean(self, block: int) -> None:
        self._states[block] = _CLEAN
        self._num_clean += 1

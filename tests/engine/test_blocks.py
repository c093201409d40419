"""blocks.py: no block is lost or given twice, texts are found while they are there."""

import random

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nanochat.engine.blocks import BLOCK_TOKENS, BlockPool, block_hash

NUM_BLOCKS = 24


class Pool(RuleBasedStateMachine):
    """Rows take, name, share and give back blocks; a plain count of readers is kept beside."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS)
        self.rows: list[list[int]] = []
        self.names: dict[bytes, int] = {}
        self.num_named = 0

    @rule(n=st.integers(1, 9), room=st.integers(0, 9), is_new=st.booleans(), which=st.integers(0))
    def allocate(self, n: int, room: int, is_new: bool, which: int) -> None:
        row = [] if is_new or not self.rows else self.rows[which % len(self.rows)]
        num_free = self.pool.num_free
        blocks = self.pool.allocate(n, after=row[-1] if row else None, room=room)
        if blocks is None:
            assert num_free < n
            return
        assert len(set(blocks)) == n
        assert not {block for other in self.rows for block in other} & set(blocks)
        self.names = {name: block for name, block in self.names.items() if block not in blocks}
        if not row:
            self.rows.append(row)
        row += blocks

    @rule(which=st.integers(0), place=st.integers(0))
    def publish(self, which: int, place: int) -> None:
        if self.rows:
            row = self.rows[which % len(self.rows)]
            block = row[place % len(row)]
            self.num_named += 1
            name = self.num_named.to_bytes(16, "big")
            was_named = block in self.names.values()
            self.pool.publish(block, name)
            assert (self.pool.find(name) is None) == was_named
            if not was_named:
                self.names[name] = block

    @rule(which=st.integers(0))
    def share(self, which: int) -> None:
        known = [name for name in self.names if self.pool.find(name) is not None]
        if known:
            block = self.pool.known(known[which % len(known)])
            assert block == self.names[known[which % len(known)]]
            self.pool.share([block])
            self.rows.append([block])

    @rule(which=st.integers(0))
    def release(self, which: int) -> None:
        if self.rows:
            self.pool.release(self.rows.pop(which % len(self.rows)))

    @rule()
    def forget(self) -> None:
        self.pool.forget()
        self.names.clear()
        assert self.pool.num_cached == 0

    @invariant()
    def nothing_is_lost(self) -> None:
        pool = self.pool
        used = {block for row in self.rows for block in row}
        assert pool.num_free + pool.num_used == NUM_BLOCKS
        assert pool.num_used == len(used)
        assert all(pool.is_used(block) == (block in used) for block in range(NUM_BLOCKS))
        for name, block in self.names.items():  # what is used is never evicted
            assert block not in used or pool.find(name) == block


TestPool = pytest.mark.req("FR-010", "FR-062")(Pool.TestCase)


def test_a_name_depends_on_all_before_it() -> None:
    tokens = list(range(BLOCK_TOKENS))
    first, other = block_hash(b"", tokens), block_hash(b"", [*tokens[:-1], 99])
    assert len(first) == 16
    assert len({first, other, block_hash(first, tokens), block_hash(other, tokens)}) == 4
    assert block_hash(first, tokens) == block_hash(block_hash(b"", tokens), tokens)
    with pytest.raises(AssertionError, match="5 tokens are no full block"):
        block_hash(b"", range(5))


def test_the_least_recently_used_text_is_lost_first() -> None:
    pool = BlockPool(4)
    for number in range(4):
        blocks = pool.allocate(1)
        assert blocks is not None
        pool.publish(blocks[0], bytes([number]))
        pool.release(blocks)
    assert pool.num_cached == pool.num_free == 4
    pool.share([pool.known(b"\0")])  # used again: now the youngest
    pool.release([pool.known(b"\0")])
    pool.allocate(2)
    assert [pool.find(bytes([n])) is not None for n in range(4)] == [True, False, False, True]


def test_rows_that_grow_side_by_side_stay_in_one_stretch() -> None:
    pool = BlockPool(400)
    dice = random.Random(0)
    rows: list[list[int]] = []
    for _ in range(8):
        blocks = pool.allocate(dice.randint(1, 8), room=32)
        assert blocks is not None
        rows.append(blocks)
    for _ in range(32):
        for row in rows:
            row += pool.allocate(1, after=row[-1]) or []
    assert all(row == list(range(row[0], row[0] + len(row))) for row in rows)


def test_a_full_cache_still_gives_stretches() -> None:
    pool = BlockPool(320)
    for number in range(20):  # every block holds a text that nobody reads
        blocks = pool.allocate(16)
        assert blocks is not None
        for block in blocks:
            pool.publish(block, number.to_bytes(4, "big") + block.to_bytes(4, "big"))
        pool.release(reversed(blocks))
    assert pool.num_cached == 320
    row = pool.allocate(4, room=12) or []
    for _ in range(12):
        row += pool.allocate(1, after=row[-1]) or []
    assert row == list(range(row[0], row[0] + 16))
    assert pool.num_cached >= 320 - 16 - 320 // 16


def test_what_does_not_fit_in_one_stretch_comes_in_pieces() -> None:
    pool = BlockPool(8)
    pool.allocate(8)
    pool.release([0, 2, 3, 5, 6, 7])
    assert sorted(pool.allocate(6) or []) == [0, 2, 3, 5, 6, 7]
    assert pool.allocate(1) is None

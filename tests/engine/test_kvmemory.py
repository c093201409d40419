"""Slots hold what was written to them, wherever the blocks lie."""

import dataclasses

import pytest
import torch

from nanochat.common.errors import EngineError
from nanochat.engine.blocks import BLOCK_TOKENS
from nanochat.engine.kvmemory import KVMemory, blocks_that_fit, bytes_per_block, runs_of
from tests.engine.conftest import random_model

CONFIG = random_model().config  # windows 9, 20, 9, 96


def test_runs() -> None:
    assert runs_of([3, 4, 5], 0, 40) == [(48, 88)]
    assert runs_of([3, 4, 5], 18, 40) == [(66, 88)]
    assert runs_of([7, 2, 3, 9], 5, 50) == [(117, 128), (32, 64), (144, 146)]
    assert runs_of([None, 2], 16, 17) == [(32, 33)]
    for table in ([None, 2], [1, None, 2]):
        with pytest.raises(AssertionError, match="was given back"):
            runs_of(table, 0, 32)
    with pytest.raises(AssertionError, match="1 blocks for 17 tokens"):
        runs_of([1], 0, 17)


def test_write_read_copy() -> None:
    memory = KVMemory(CONFIG, {9: 6, 20: 4, 96: 4})
    table = [4, 5, 1]
    slots = torch.tensor([s for a, b in runs_of(table, 0, 40) for s in range(a, b)])
    k, v = torch.randn(40, 2, 16), torch.randn(40, 2, 16)
    memory.write(2, slots, k, v)
    for first in (0, 20):
        got_k, got_v = memory.read(2, table, 40, first)
        assert torch.equal(got_k, k[first:]) and torch.equal(got_v, v[first:])
    one_run, _ = memory.read(2, table, 32)
    assert one_run.data_ptr() == memory.keys[2][:, 4 * BLOCK_TOKENS].data_ptr(), "no copy"
    memory.copy_blocks(9, [(4, 0), (1, 2)])
    memory.copy_blocks(9, [])
    assert torch.equal(memory.read(2, [0], 16)[0], k[:16])
    assert torch.equal(memory.read(2, [2], 8)[1], v[32:])
    assert not memory.keys[1].any(), "another group is left alone"
    assert not memory.values[0].any()


def test_sizes() -> None:
    sizes = bytes_per_block(CONFIG, torch.bfloat16)
    one_layer = 2 * BLOCK_TOKENS * 2 * 16 * 2
    assert sizes == {9: 2 * one_layer, 20: one_layer, 96: one_layer}
    blocks = blocks_that_fit(CONFIG, torch.bfloat16, 10**6, step_tokens=32)
    memory = KVMemory(CONFIG, blocks, dtype=torch.bfloat16)
    assert 0.98 * 10**6 < memory.num_bytes <= 10**6
    assert blocks[96] > blocks[20] >= blocks[9]
    full = dataclasses.replace(CONFIG, windows=(None,) * 4)
    assert blocks_that_fit(full, torch.float32, 10**6)[None] == 10**6 // (8 * one_layer)


@pytest.mark.req("FR-062")
def test_what_is_refused() -> None:
    with pytest.raises(EngineError, match="expected at least 1 for each"):
        KVMemory(CONFIG, {9: 1, 20: 1})
    with pytest.raises(EngineError, match="raise --kv-memory"):
        blocks_that_fit(CONFIG, torch.float32, 1000)

"""cache.py: whatever rows join, grow and leave, each finds its own keys and values again."""

import math
import random

import pytest
import torch

from nanochat.common.errors import EngineError
from nanochat.engine.cache import GROWTH_POSITIONS, ContiguousCache
from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT, NO_TOKEN
from tests.conftest import LOGITS_ATOL
from tests.engine.conftest import CONTEXT_LEN, random_tokens
from tests.twins.generation import logits_of


def config(context_len: int = 2 * GROWTH_POSITIONS) -> GPTConfig:
    return GPTConfig.from_depth(
        2, vocab_size=300, context_len=context_len, head_dim=4, aspect_ratio=4, generation="v1"
    )


def feed(cache: ContiguousCache, rows: list[list[int]], news: list[list[int]]) -> None:
    """Feed numbers as keys (their negatives as values), padded with -7 where rows are shorter."""
    longest = max(map(len, news))
    padded = torch.tensor([new + [-7] * (longest - len(new)) for new in news], dtype=torch.float32)
    k = padded[:, :, None, None].expand(-1, -1, 2, 4)
    for layer in range(2):
        keys, values = cache.extend(layer, k + layer, -k - layer)
        for row, (old, new) in enumerate(zip(rows, news, strict=True)):
            expected = torch.tensor([*old, *new], dtype=torch.float32) + layer
            assert torch.equal(keys[row, : len(expected), 1, 3], expected)
            assert torch.equal(values[row, : len(expected), 0, 0], -expected)
    cache.advance([len(new) for new in news])
    for old, new in zip(rows, news, strict=True):
        old += new
    assert cache.lengths_B().tolist() == [len(row) for row in rows]


@pytest.mark.req("FR-010")
def test_rows_keep_their_own_whatever_happens_around_them() -> None:
    dice = random.Random(0)
    cache = ContiguousCache(config())
    rows: list[list[int]] = []
    fresh = iter(range(10**6))
    for _ in range(300):
        act = dice.choice(("feed", "feed", "feed", "join", "leave"))
        if act == "leave" and rows:
            row = dice.randrange(len(rows))
            cache.remove(row)
            rows[row] = rows[-1]
            rows.pop()
        elif act == "join" and len(rows) < 6:
            joining = ContiguousCache(config(), num_rows=2)
            others: list[list[int]] = [[], []]
            feed(joining, others, [[next(fresh) for _ in range(dice.randint(1, 9))] for _ in "ab"])
            cache.append(joining)
            rows += others
        elif rows:
            num_new = dice.randint(1, 5)
            feed(
                cache, rows, [[next(fresh) for _ in range(dice.randint(1, num_new))] for _ in rows]
            )
        assert cache.lengths == [len(row) for row in rows]
    assert max(map(len, rows)) > 20


def test_memory_grows_in_steps_and_to_its_limit() -> None:
    cache = ContiguousCache(config(), num_rows=1)
    assert cache.num_bytes == 0
    row: list[list[int]] = [[]]
    feed(cache, row, [[1]])
    small = cache.num_bytes
    assert small == 2 * 2 * GROWTH_POSITIONS * 2 * 4 * 4  # keys and values of 2 layers, float32
    feed(cache, row, [list(range(GROWTH_POSITIONS))])
    assert cache.num_bytes == 2 * small
    feed(cache, row, [[5] * (GROWTH_POSITIONS - 1)])
    with pytest.raises(EngineError, match="a row would have 513 tokens, but the cache .* 512"):
        feed(cache, row, [[5]])


@pytest.mark.req("SC-007")
def test_a_broken_row_leaves_nothing_behind() -> None:
    cache = ContiguousCache(config(), num_rows=3)
    for layer in range(2):
        keys = torch.ones(3, 9, 2, 4)
        keys[0] = keys[2] = math.nan
        cache.extend(layer, keys, keys)
    cache.advance([9, 1, 9])
    cache.remove(2)
    cache.remove(0)
    cache.append(ContiguousCache(config(), num_rows=2))
    keys, values = cache.extend(0, torch.ones(3, 9, 2, 4), torch.ones(3, 9, 2, 4))
    assert torch.isfinite(keys).all()
    assert torch.isfinite(values).all()


@pytest.mark.parametrize("chunk", [1, 7, 64])
@pytest.mark.req("FR-010")
@pytest.mark.req("FR-014")
def test_cached_logits_equal_uncached_ones_past_the_context_too(any_model: GPT, chunk: int) -> None:
    tokens = random_tokens(CONTEXT_LEN + 50)
    cache = ContiguousCache(any_model.config, num_rows=1, max_positions=len(tokens))
    pieces, previous = [], NO_TOKEN
    with torch.inference_mode():
        for start in range(0, len(tokens), chunk):
            piece = tokens[start : start + chunk]
            previous_B = torch.tensor([previous])
            pieces.append(any_model(torch.tensor([piece]), previous_B=previous_B, cache=cache)[0])
            cache.advance([len(piece)])
            previous = piece[-1]
    difference = (torch.cat(pieces) - logits_of(any_model, tokens)).abs().max()
    assert difference <= LOGITS_ATOL

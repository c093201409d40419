"""Forward computes what the model computes, in any pieces, in any batch, from any blocks."""

import random

import pytest
import torch

from nanochat.engine.blocks import BLOCK_TOKENS
from nanochat.engine.forward import Forward, Piece
from nanochat.engine.kvmemory import KVMemory
from nanochat.model.gpt import GPT, NO_TOKEN
from tests.conftest import LOGITS_ATOL
from tests.engine.conftest import random_tokens

CPU = torch.device("cpu")
NUM_BLOCKS = 24


def memory_of(forward: Forward) -> KVMemory:
    blocks = {window: NUM_BLOCKS for window in forward.config.windows}
    return KVMemory(forward.config, blocks, dtype=forward.dtype)


def tables_of(forward: Forward, num_tokens: int, *, first: int = 0, seed: int | None = None):
    """Consecutive blocks from `first` on, or shuffled ones."""
    count = -(-num_tokens // BLOCK_TOKENS)
    tables = {}
    for window in set(forward.config.windows):
        numbers = list(range(first, first + count))
        if seed is not None:
            random.Random(f"{seed} {window}").shuffle(numbers)
        tables[window] = numbers
    return tables


def logprobs_of(model: GPT, tokens: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([tokens]))[0].log_softmax(-1)


def in_pieces(forward: Forward, tokens: list[int], cuts: list[int], tables) -> torch.Tensor:
    memory = memory_of(forward)
    hidden = []
    for start, stop in zip([0, *cuts], [*cuts, len(tokens)], strict=True):
        previous = tokens[start - 1] if start else NO_TOKEN
        piece = Piece(tokens[start:stop], previous, start, tables)
        hidden.append(forward.prefill([piece], memory))
    return forward.logits(torch.cat(hidden)).log_softmax(-1)


def furthest(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("cuts", [[], [1], [15, 16, 17], [40]])
def test_any_pieces(any_model: GPT, cuts: list[int], seed: int | None) -> None:
    forward = Forward(any_model, format="float32", device=CPU)
    tokens = random_tokens(70)
    tables = tables_of(forward, len(tokens), first=2, seed=seed)
    got = in_pieces(forward, tokens, cuts, tables)
    assert furthest(got, logprobs_of(any_model, tokens)) <= LOGITS_ATOL


def test_decode(any_model: GPT) -> None:
    """Rows of different lengths, one in shuffled blocks, token by token."""
    forward = Forward(any_model, format="float32", device=CPU)
    memory = memory_of(forward)
    rows = [random_tokens(60, seed) for seed in range(3)]
    read = [1, 17, 30]
    tables = [
        tables_of(forward, 60, first=first, seed=seed)
        for first, seed in ((0, None), (4, 1), (9, None))
    ]
    pieces = [
        Piece(row[:n], NO_TOKEN, 0, table) for row, n, table in zip(rows, read, tables, strict=True)
    ]
    forward.prefill(pieces, memory, last_only=True)
    expected = [logprobs_of(any_model, row) for row in rows]
    for step in range(30):
        at = [n + step for n in read]
        hidden = forward.decode(
            [row[i] for row, i in zip(rows, at, strict=True)],
            [row[i - 1] for row, i in zip(rows, at, strict=True)],
            at,
            tables,
            memory,
        )
        got = forward.logits(hidden).log_softmax(-1)
        want = torch.stack([e[i] for e, i in zip(expected, at, strict=True)])
        assert furthest(got, want) <= LOGITS_ATOL

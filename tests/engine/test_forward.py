"""Forward computes what the model computes, in any pieces, in any batch, from any blocks."""

import random
from typing import Any

import pytest
import torch

from nanochat.common.device import compute_dtype
from nanochat.common.errors import ConfigError, EngineError
from nanochat.engine.blocks import BLOCK_TOKENS
from nanochat.engine.forward import Forward, Piece
from nanochat.engine.kvmemory import KVMemory
from nanochat.engine.request import NO_TOKEN
from nanochat.model.gpt import GPT
from tests.conftest import FORMAT_TOLERANCES, LOGITS_ATOL
from tests.engine.conftest import GENERATIONS, random_tokens
from tests.golden.parity import from_golden, from_shared, model_of

pytestmark = pytest.mark.req("FR-001", "FR-014")

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


@pytest.mark.parametrize("source", ["golden", "shared"])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_parity(generation: Any, source: str, request: pytest.FixtureRequest) -> None:
    """What karpathy/nanochat computed, in two pieces and then token by token."""
    if source == "golden":
        figures = from_golden(generation)
    else:
        figures = from_shared(request.getfixturevalue("shared_dir"), generation)
    forward = Forward(model_of(figures, figures.weights), format="float32", device=CPU)
    tokens = figures.rows[0, :-1].tolist()
    tables = tables_of(forward, len(tokens), seed=1)
    memory = memory_of(forward)
    hidden = [
        forward.prefill([Piece(tokens[:100], NO_TOKEN, 0, tables)], memory),
        forward.prefill([Piece(tokens[100:240], tokens[99], 100, tables)], memory),
    ]
    for at in range(240, len(tokens)):
        hidden.append(forward.decode([tokens[at]], [tokens[at - 1]], [at], [tables], memory))
    got = forward.logits(torch.cat(hidden))[:: figures.logits_every]
    assert furthest(got, figures.logits[0]) <= LOGITS_ATOL


@pytest.mark.parametrize("format", FORMAT_TOLERANCES)
def test_formats_are_close(any_model: GPT, format: Any) -> None:
    forward = Forward(any_model, format=format, device=CPU)
    assert forward.dtype == torch.bfloat16
    tokens = random_tokens(70)
    with torch.inference_mode():
        want = any_model(torch.tensor([tokens]))[0]
    tables = tables_of(forward, len(tokens), seed=5)
    memory = memory_of(forward)
    pieces = forward.logits(forward.prefill([Piece(tokens[:60], NO_TOKEN, 0, tables)], memory))
    steps = [
        forward.logits(forward.decode([tokens[at]], [tokens[at - 1]], [at], [tables], memory))
        for at in range(60, 70)
    ]
    got = torch.cat([pieces, *steps])
    assert furthest(got, want) <= FORMAT_TOLERANCES[format] * float(want.std())


@pytest.mark.parametrize("format", ["float32", "bfloat16", "int8", "int4"])
def test_a_neighbour_changes_nothing(model: GPT, format: Any) -> None:
    """The same row beside a quiet neighbour and beside a loud one: bit for bit the same."""
    forward = Forward(model, format=format, device=CPU)
    tables = [tables_of(forward, 32, first=first) for first in (0, 4)]
    results = []
    for neighbour in (random_tokens(20, 8), [7] * 20):
        memory = memory_of(forward)
        rows = [random_tokens(20, 9), neighbour]
        for row, table in zip(rows, tables, strict=True):
            forward.prefill([Piece(row, NO_TOKEN, 0, table)], memory, last_only=True)
        hidden = forward.decode([3, neighbour[0]], [4, neighbour[1]], [20, 20], tables, memory)
        results.append(forward.logits(hidden)[0])
    assert torch.equal(*results)


def test_positions_past_the_context(model: GPT) -> None:
    """The rotary table grows; the windows slide."""
    forward = Forward(model, format="float32", device=CPU)
    tokens = random_tokens(150)
    got = in_pieces(forward, tokens, [90, 130], tables_of(forward, len(tokens)))
    assert furthest(got, logprobs_of(model, tokens)) <= LOGITS_ATOL


def test_several_rows_in_one_prefill(any_model: GPT) -> None:
    forward = Forward(any_model, format="float32", device=CPU)
    memory = memory_of(forward)
    rows = [random_tokens(count, seed) for seed, count in enumerate((5, 33, 20))]
    pieces = [
        Piece(row, NO_TOKEN, 0, tables_of(forward, 40, first=3 * index))
        for index, row in enumerate(rows)
    ]
    got = forward.logits(forward.prefill(pieces, memory, last_only=True)).log_softmax(-1)
    want = torch.stack([logprobs_of(any_model, row)[-1] for row in rows])
    assert furthest(got, want) <= LOGITS_ATOL


@pytest.mark.req("FR-062")
def test_what_is_refused(model: GPT) -> None:
    forward = Forward(model, format="float32", device=CPU)
    memory, tables = memory_of(forward), tables_of(forward, 16)
    for tokens in ([300], [-1]):
        with pytest.raises(EngineError, match="expected 0 to 299"):
            forward.prefill([Piece(tokens, NO_TOKEN, 0, tables)], memory)
        with pytest.raises(EngineError, match="expected 0 to 299"):
            forward.decode(tokens, [1], [0], [tables], memory)
    with pytest.raises(ConfigError, match="expected one of auto"):
        Forward(model, format="int3", device=CPU)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="expected the CPU"):
        Forward(model, format="int8", device=torch.device("cuda"))


def test_auto_is_what_the_processor_multiplies_fast(model: GPT) -> None:
    forward = Forward(model, device=CPU)
    assert forward.format == str(compute_dtype(CPU)).removeprefix("torch.")

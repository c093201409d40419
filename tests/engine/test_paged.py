"""The GPU's bookkeeping, run on a CPU: padding changes nothing; on a GPU, its graphs."""

from typing import Any

import pytest
import torch

from nanochat.engine.forward import Forward, Piece
from nanochat.engine.kvmemory import KVMemory
from nanochat.engine.paged import PagedDecode, capture_for, ladder
from nanochat.engine.request import NO_TOKEN
from nanochat.model.gpt import GPT
from tests.conftest import GRAPH_BFLOAT16, LOGITS_ATOL
from tests.engine.conftest import random_model, random_tokens
from tests.engine.test_forward import logprobs_of, memory_of, tables_of

CPU = torch.device("cpu")


def test_ladder() -> None:
    assert [ladder(n) for n in (1, 2, 3, 5, 8, 9, 100)] == [1, 2, 4, 8, 8, 16, 128]


def read_prompts(forward: Forward, memory: KVMemory, lengths: list[int]) -> tuple[list, list]:
    rows = [random_tokens(90, seed) for seed in range(len(lengths))]
    tables = [
        tables_of(forward, 90, first=6 * index, seed=index or None) for index in range(len(rows))
    ]
    for row, length, table in zip(rows, lengths, tables, strict=True):
        if length:
            forward.prefill([Piece(row[:length], NO_TOKEN, 0, table)], memory)
    return rows, tables


def test_recorded_steps_compute_the_same(any_model: GPT) -> None:
    """Three rows of different lengths (one of them empty) over 40 steps: padded to four."""
    forward = Forward(any_model, format="float32", device=CPU)
    memory = memory_of(forward)
    lengths = [0, 17, 45]
    rows, tables = read_prompts(forward, memory, lengths)
    recordings: list[Any] = []

    def capture(step: Any) -> Any:
        recordings.append(step)
        return capture_for(CPU)(step)

    paged = PagedDecode(
        forward.config, forward.weights, memory, activation_dtype=torch.float32,
        scale=forward.config.qk_scale**2 * forward.config.head_dim**-0.5, capture=capture,
    )  # fmt: skip
    rotation = forward._rotation(100)
    none = forward.config.padded_vocab_size
    expected = [logprobs_of(any_model, row) for row in rows]
    for step in range(40):
        at = [length + step for length in lengths]
        tokens = [row[i] for row, i in zip(rows, at, strict=True)]
        previous = [row[i - 1] if i else none for row, i in zip(rows, at, strict=True)]
        with torch.inference_mode():
            hidden = paged(tokens, previous, at, rotation, tables)
        got = forward.logits(hidden).log_softmax(-1)
        want = torch.stack([e[i] for e, i in zip(expected, at, strict=True)])
        assert float((got - want).abs().max()) <= LOGITS_ATOL
    assert paged.num_recorded == len(recordings) == 1, "one shape: four rows, eight blocks"


def test_a_block_that_was_given_back(model: GPT) -> None:
    forward = Forward(model, format="float32", device=CPU)
    memory = memory_of(forward)
    forward.device = torch.device("meta")  # any but the CPU takes this path
    forward._long = lambda numbers: torch.tensor(numbers)  # type: ignore[method-assign]
    tables = [{window: [None, 1] for window in memory.num_blocks}]
    with pytest.raises(AssertionError, match="given back"):
        forward.decode([1], [2], [17], tables, memory)
    with pytest.raises(AssertionError, match="no block for position 40"):
        forward.decode([1], [2], [40], [{w: [0, 1] for w in memory.num_blocks}], memory)


@pytest.mark.gpu
@pytest.mark.parametrize("format", ["float32", "bfloat16"])
def test_graphs(format: Any) -> None:
    """Replayed steps agree with the model, at several shapes."""
    model = random_model().to("cuda")
    forward = Forward(model, format=format, device=torch.device("cuda"))
    blocks = {window: 24 for window in forward.config.windows}
    memory = KVMemory(forward.config, blocks, dtype=forward.dtype, device=forward.device)
    lengths = [1, 17, 45]
    rows, tables = read_prompts(forward, memory, lengths)
    with torch.inference_mode():
        expected = [model(torch.tensor([row], device="cuda"))[0] for row in rows]
    for count in (3, 1, 3):
        for step in range(5):
            at = [length + step for length in lengths[:count]]
            hidden = forward.decode(
                [row[i] for row, i in zip(rows, at, strict=False)],
                [row[i - 1] for row, i in zip(rows, at, strict=False)],
                at,
                tables[:count],
                memory,
            )
            got = forward.logits(hidden)
            want = torch.stack([e[i] for e, i in zip(expected, at, strict=False)])
            most = LOGITS_ATOL if format == "float32" else GRAPH_BFLOAT16 * float(want.std())
            assert float((got - want).abs().max()) <= most
    assert forward._paged is not None and forward._paged.num_recorded == 2


@pytest.mark.gpu
def test_a_graph_replays() -> None:
    x = torch.zeros(4, device="cuda")
    replay = capture_for(x.device)(lambda: x * 2)
    x.fill_(3)
    assert replay().tolist() == [6.0] * 4

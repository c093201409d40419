"""bfloat16, int8 and int4: an answer is the same to a stated rounding, whoever shares the batch.

What an engine tells is compared with the logits of the same format, computed for the whole text at
once and alone.  Where greedy tokens differ, the two candidates' logits lie within the tolerance.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch

from nanochat.engine.blocks import BLOCK_TOKENS
from nanochat.engine.choice import BUCKETS, CANDIDATES, OperatorChooser
from nanochat.engine.engine import Engine
from nanochat.engine.forward import Forward, Piece
from nanochat.engine.kvmemory import bytes_per_block
from nanochat.engine.operators import Multiply, Role
from nanochat.engine.request import NO_TOKEN, Request, SamplingParams
from nanochat.model.gpt import GPT
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.conftest import REROUNDED
from tests.engine.conftest import CONTEXT_LEN, random_tokens
from tests.engine.test_forward import memory_of, tables_of
from tests.twins.generation import assert_follows

pytestmark = [
    pytest.mark.req("FR-010", "FR-015", "SC-004"),
    pytest.mark.parametrize("format", REROUNDED),
    pytest.mark.parametrize("any_model", ["v1", "v3", "v5"], indirect=True),
]

Ask = Callable[..., Request]


@pytest.fixture(autouse=True)
def mixed_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row, four and sixteen are multiplied by different operators, where there are several."""

    def mixed(
        self: OperatorChooser, built: Mapping[str, Multiply], weight: torch.Tensor, role: Role
    ) -> list[str]:
        most = {each.name: each.most_rows or BUCKETS[-1] for each in CANDIDATES[self.format]}
        able = [[name for name in built if most.get(name, rows) >= rows] for rows in BUCKETS]
        return [names[place % len(names)] for place, names in enumerate(able)]

    monkeypatch.setattr(OperatorChooser, "_fastest", mixed)


def cold_of(engine: Engine) -> Callable[[Sequence[int]], torch.Tensor]:
    """Logits after each token of a text, read alone, in one piece, with nothing known."""
    forward: Forward = engine.forward

    def logits_of(tokens: Sequence[int]) -> torch.Tensor:
        piece = Piece(tokens, NO_TOKEN, 0, tables_of(forward, len(tokens)))
        return forward.logits(forward.prefill([piece], memory_of(forward)))

    return logits_of


def check(engine: Engine, requests: Sequence[Request], format: str) -> None:
    """All of them at once, and what is told of each."""
    for request, events in zip(requests, engine.generate(requests), strict=True):
        for sample in range(request.num_samples):
            own = [event for event in events if event.sample == sample]
            assert len(own) == request.sampling.max_tokens
            assert_follows(cold_of(engine), request.prompt_tokens, own, REROUNDED[format])


@pytest.mark.parametrize("piece", [7, 512])
def test_alone_in_pieces_and_in_a_batch(
    any_model: GPT, tiny_tokenizer: Tokenizer, ask: Ask, format: Any, piece: int
) -> None:
    engine = Engine(any_model, tiny_tokenizer, format=format, max_rows=5, step_tokens=piece)
    prompts = [random_tokens(length, seed=length) for length in (1, 70, 33, 13, 5, 2)]
    check(engine, [ask(prompt, max_tokens=6) for prompt in prompts], format)
    check(engine, [ask(random_tokens(20, seed=9), max_tokens=6)], format)


def test_a_known_beginning_and_several_answers(
    any_model: GPT, tiny_tokenizer: Tokenizer, ask: Ask, format: Any
) -> None:
    engine = Engine(any_model, tiny_tokenizer, format=format)
    beginning = random_tokens(50, seed=1)
    engine.generate([ask(beginning)])
    for rest in ([], random_tokens(30, seed=2)):
        before = engine.stats().num_hit_tokens
        check(engine, [ask([*beginning, *rest])], format)
        assert engine.stats().num_hit_tokens - before >= 2 * BLOCK_TOKENS
    several = Request(
        request_id="several",
        prompt_tokens=tuple(beginning),
        sampling=SamplingParams(max_tokens=6, temperature=0.0),
        num_samples=5,
    )
    check(engine, [several], format)


def test_giving_way(any_model: GPT, tiny_tokenizer: Tokenizer, ask: Ask, format: Any) -> None:
    one = sum(bytes_per_block(any_model.config, torch.bfloat16).values())
    memory = int(one * CONTEXT_LEN / BLOCK_TOKENS * 1.2)
    engine = Engine(
        any_model, tiny_tokenizer, format=format, max_rows=6, kv_memory_bytes=memory, step_tokens=16
    )
    prompts = [random_tokens(4 + 3 * n, seed=n) for n in range(6)]
    check(engine, [ask(prompt, max_tokens=50) for prompt in prompts], format)
    assert engine.stats().num_preemptions > 0

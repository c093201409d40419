"""Whatever is asked, the engine answers or refuses in one line, and goes on."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.common.errors import NanochatError
from nanochat.engine.blocks import BLOCK_TOKENS
from nanochat.engine.engine import Engine
from nanochat.engine.kvmemory import bytes_per_block
from nanochat.engine.request import Request, SamplingParams, TokenEvent
from nanochat.model.gpt import GPT
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.engine.conftest import CONTEXT_LEN, VOCAB_SIZE, random_tokens
from tests.patience import wait_until
from tests.twins.generation import assert_greedy

NUMBERS = itertools.count()
ODD = st.sampled_from(
    [None, -1, 0, 1, 2**64, 1e308, float("nan"), float("inf"), True, "x", (), [1]]
)


def mostly(good: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Something odd one time in twelve."""
    return st.integers(0, 11).flatmap(lambda n: ODD if n == 11 else good)


TOKENS = mostly(st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=40).map(tuple)) | st.lists(
    st.integers(-5, 400), max_size=40
).map(tuple)
SAMPLING = st.fixed_dictionaries(
    {"max_tokens": mostly(st.integers(1, 6))},
    optional={
        "temperature": mostly(st.floats(0, 3)),
        "top_k": mostly(st.integers(1, 400)),
        "top_p": mostly(st.floats(0.01, 1)),
        "min_p": mostly(st.floats(0, 1)),
        "repetition_penalty": mostly(st.floats(0.5, 2)),
        "presence_penalty": mostly(st.floats(-2, 2)),
        "frequency_penalty": mostly(st.floats(-2, 2)),
        "logit_bias": mostly(
            st.dictionaries(st.integers(0, 310), st.floats(-100, 100), max_size=5)
        ),
        "seed": mostly(st.integers(0, 2**62)),
        "stop_tokens": mostly(TOKENS),
        "stop": mostly(st.lists(st.text(max_size=4), max_size=3).map(tuple)),
        "logprobs": mostly(st.integers(0, 20)),
    },
)
REQUEST = st.fixed_dictionaries(
    {"prompt_tokens": mostly(TOKENS)},
    optional={
        "num_samples": mostly(st.integers(1, 4)),
        "prompt_logprobs": mostly(st.integers(0, 5)),
        "schema": mostly(st.sampled_from(["json", '{"type": "integer"}', "{", '{"type": 3}'])),
        "tools": mostly(st.booleans()),
        "beyond_context": mostly(st.sampled_from(["refuse", "slide"])),
    },
)


@pytest.mark.req("FR-062", "FR-060", "EC-3")
def test_anything_may_be_asked(model: GPT, tiny_tokenizer: Tokenizer) -> None:
    engine = Engine(model, tiny_tokenizer, max_rows=4, step_tokens=16)
    num_answered = 0

    @given(st.lists(st.tuples(REQUEST, SAMPLING), min_size=1, max_size=4))
    @settings(max_examples=150)
    def ask(asked: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
        nonlocal num_answered
        for wanted, sampling in asked:
            name = f"f{next(NUMBERS)}"
            try:
                params = SamplingParams(**sampling)
                request = Request(request_id=name, sampling=params, **wanted)
                [events] = engine.generate([request])
            except NanochatError as refused:
                assert str(refused) and "\n" not in str(refused)
                continue
            num_answered += 1
            assert sum(event.finish_reason is not None for event in events) == request.num_samples
            assert all(isinstance(event, TokenEvent) for event in events)
            assert all(0 <= event.token < VOCAB_SIZE for event in events)
        stats = engine.stats()
        assert stats.num_free_blocks == stats.num_blocks and engine.num_active == 0

    ask()
    assert num_answered > 40  # it proves little if all is refused


@pytest.mark.req("FR-062", "FR-052", "EC-8")
def test_whatever_others_ask_nobody_is_disturbed(model: GPT, tiny_tokenizer: Tokenizer) -> None:
    """Odd requests all at once, in memory too small for them, beside two who ask properly."""
    one = sum(bytes_per_block(model.config, torch.float32).values())
    memory = int(one * CONTEXT_LEN / BLOCK_TOKENS * 1.05)
    engine = Engine(model, tiny_tokenizer, max_rows=6, step_tokens=16, kv_memory_bytes=memory)
    num_together = 0

    @given(st.lists(st.tuples(REQUEST, SAMPLING), min_size=5, max_size=10), st.data())
    @settings(max_examples=20)
    def ask(asked: list[tuple[dict[str, Any], dict[str, Any]]], data: st.DataObject) -> None:
        nonlocal num_together
        proper = [properly(30), properly(31)]
        streams = [engine.stream(proper[0])]
        for wanted, sampling in asked:
            try:
                params = SamplingParams(**sampling)
                request = Request(request_id=f"f{next(NUMBERS)}", sampling=params, **wanted)
                streams.append(engine.stream(request))
            except NanochatError:
                continue
        streams.append(engine.stream(proper[1]))
        num_together += len(streams) > 3
        for stream in streams[1:-1]:
            if data.draw(st.booleans()):
                stream.close()
                continue
            try:
                assert all(isinstance(event, TokenEvent) for event in stream)
            except NanochatError as refused:
                assert str(refused) and "\n" not in str(refused)
        for request, stream in zip(proper, (streams[0], streams[-1]), strict=True):
            assert_greedy(model, request.prompt_tokens, [event.token for event in stream])
        wait_until(lambda: engine.num_active == 0)
        stats = engine.stats()
        assert stats.num_free_blocks == stats.num_blocks and stats.num_running == 0

    ask()
    assert num_together > 8
    assert engine.stats().num_preemptions > 0


def properly(num_tokens: int) -> Request:
    return Request(
        request_id=f"f{next(NUMBERS)}",
        prompt_tokens=tuple(random_tokens(num_tokens, seed=num_tokens)),
        sampling=SamplingParams(max_tokens=40, temperature=0.0),
    )

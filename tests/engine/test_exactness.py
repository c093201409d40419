"""What is computed is the same whoever shares the batch, the memory, and the prompt."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from nanochat.common.errors import (
    ConfigError,
    EngineError,
    RequestTooLong,
    SchemaError,
    TokenizerError,
)
from nanochat.engine.blocks import BLOCK_TOKENS
from nanochat.engine.constraint import Constraint
from nanochat.engine.engine import Engine
from nanochat.engine.kvmemory import bytes_per_block
from nanochat.engine.request import Request, SamplingParams, TokenEvent
from nanochat.engine.scoring import Likelihood
from nanochat.model.gpt import GPT
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.conftest import LOGITS_ATOL
from tests.engine.conftest import CONTEXT_LEN, random_model, random_tokens
from tests.engine.test_engine import scripted
from tests.patience import wait_until
from tests.twins.generation import assert_greedy, assert_logprobs, logits_of

Ask = Callable[..., Request]


def tokens_of(events: list[TokenEvent], sample: int = 0) -> list[int]:
    return [event.token for event in events if event.sample == sample]


def small_engine(model: GPT, tokenizer: Tokenizer, num_rows: int = 3, **said: Any) -> Engine:
    """An engine whose memory holds little more than one context."""
    one = sum(bytes_per_block(model.config, torch.float32).values())
    memory = int(one * CONTEXT_LEN / BLOCK_TOKENS * 1.2)
    return Engine(model, tokenizer, max_rows=num_rows, kv_memory_bytes=memory, **said)


@pytest.mark.req("FR-010", "SC-004")
def test_giving_way_changes_nothing(any_model: GPT, tiny_tokenizer: Tokenizer, ask: Ask) -> None:
    engine = small_engine(any_model, tiny_tokenizer, num_rows=6, step_tokens=16)
    prompts = [random_tokens(4 + 3 * n, seed=n) for n in range(6)]
    answers = engine.generate([ask(prompt, max_tokens=60) for prompt in prompts])
    assert engine.stats().num_preemptions > 0
    for prompt, events in zip(prompts, answers, strict=True):
        assert_greedy(any_model, prompt, tokens_of(events))
        assert_logprobs(any_model, prompt, events)
    asked = [ask(prompt, temperature=1.0, seed=9, max_tokens=30) for prompt in prompts]
    crowded = engine.generate(asked)
    for request, events in zip(asked, crowded, strict=True):
        [alone] = Engine(any_model, tiny_tokenizer).generate([request])
        assert tokens_of(events) == tokens_of(alone)
        assert_logprobs(any_model, request.prompt_tokens, events)


@pytest.mark.req("FR-010", "SC-004")
def test_a_known_beginning_changes_nothing(
    any_model: GPT, tiny_tokenizer: Tokenizer, ask: Ask
) -> None:
    engine = Engine(any_model, tiny_tokenizer)
    beginning = random_tokens(50, seed=1)
    engine.generate([ask(beginning)])
    for rest in ([], [5], random_tokens(30, seed=2)):
        before = engine.stats().num_hit_tokens
        prompt = [*beginning, *rest]
        [events] = engine.generate([ask(prompt)])
        assert engine.stats().num_hit_tokens - before >= 2 * BLOCK_TOKENS
        assert_greedy(any_model, prompt, tokens_of(events))
        assert_logprobs(any_model, prompt, events)
    before = engine.stats().num_hit_tokens
    other = [beginning[0] + 1, *beginning[1:]]  # the first token differs: nothing is known
    [events] = engine.generate([ask(other)])
    assert engine.stats().num_hit_tokens == before
    assert_greedy(any_model, other, tokens_of(events))
    assert_logprobs(any_model, other, events)


@pytest.mark.req("FR-010", "FR-052")
def test_several_answers_to_one_prompt(any_model: GPT, tiny_tokenizer: Tokenizer) -> None:
    """The first is the one that would come alone; the prompt is read once."""
    prompt = random_tokens(37, seed=3)
    sampling = SamplingParams(max_tokens=12, temperature=1.0, seed=4)
    engine = Engine(any_model, tiny_tokenizer)
    request = Request(request_id="n", prompt_tokens=tuple(prompt), sampling=sampling, num_samples=5)
    [events] = engine.generate([request])
    answers = [tokens_of(events, sample) for sample in range(5)]
    for sample in range(5):
        own = [event for event in events if event.sample == sample]
        assert_logprobs(any_model, prompt, own)
    assert [len(answer) for answer in answers] == [12] * 5
    assert len({tuple(answer) for answer in answers}) > 1
    assert sum(event.finish_reason is not None for event in events) == 5
    assert engine.stats().num_fed_tokens <= len(prompt) + 5 * 12
    alone = Request(request_id="1", prompt_tokens=tuple(prompt), sampling=sampling)
    assert tokens_of(Engine(any_model, tiny_tokenizer).generate([alone])[0]) == answers[0]
    # Without memory for all at once, those that wait are computed later, to the same answers.
    crowded = small_engine(any_model, tiny_tokenizer, num_rows=2)
    [again] = crowded.generate([request])
    assert [tokens_of(again, sample) for sample in range(5)] == answers


@pytest.mark.req("FR-012", "FR-052")
def test_each_answer_is_penalized_for_what_it_said_itself(
    model: GPT, tiny_tokenizer: Tokenizer, ask: Ask
) -> None:
    sampling = SamplingParams(
        max_tokens=30, temperature=1.0, seed=4, repetition_penalty=1.5, frequency_penalty=1.0
    )
    prompt = tuple(random_tokens(9, seed=3))
    request = Request(request_id="n", prompt_tokens=prompt, sampling=sampling, num_samples=3)
    neighbour = ask(random_tokens(5), max_tokens=30)
    events, beside = Engine(model, tiny_tokenizer).generate([request, neighbour])
    assert_greedy(model, neighbour.prompt_tokens, tokens_of(beside))
    alone = Request(request_id="1", prompt_tokens=prompt, sampling=sampling)
    [only] = Engine(model, tiny_tokenizer).generate([alone])
    assert tokens_of(events) == tokens_of(only)
    assert all(len(tokens_of(events, sample)) == 30 for sample in range(3))


@pytest.mark.req("FR-038", "FR-040")
def test_likelihoods(any_model: GPT, tiny_tokenizer: Tokenizer) -> None:
    beginning = random_tokens(40, seed=5)
    texts = [([*beginning, *random_tokens(n, seed=n)], 40) for n in (1, 3, 20)]
    texts += [(random_tokens(9, seed=6), 1), (random_tokens(70, seed=7), 69)]
    engine = Engine(any_model, tiny_tokenizer, step_tokens=32, max_rows=8)
    engine.score(texts[:1])
    before = engine.stats().num_hit_tokens
    for (tokens, place), found in zip(texts, engine.score(texts), strict=True):
        logprobs = logits_of(any_model, tokens).log_softmax(-1)[place - 1 : -1]
        wanted = logprobs.gather(1, torch.tensor(tokens[place:])[:, None])[:, 0]
        assert found.logprobs == pytest.approx(wanted.tolist(), abs=LOGITS_ATOL)
        best = logprobs.argmax(-1).tolist()
        assert found.is_greedy == [a == b for a, b in zip(best, tokens[place:], strict=True)]
        assert isinstance(found, Likelihood)
    assert engine.stats().num_hit_tokens - before >= 3 * 2 * BLOCK_TOKENS


def test_what_cannot_be_scored(engine: Engine) -> None:
    with pytest.raises(EngineError, match="a text of 5 tokens scored from place 5: expected 1 to"):
        engine.score([(random_tokens(5), 5)])
    with pytest.raises(TokenizerError, match="prompt token 300 at place 1"):
        engine.score([([1, 300, 2], 1)])
    with pytest.raises(RequestTooLong, match=f"text has {CONTEXT_LEN + 1} tokens"):
        engine.score([(random_tokens(CONTEXT_LEN + 1), 1)])


@pytest.mark.req("FR-050")
def test_how_likely_the_prompt_was(model: GPT, tiny_tokenizer: Tokenizer) -> None:
    prompt = random_tokens(45, seed=8)
    sampling = SamplingParams(max_tokens=4, temperature=0.0, logprobs=2)
    request = Request(
        request_id="p", prompt_tokens=tuple(prompt), sampling=sampling, prompt_logprobs=3
    )
    engine = Engine(model, tiny_tokenizer, step_tokens=16, max_rows=4)
    for _ in range(2):  # a prompt that is asked about is read as a whole, known or not
        [[first, *rest]] = engine.generate([request])
        assert [each.token for each in first.prompt_logprobs] == prompt
        assert first.prompt_logprobs[0].logprob is None
        logprobs = logits_of(model, prompt).log_softmax(-1)
        for place, each in enumerate(first.prompt_logprobs[1:]):
            assert each.logprob == pytest.approx(
                float(logprobs[place, prompt[place + 1]]), abs=LOGITS_ATOL
            )
            top = logprobs[place].topk(3)
            assert [token for token, _ in each.top_logprobs] == top.indices.tolist()
            assert [p for _, p in each.top_logprobs] == pytest.approx(
                top.values.tolist(), abs=LOGITS_ATOL
            )
        assert all(event.prompt_logprobs == () for event in rest)
        for event in (first, *rest):
            assert len(event.top_logprobs) == 2
            assert event.top_logprobs[0] == (event.token, pytest.approx(event.logprob))


@pytest.mark.req("FR-010")
def test_prompts_that_are_asked_about_give_way_too(model: GPT, tiny_tokenizer: Tokenizer) -> None:
    engine = small_engine(model, tiny_tokenizer, step_tokens=8)
    prompts = [random_tokens(60, seed=n) for n in range(4)]
    requests = [
        Request(
            request_id=str(n),
            prompt_tokens=tuple(prompt),
            sampling=SamplingParams(max_tokens=30, temperature=0.0),
            prompt_logprobs=0,
        )
        for n, prompt in enumerate(prompts)
    ]
    for prompt, [first, *_] in zip(prompts, engine.generate(requests), strict=True):
        logprobs = logits_of(model, prompt).log_softmax(-1)
        expected = [float(logprobs[n, prompt[n + 1]]) for n in range(len(prompt) - 1)]
        found = [each.logprob for each in first.prompt_logprobs[1:]]
        assert found == pytest.approx(expected, abs=LOGITS_ATOL)


def test_a_request_larger_than_all_memory(model: GPT, tiny_tokenizer: Tokenizer, ask: Ask) -> None:
    engine = small_engine(random_model("v1"), tiny_tokenizer)  # without windows it keeps all
    with pytest.raises(RequestTooLong, match=r"may grow to \d+ tokens, which take \d+ blocks"):
        engine.stream(ask(random_tokens(90), max_tokens=600, beyond_context="slide"))
    with pytest.raises(EngineError, match="raise --kv-memory"):
        Engine(model, tiny_tokenizer, kv_memory_bytes=1000)
    assert len(engine.generate([ask([1])])[0]) == 8


@pytest.mark.req("FR-050")
def test_an_answer_ends_before_a_stop_string(
    model: GPT, tiny_tokenizer: Tokenizer, ask: Ask
) -> None:
    prompt = random_tokens(12, seed=9)
    [free] = Engine(model, tiny_tokenizer).generate([ask(prompt, max_tokens=30)])
    text = "".join(event.text for event in free)
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    [cut] = Engine(model, tiny_tokenizer).generate([ask(prompt, max_tokens=30, stop=(stop,))])
    assert "".join(event.text for event in cut) == text[: text.index(stop)]
    assert cut[-1].finish_reason == "stop" and len(cut) <= len(free)


@pytest.mark.req("EC-10")
def test_on_an_event_loop(engine: Engine, ask: Ask) -> None:
    async def all_of(request: Request) -> list[int]:
        return [event.token async for event in engine.astream(request)]

    async def some_of(request: Request) -> None:
        stream = engine.astream(request)
        async for _ in stream:
            break
        await stream.aclose()  # type: ignore[attr-defined]

    async def both() -> list[int]:
        await some_of(ask(random_tokens(9), max_tokens=80))
        return await all_of(ask(random_tokens(9)))

    tokens = asyncio.run(both())
    assert tokens == tokens_of(engine.generate([ask(random_tokens(9))])[0])
    wait_until(lambda: engine.num_active == 0)


def test_one_broken_answer_ends_its_request_once(model: GPT, tiny_tokenizer: Tokenizer) -> None:
    engine = Engine(model, tiny_tokenizer)
    told: list[TokenEvent | Exception] = []
    logits = engine.forward.logits

    def broken(hidden_ND: torch.Tensor) -> torch.Tensor:
        logits_NV = logits(hidden_ND)
        if len(logits_NV) == 3:
            logits_NV[1] = float("nan")
        return logits_NV

    engine.forward.logits = broken  # type: ignore[method-assign]
    request = Request(
        request_id="n",
        prompt_tokens=tuple(random_tokens(5)),
        sampling=SamplingParams(max_tokens=20),
        num_samples=3,
    )
    engine.submit(request, told.append)
    wait_until(lambda: engine.num_active == 0)
    assert sum(isinstance(event, Exception) for event in told) == 1
    assert isinstance(told[-1], EngineError)


@pytest.mark.req("FR-011")
def test_a_tool_is_used_while_answering(model: GPT, tiny_tokenizer: Tokenizer, ask: Ask) -> None:
    """What it says is forced, told as such, read by the model, and not counted."""
    special, encode = tiny_tokenizer.special, tiny_tokenizer.encode
    start, end = special("<|python_start|>"), special("<|python_end|>")
    seen: list[torch.Tensor] = []
    script = [start, *encode("12*7"), end, *encode("so"), 7]
    engine = scripted(Engine(model, tiny_tokenizer), script, seen)
    num_chosen = 2 + len(encode("12*7")) + len(encode("so"))
    request = Request(
        request_id="t",
        prompt_tokens=(1, 2),
        sampling=SamplingParams(max_tokens=num_chosen, temperature=0.0),
        tools=True,
    )
    [events] = engine.generate([request])
    forced = [event.token for event in events if event.is_forced]
    assert forced == [special("<|output_start|>"), *encode("84"), special("<|output_end|>")]
    assert len(events) == num_chosen + len(forced)
    assert events[-1].finish_reason == "length"
    tokens = [1, 2, *tokens_of(events)]
    plain = Request(request_id="u", prompt_tokens=(1, 2), sampling=request.sampling)
    without = scripted(Engine(model, tiny_tokenizer), [start, *encode("12*7"), end, 5, 5, 5])
    assert not any(event.is_forced for event in without.generate([plain])[0])
    # The model has read what was forced.
    torch.testing.assert_close(
        seen[-1][0], logits_of(model, tokens[:-1])[-1], atol=LOGITS_ATOL, rtol=0
    )


@pytest.mark.req("FR-050")
def test_an_answer_that_must_be_json(model: GPT, tiny_tokenizer: Tokenizer) -> None:
    schema = (
        '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], '
        '"additionalProperties": false}'
    )
    engine = Engine(model, tiny_tokenizer)
    end = tiny_tokenizer.special("<|assistant_end|>")
    requests = [
        Request(
            request_id=str(seed),
            prompt_tokens=tuple(random_tokens(5, seed=seed)),
            sampling=SamplingParams(
                max_tokens=60, temperature=1.0, top_k=None, seed=seed, stop_tokens=(end,)
            ),
            schema=schema if seed % 2 else None,
        )
        for seed in range(6)
    ]
    answers = engine.generate(requests)
    for request, events in zip(requests, answers, strict=True):
        if request.schema is not None and events[-1].finish_reason == "stop":
            assert isinstance(json.loads("".join(event.text for event in events))["n"], int)
    assert any(
        request.schema and events[-1].finish_reason == "stop"
        for request, events in zip(requests, answers, strict=True)
    )
    with pytest.raises(ConfigError, match="schema"):
        engine.submit(
            Request(request_id="x", prompt_tokens=(1,), schema='{"type": "banana"}'), print
        )
    assert engine.num_active == 0


@pytest.mark.req("FR-052", "EC-1")
def test_a_schema_that_cannot_be_followed_ends_its_own_request_only(
    model: GPT, tiny_tokenizer: Tokenizer, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model, tiny_tokenizer)
    forbidden = Constraint.forbidden
    calls: list[Constraint] = []

    def fails_at_last(constraint: Constraint) -> torch.Tensor:
        calls.append(constraint)
        if len(calls) > 5:
            raise SchemaError("the JSON schema took 9 s")
        return forbidden(constraint)

    monkeypatch.setattr(Constraint, "forbidden", fails_at_last)
    neighbour = ask(random_tokens(9), max_tokens=40)
    beside = engine.stream(neighbour)
    told: list[TokenEvent | Exception] = []
    request = Request(
        request_id="j",
        prompt_tokens=(1, 2),
        sampling=SamplingParams(max_tokens=40),
        num_samples=2,
        schema='{"type": "array"}',
    )
    engine.submit(request, told.append)
    events = list(beside)
    assert_greedy(model, neighbour.prompt_tokens, tokens_of(events))
    assert len(events) == 40
    wait_until(lambda: engine.num_active == 0)
    assert [str(each) for each in told if isinstance(each, Exception)] == [
        "the JSON schema took 9 s"
    ]
    assert isinstance(told[-1], SchemaError)
    assert len(set(calls[1:])) == 2  # the second answer's is its own

"""engine.py and steps.py: exact whoever shares the batch, fair, unharmed by what goes wrong."""

import gc
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nanochat.checkpoint.resolve import load
from nanochat.common.errors import EngineError, Overflowed, RequestTooLong, TokenizerError
from nanochat.engine.admission import MAX_SLIDE_CONTEXTS
from nanochat.engine.engine import Engine
from nanochat.engine.request import NO_TOKEN, Request, TokenEvent
from nanochat.model.gpt import GPT
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.conftest import LOGITS_ATOL
from tests.engine.conftest import CONTEXT_LEN, GENERATIONS, random_model, random_tokens
from tests.patience import wait_until
from tests.twins.generation import assert_greedy, logits_of

Ask = Callable[..., Request]


def tokens_of(events: list[TokenEvent]) -> list[int]:
    return [event.token for event in events]


# ------------------------------------------------------------------------------- exactness


@pytest.mark.parametrize("piece", [1, 7, 64, 512])
@pytest.mark.req("FR-010")
@pytest.mark.req("FR-015")
def test_batched_in_pieces_equals_full_recomputation(
    any_model: GPT,
    tiny_tokenizer: Tokenizer,
    ask: Ask,
    piece: int,
) -> None:
    prompts = [random_tokens(length, seed=length) for length in (1, 2, 80, 5, 33, 13)]
    answer_lengths = [12, 9, 16, 1, 5, 12]
    engine = Engine(
        any_model, tiny_tokenizer, max_rows=3, step_tokens=piece
    )  # rows leave and join all the time
    answers = engine.generate(
        [ask(tokens, max_tokens=n) for tokens, n in zip(prompts, answer_lengths, strict=True)]
    )
    for prompt, answer, length in zip(prompts, answers, answer_lengths, strict=True):
        generated = tokens_of(answer)
        assert len(generated) == length
        assert_greedy(any_model, prompt, generated)
        logprobs = logits_of(any_model, [*prompt, *generated]).log_softmax(-1)
        places = range(len(prompt) - 1, len(prompt) + length - 1)
        exact = [
            float(logprobs[place, token]) for place, token in zip(places, generated, strict=True)
        ]
        assert [event.logprob for event in answer] == pytest.approx(exact, abs=LOGITS_ATOL)


def test_sampled_tokens_do_not_depend_on_neighbours(engine: Engine, ask: Ask) -> None:
    settings = [
        {"temperature": 1.0, "seed": 3},
        {"temperature": 1.3, "top_k": 5, "seed": 4},
        {"temperature": 0.9, "top_p": 0.5, "top_k": None, "seed": 5},
    ]
    prompts = [random_tokens(n, seed=n) for n in (4, 30, 9)]
    together = engine.generate(
        [ask(prompt, **one) for prompt, one in zip(prompts, settings, strict=True)]
    )
    for prompt, setting, events in zip(prompts, settings, together, strict=True):
        [alone] = engine.generate([ask(prompt, **setting)])
        assert tokens_of(alone) == tokens_of(events)
    [other] = engine.generate([ask(prompts[0], temperature=1.0, seed=99)])
    assert tokens_of(other) != tokens_of(together[0])


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.req("FR-009")
@pytest.mark.req("FR-014")
def test_the_reference_is_continued_within_and_past_its_context(
    generation: str, shared_dir: Path, ask: Ask
) -> None:
    [folder] = (shared_dir / "parity").glob(f"{generation}-*")
    loaded = load(str(folder / "base/base_checkpoints/d4"))
    engine = Engine(loaded.model, loaded.tokenizer)
    figures = json.loads((folder / "expected.json").read_text())["generation"]
    requests = [
        ask(
            figure["prompt_tokens"],
            beyond_context="slide",
            max_tokens=len(figure["greedy_tokens"]) - len(figure["prompt_tokens"]),
        )
        for figure in figures
    ]
    assert any(len(request.prompt_tokens) > engine.context_len for request in requests)
    for figure, events in zip(figures, engine.generate(requests), strict=True):
        expected = figure["greedy_tokens"][len(figure["prompt_tokens"]) :]
        if tokens_of(events) != expected:
            assert_greedy(loaded.model, figure["prompt_tokens"], tokens_of(events))
            assert_greedy(loaded.model, figure["prompt_tokens"], expected)

    long = load_file(folder / "long.safetensors")
    text = long["over_context_tokens"].flatten().tolist()
    assert len(text) > engine.context_len
    every_fifth = long["over_context_logits_every_5"].squeeze(0)
    for place in (255, 260, 330, 395):
        [[event]] = engine.generate([ask(text[: place + 1], beyond_context="slide", max_tokens=1)])
        logprobs = every_fifth[place // 5].log_softmax(-1)
        assert logprobs.max() - logprobs[event.token] <= 2 * LOGITS_ATOL
        assert event.logprob == pytest.approx(float(logprobs[event.token]), abs=LOGITS_ATOL)


# --------------------------------------------------------------------------------- endings


def test_an_empty_prompt_begins_with_bos(model: GPT, tiny_tokenizer: Tokenizer, ask: Ask) -> None:
    engine = Engine(model, tiny_tokenizer)
    empty, bos = engine.generate([ask([]), ask([tiny_tokenizer.bos])])
    assert tokens_of(empty) == tokens_of(bos)
    assert len(empty) == 8


def test_every_ending_says_why(engine: Engine, ask: Ask) -> None:
    prompt = random_tokens(5)
    [free] = engine.generate([ask(prompt, max_tokens=20)])
    assert [event.finish_reason for event in free] == [None] * 19 + ["length"]
    stop = tokens_of(free)[6]
    first = tokens_of(free).index(stop)
    [stopped] = engine.generate([ask(prompt, max_tokens=20, stop_tokens=(stop,))])
    assert tokens_of(stopped) == tokens_of(free)[: first + 1]
    assert stopped[-1].finish_reason == "stop"
    [filling] = engine.generate([ask(random_tokens(CONTEXT_LEN - 4), max_tokens=50)])
    assert len(filling) == 4
    assert filling[-1].finish_reason == "length"
    [sliding] = engine.generate(
        [ask(random_tokens(CONTEXT_LEN + 4), max_tokens=50, beyond_context="slide")]
    )
    assert len(sliding) == 50


def scripted(engine: Engine, tokens: list[int], seen: list[torch.Tensor] | None = None) -> Engine:
    """The same engine, saying the tokens it is told to, in order, whatever it reads.

    `seen` is given the logits it would have gone by.
    """
    logits = engine.forward.logits
    script = list(tokens)

    def say(hidden: torch.Tensor) -> torch.Tensor:
        logits_NV = logits(hidden)
        if seen is not None:
            seen.append(logits_NV.clone())
        logits_NV[:, script.pop(0)] = 100.0
        return logits_NV

    engine.forward.logits = say  # type: ignore[method-assign]
    return engine


@pytest.mark.req("FR-013")
@pytest.mark.req("FR-029")
def test_text_holds_whole_characters_and_no_special_tokens(
    model: GPT, tiny_tokenizer: Tokenizer, ask: Ask
) -> None:
    special, encode = tiny_tokenizer.special, tiny_tokenizer.encode
    snowman = encode("\u2603")  # three bytes, three tokens
    assert len(snowman) == 3
    end = special("<|assistant_end|>")
    tokens = [
        *encode("a"), *snowman, special("<|python_start|>"), *encode("b"), snowman[0], end
    ]  # fmt: skip
    engine = scripted(Engine(model, tiny_tokenizer), tokens)
    [events] = engine.generate([ask([1], max_tokens=50, stop_tokens=(end,))])
    assert tokens_of(events) == tokens
    texts = [event.text for event in events]
    assert texts == ["a", "", "", "\u2603", "", "b", "", "\ufffd"]
    cut = scripted(Engine(model, tiny_tokenizer), snowman[:2]).generate([ask([1], max_tokens=2)])
    assert [event.text for event in cut[0]] == ["", "\ufffd"]


# ------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("wrong", [-1, 300, 2**70, True, 1.0, "1"])
@pytest.mark.req("FR-062")
def test_no_number_outside_the_vocabulary_reaches_the_model(
    engine: Engine, ask: Ask, wrong: Any
) -> None:
    with pytest.raises(TokenizerError, match=r"prompt token .* at place 1 .* expected 0 to 299"):
        engine.stream(ask([5, wrong]))
    assert engine.num_active == 0


@pytest.mark.req("FR-014")
def test_a_prompt_that_does_not_fit_is_refused_with_the_numbers(engine: Engine, ask: Ask) -> None:
    with pytest.raises(RequestTooLong, match="prompt has 96 tokens but the context is 96"):
        engine.generate([ask(random_tokens(5)), ask(random_tokens(CONTEXT_LEN))])
    assert tokens_of(engine.generate([ask(random_tokens(CONTEXT_LEN - 1))])[0])
    too_long = random_tokens(CONTEXT_LEN * MAX_SLIDE_CONTEXTS)
    with pytest.raises(RequestTooLong, match="prompt has 960 tokens"):
        engine.stream(ask(too_long, beyond_context="slide"))


def test_an_id_is_used_by_one_request_at_a_time(engine: Engine, ask: Ask) -> None:
    request = ask(random_tokens(5), max_tokens=80)
    stream = engine.stream(request)
    with pytest.raises(EngineError, match="is running already"):
        engine.stream(request)
    assert len(list(stream)) == 80
    assert len(list(engine.stream(request))) == 80


def test_model_and_tokenizer_must_belong_together(model: GPT, tiny_tokenizer: Tokenizer) -> None:
    other = Tokenizer([bytes([byte]) for byte in range(256)])
    with pytest.raises(EngineError, match="tokenizer has 265 tokens, the model 300"):
        Engine(model, other)
    with pytest.raises(EngineError, match="max_rows is 0"):
        Engine(model, tiny_tokenizer, max_rows=0)


# ------------------------------------------------------------------- threads, cancelling, faults


@pytest.mark.req("FR-052")
@pytest.mark.req("SC-010")
def test_many_threads_stream_at_once_and_none_waits_for_another_to_end(
    engine: Engine, model: GPT, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [ask(random_tokens(3 + n, seed=n), max_tokens=60) for n in range(10)]
    answers: dict[str, list[int]] = {}
    told: list[TokenEvent] = []  # in the order in which the engine told them
    submit, run = engine.submit, engine.steps.run

    def submit_noted(request: Request, deliver: Callable[[Any], None]) -> None:
        submit(request, lambda event: (told.append(event), deliver(event)))

    def run_when_all_are_there(*arguments: Any) -> Any:
        wait_until(lambda: engine.num_active == 10)  # however slowly threads start
        monkeypatch.setattr(engine.steps, "run", run)
        return run(*arguments)

    monkeypatch.setattr(engine, "submit", submit_noted)
    monkeypatch.setattr(engine.steps, "run", run_when_all_are_there)

    def read(request: Request) -> None:
        answers[request.request_id] = [event.token for event in engine.stream(request)]

    threads = [threading.Thread(target=read, args=(request,)) for request in requests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first_end = next(place for place, event in enumerate(told) if event.finish_reason)
    assert {event.request_id for event in told[:first_end]} == {r.request_id for r in requests}
    for request in requests:
        assert_greedy(model, request.prompt_tokens, answers[request.request_id])


@pytest.mark.req("EC-10")
def test_who_leaves_frees_the_place_at_once(
    model: GPT, tiny_tokenizer: Tokenizer, ask: Ask
) -> None:
    engine = Engine(model, tiny_tokenizer, max_rows=1)
    running = engine.stream(ask([1], max_tokens=900, beyond_context="slide"))
    assert next(iter(running)).finish_reason is None
    waiting = engine.stream(ask([2], max_tokens=900, beyond_context="slide"))
    running.close()
    running.close()
    assert list(running) == []
    next(waiting)  # it has the only row now
    third = ask([3])
    stream = engine.stream(third)
    engine.cancel(third.request_id)
    assert [(event.token, event.finish_reason) for event in stream] == [(NO_TOKEN, "abort")]
    del waiting
    gc.collect()
    wait_until(lambda: engine.num_active == 0)
    engine.cancel("nobody")


def test_cancelled_while_its_prompt_is_read(
    model: GPT, tiny_tokenizer: Tokenizer, ask: Ask
) -> None:
    engine = Engine(model, tiny_tokenizer, max_rows=1, step_tokens=2)
    request = ask(random_tokens(900), beyond_context="slide")
    stream = engine.stream(request)
    wait_until(lambda: engine.stats().num_fed_tokens > 2)
    engine.cancel(request.request_id)
    assert [event.finish_reason for event in stream] == ["abort"]
    assert len(tokens_of(engine.generate([ask([1])])[0])) == 8


def test_a_reader_that_fails_harms_nobody_else(
    engine: Engine, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(event: object) -> None:
        raise RuntimeError("the loop is closed")

    engine.submit(ask([1], max_tokens=80), fail)
    assert len(engine.generate([ask([2], max_tokens=30)])[0]) == 30
    wait_until(lambda: engine.num_active == 0)
    assert "the reader of r0 failed" in caplog.text


def broken_steps(engine: Engine, errors: list[Exception | None]) -> Callable[..., Any]:
    """The engine's steps, failing at those that have an error."""
    run = engine.steps.run

    def step(chosen: Any = None) -> Any:
        if errors and (error := errors.pop(0)):
            raise error
        return run(chosen)

    return step


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("kernel"), r"the engine failed \(RuntimeError: kernel\)"),
        (
            MemoryError("no room"),
            r"out of memory: 1 answer of \d+ tokens on cpu, 0\.\d+ GiB kept for keys and values "
            r"\(no room\): ask for fewer answers at once, or start with a smaller --kv-memory",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory"),
        (EngineError("plain words"), "^plain words$"),
    ],
)
@pytest.mark.req("EC-1")
def test_a_step_that_breaks_is_told_and_the_next_request_is_served(
    tiny_tokenizer: Tokenizer,
    ask: Ask,
    error: Exception,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = Engine(random_model(), tiny_tokenizer)
    monkeypatch.setattr(engine.steps, "run", broken_steps(engine, [None, None, error]))
    stream = engine.stream(ask([1]))
    with pytest.raises(EngineError, match=message):
        list(stream)
    assert list(stream) == []
    assert "a step of the engine failed" in caplog.text
    assert len(engine.generate([ask([1])])[0]) == 8


def test_choosing_whom_to_serve_may_break_too(
    model: GPT, tiny_tokenizer: Tokenizer, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model, tiny_tokenizer)
    with monkeypatch.context() as patch:
        patch.setattr(engine.scheduler, "plan", broken_plan)
        with pytest.raises(EngineError, match="odd"):
            engine.generate([ask([1]), ask([2])])
    wait_until(lambda: engine.num_active == 0)
    assert len(engine.generate([ask([1])])[0]) == 8


def broken_plan() -> None:
    raise ValueError("odd")


@pytest.mark.req("EC-8")
@pytest.mark.req("SC-007")
def test_numbers_that_overflow_end_their_own_request_only(
    tiny_tokenizer: Tokenizer, ask: Ask
) -> None:
    model = random_model()
    good = ask(random_tokens(6, seed=1), max_tokens=30)
    [expected] = Engine(model, tiny_tokenizer).generate([good])
    used = {0, *good.prompt_tokens, *tokens_of(expected)}
    broken = next(token for token in range(300) if token not in used)
    model.embedding.weight.data[broken] = float("nan")
    engine = Engine(model, tiny_tokenizer)
    bad = engine.stream(ask([1, broken, 2]))
    [answer] = engine.generate([good])
    with pytest.raises(Overflowed, match="overflowed after 3 tokens"):
        list(bad)
    assert_greedy(model, good.prompt_tokens, tokens_of(answer))


def test_an_engine_at_rest_has_no_thread_and_uses_no_block(engine: Engine, ask: Ask) -> None:
    engine.generate([ask([1])])
    wait_until(lambda: engine._worker is None)
    stats = engine.stats()
    assert stats.num_free_blocks == stats.num_blocks and stats.num_running == 0
    wait_until(lambda: "nanochat-engine" not in [t.name for t in threading.enumerate()])


@pytest.mark.req("FR-064")
def test_sampling_past_the_context_leaves_a_model_that_can_be_trained(
    tiny_tokenizer: Tokenizer, ask: Ask
) -> None:
    model = random_model().requires_grad_(True)
    engine = Engine(model, tiny_tokenizer)
    engine.generate([ask([1], beyond_context="slide", max_tokens=CONTEXT_LEN + 20)])
    model(torch.tensor([random_tokens(CONTEXT_LEN)])).sum().backward()
    assert model.embedding.weight.grad is not None

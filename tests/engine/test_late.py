"""Tokens read a step late are the same tokens; on a GPU that saves the waiting."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from nanochat.common.transfer import Arrival, send
from nanochat.engine.engine import Engine
from nanochat.engine.forward import Forward
from nanochat.engine.late import Late
from nanochat.engine.request import NO_TOKEN, Request, SamplingParams, TokenEvent
from nanochat.engine.sampling import Chooser, sample
from nanochat.model.gpt import GPT
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.engine.conftest import VOCAB_SIZE, random_model, random_tokens
from tests.engine.test_exactness import small_engine
from tests.engine.test_forward import memory_of
from tests.engine.test_paged import read_prompts

Ask = Callable[..., Request]


def requests(ask: Ask) -> list[Request]:
    """Every way of choosing, ending and asking, more than there are rows."""
    prompts = [random_tokens(3 + 4 * n, seed=n) for n in range(10)]
    said: list[dict[str, Any]] = [
        {"max_tokens": 60},
        {"temperature": 1.0, "seed": 3, "max_tokens": 60},
        {"temperature": 1.2, "top_k": None, "top_p": 0.7, "seed": 4, "max_tokens": 60},
        {"temperature": 0.9, "repetition_penalty": 1.3, "frequency_penalty": 0.5, "max_tokens": 60},
        {"logit_bias": {7: 5.0}, "logprobs": 3, "max_tokens": 17},
        {"stop_tokens": tuple(range(100, 130)), "temperature": 1.0, "max_tokens": 40},
        {"max_tokens": 1},
        {"max_tokens": 2},
        {"temperature": 1.0, "seed": 6, "max_tokens": 12},
        {"temperature": 1.0, "max_tokens": 30},
    ]
    asked = [ask(prompt, **one) for prompt, one in zip(prompts, said, strict=True)]
    return [
        *asked[:3],
        replace(asked[3], prompt_logprobs=0),
        *asked[4:8],
        replace(asked[8], num_samples=4),
        replace(asked[9], schema='{"type":"integer"}'),
    ]


def told(events: list[TokenEvent]) -> list[tuple[object, ...]]:
    """Everything but the order in which answers to one prompt take turns, and last digits."""
    ordered = sorted(enumerate(events), key=lambda pair: (pair[1].sample, pair[0]))
    return [
        (e.sample, e.token, e.text, round(e.logprob, 3), len(e.top_logprobs), e.finish_reason)
        for _, e in ordered
    ]


class Watch:
    """How many steps were sent off with tokens that nobody had read."""

    def __init__(self, engine: Engine) -> None:
        self.num_ahead = self.num_steps = 0
        self._run = engine.steps.run
        engine.steps.run = self.run  # type: ignore[method-assign]

    def run(self, chosen: Any = None) -> Any:
        fed = self._run(chosen)
        self.num_steps += 1
        self.num_ahead += chosen is not None and any(
            sequence.tokens[-1] == NO_TOKEN for sequence in fed.plan.decode
        )
        return fed


@pytest.mark.parametrize("is_small", [False, True])
@pytest.mark.req("FR-010", "FR-015", "FR-063")
def test_a_step_late_is_the_same(
    any_model: GPT, tiny_tokenizer: Tokenizer, ask: Ask, is_small: bool
) -> None:
    def engine(runs_ahead: bool) -> Engine:
        if is_small:  # who gives way has a token that nobody has read
            return small_engine(
                any_model, tiny_tokenizer, num_rows=6, step_tokens=16, runs_ahead=runs_ahead
            )
        return Engine(any_model, tiny_tokenizer, max_rows=6, runs_ahead=runs_ahead)

    asked = requests(ask)
    late = engine(runs_ahead=True)
    watch = Watch(late)
    answers = late.generate(asked)
    assert watch.num_ahead > 0.5 * watch.num_steps
    assert not is_small or late.stats().num_preemptions > 0
    for events, expected in zip(answers, engine(runs_ahead=False).generate(asked), strict=True):
        assert told(events) == told(expected)
    stats = late.stats()
    assert stats.num_running == 0 and stats.num_free_blocks == stats.num_blocks


def test_what_is_cancelled_or_breaks_meanwhile(tiny_tokenizer: Tokenizer, ask: Ask) -> None:
    engine = Engine(random_model(), tiny_tokenizer, runs_ahead=True)
    run, errors = engine.steps.run, [None, None, None, RuntimeError("kernel")]

    def breaking(chosen: Any = None) -> Any:
        if errors and (error := errors.pop(0)):
            raise error
        return run(chosen)

    engine.steps.run = breaking  # type: ignore[method-assign]
    with pytest.raises(Exception, match="kernel"):
        engine.generate([ask([1], max_tokens=50), ask([2], max_tokens=50)])
    stream = engine.stream(ask([3], max_tokens=50))
    first = [next(stream) for _ in range(3)]
    stream.close()
    [events] = engine.generate([ask([3], max_tokens=3)])
    assert [event.token for event in events] == [event.token for event in first]
    stats = engine.stats()
    assert stats.num_running == 0 and stats.num_free_blocks == stats.num_blocks


def test_tokens_are_put_where_they_are_missing() -> None:
    tokens_B = torch.tensor([5, 0, 7, 0])
    Late(rows=[3, 1], sources=[0, 2], chosen_B=torch.tensor([11, 12, 13])).put(tokens_B)
    assert tokens_B.tolist() == [5, 13, 7, 11]


def test_numbers_there_and_back() -> None:
    numbers = send([3, 1, 2], torch.device("cpu"))
    assert numbers.dtype == torch.long
    assert Arrival([numbers, numbers * 0.5]).read() == [[3, 1, 2], [1.5, 0.5, 1.0]]


@pytest.mark.gpu
@pytest.mark.req("FR-063")
def test_a_gpu_is_not_waited_for() -> None:
    """Feeding a token that was not read and choosing the next asks for no synchronisation."""
    device = torch.device("cuda")
    forward = Forward(random_model().to(device), format="float32", device=device)
    memory = memory_of(forward)
    _, tables = read_prompts(forward, memory, [5, 17])
    choosers = [Chooser(SamplingParams(seed=n), vocab_size=VOCAB_SIZE) for n in range(2)]

    def step(at: int, chosen_B: torch.Tensor) -> torch.Tensor:
        late = Late(rows=[0, 1], sources=[0, 1], chosen_B=chosen_B)
        hidden = forward.decode([0, 0], [1, 2], [5 + at, 17 + at], tables, memory, late)
        return sample(forward.logits(hidden), choosers).tokens_B

    with torch.inference_mode():
        chosen_B = step(1, step(0, send([1, 2], device)))  # recorded
        torch.cuda.set_sync_debug_mode("error")
        try:
            chosen_B = step(2, chosen_B)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert 0 <= min(Arrival([chosen_B]).read()[0]) < VOCAB_SIZE

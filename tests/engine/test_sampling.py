"""sampling.py: the right distribution, and a choice that nobody else can change."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanochat.engine.request import SamplingParams
from nanochat.engine.sampling import CANDIDATES, Chooser, sample, uniform
from tests.twins.sampling import adjusted, chosen, distribution

GRID = [(index + 0.5) / 4000 for index in range(4000)]  # chances spread evenly over [0, 1)


def params(**values: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 1.0, "top_k": None, **values})


class Fated(Chooser):
    """Chooses by a given chance."""

    fate = 0.5

    @property
    def chance(self) -> float:
        return self.fate


def counts(logits_V: torch.Tensor, setting: SamplingParams) -> torch.Tensor:
    """How often each token comes when chances are spread evenly."""
    choosers = []
    for chance in GRID:
        choosers.append(Fated(setting, vocab_size=len(logits_V)))
        choosers[-1].fate = chance
    tokens = sample(logits_V.expand(len(GRID), -1), choosers).tokens_B
    return torch.bincount(tokens, minlength=len(logits_V)).double()


@pytest.mark.parametrize(
    "setting",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0, "top_k": 5},
        {"top_k": 1000},
        {"top_p": 0.6},
        {"top_p": 1e-9},
        {"min_p": 0.1},
        {"temperature": 1.5, "top_k": 8, "top_p": 0.7},
        {"top_k": 30, "top_p": 0.95, "min_p": 0.05},
        {"top_p": 0.9, "min_p": 0.3},
    ],
    ids=str,
)
@pytest.mark.req("FR-011", "FR-012")
def test_tokens_come_as_often_as_they_should(setting: dict[str, Any]) -> None:
    logits = torch.randn(80, generator=torch.Generator().manual_seed(1)) * 2
    expected = torch.tensor(distribution(logits.double().tolist(), params(**setting)))
    found = counts(logits, params(**setting))
    # Inversion of an even grid errs by one grid step at each end of a token's interval.
    assert (found / len(GRID) - expected).abs().max() <= 2 / len(GRID)
    assert found[expected == 0].sum() == 0


@pytest.mark.parametrize("size", [CANDIDATES[0] * 40, 5000, 32768])
@pytest.mark.parametrize(
    "setting",
    [
        {},
        {"top_k": 50},
        {"top_k": 200},
        {"top_k": 3000},
        {"top_p": 0.8},
        {"top_p": 0.2, "min_p": 0.1},
    ],
    ids=str,
)
def test_large_vocabularies_agree_with_the_twin(size: int, setting: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(size)
    logits = torch.randn(4, size, generator=generator) * torch.tensor([[0.1], [1.0], [3.0], [8.0]])
    choosers = [Chooser(params(seed=row, **setting), vocab_size=size) for row in range(4)]
    tokens = sample(logits, choosers).tokens_B.tolist()
    for row, chooser in enumerate(choosers):
        likely = distribution(logits[row].double().tolist(), chooser.params)
        assert tokens[row] in chosen(likely, chooser.chance)


SETTINGS = st.builds(
    params,
    temperature=st.sampled_from([0.0, 1e-9, 0.7, 1.0, 3.0]),
    top_k=st.sampled_from([None, 1, 3, 50, 90, 10_000]),
    top_p=st.sampled_from([0.3, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.0, 0.2]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.5, 0.5]),
    presence_penalty=st.sampled_from([0.0, 0.0, 1.0]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.7, -0.5]),
    logit_bias=st.sampled_from([{}, {}, {3: 4.0, 70: -100.0}]),
    logprobs=st.sampled_from([None, None, 0, 4]),
    seed=st.integers(0, 2**63 - 1),
)
TEXTS = st.lists(st.integers(0, 99), max_size=8)
ROWS = st.tuples(SETTINGS, TEXTS, TEXTS, st.sets(st.integers(0, 98)), st.integers(0, 3))


@given(st.lists(ROWS, min_size=1, max_size=6), st.integers(0, 2**30))
@pytest.mark.req("FR-011", "FR-012", "FR-015")
def test_batched_equals_alone_equals_the_twin(rows: list[Any], seed: int) -> None:
    logits_BV = torch.randn(len(rows), 100, generator=torch.Generator().manual_seed(seed)) * 3
    before = logits_BV.clone()
    choosers, forbidden = [], {}
    for row, (setting, prompt, answer, banned, which) in enumerate(rows):
        chooser = Chooser(setting, prompt, vocab_size=100, sample=which)
        for token in answer:
            chooser.add(torch.tensor(token) if token % 2 else token)
        choosers.append(chooser)
        if banned:
            forbidden[row] = torch.isin(torch.arange(100), torch.tensor(sorted(banned)))
    together = sample(logits_BV, choosers, forbidden)
    assert torch.equal(logits_BV, before)
    for row, (setting, prompt, answer, banned, _) in enumerate(rows):
        mine = {0: forbidden[row]} if banned else None
        alone = sample(logits_BV[row : row + 1], [choosers[row]], mine)
        token = int(together.tokens_B[row])
        assert token == alone.tokens_B[0]
        assert together.logprobs_B[row] == alone.logprobs_B[0]
        likely = distribution(adjusted(before[row], setting, prompt, answer, banned), setting)
        assert token in chosen(likely, choosers[row].chance)
        assert token not in banned


@pytest.mark.req("FR-011")
def test_greedy_takes_the_likeliest_and_the_first_of_equals() -> None:
    logits_BV = torch.randn(5, 640, generator=torch.Generator().manual_seed(0))
    logits_BV[3, 200] = logits_BV[3, 77] = logits_BV[3, 500] = 9.0
    for setting in ({"temperature": 0.0}, {"temperature": 1e-30}, {"top_k": 1}):
        choosers = [Chooser(params(**setting), vocab_size=640) for _ in range(5)]
        sampled = sample(logits_BV, choosers)
        assert torch.equal(sampled.tokens_B, logits_BV.argmax(-1))
        assert torch.allclose(sampled.logprobs_B, logits_BV.log_softmax(-1).max(-1).values)
    assert sampled.tokens_B[3] == 77


def test_logprobs_are_those_of_the_model_itself() -> None:
    logits_BV = torch.randn(9, 500, generator=torch.Generator().manual_seed(0))
    rows = [
        Chooser(params(temperature=5.0, top_k=3, seed=s, logit_bias={7: 50.0}), vocab_size=500)
        for s in range(8)
    ]
    rows.append(Chooser(params(logprobs=5), vocab_size=500))
    exact_BV = logits_BV.double().log_softmax(-1)
    sampled = sample(logits_BV, rows)
    for row in range(9):
        token = sampled.tokens_B[row]
        assert float(sampled.logprobs_B[row]) == pytest.approx(
            float(exact_BV[row, token]), abs=1e-5
        )
    assert sampled.top_tokens_BC is not None and sampled.top_logprobs_BC is not None
    expected = exact_BV.topk(5)
    assert torch.equal(sampled.top_tokens_BC, expected.indices)
    assert torch.allclose(sampled.top_logprobs_BC.double(), expected.values, atol=1e-5)


def test_equal_logits_give_equal_tokens_in_whatever_order_equals_are_found() -> None:
    logits = torch.zeros(1, 40)
    logits[0, [5, 9, 30]] = 8.0
    for fate, token in ((0.1, 5), (0.5, 9), (0.9, 30)):
        chooser = Fated(params(top_k=3), vocab_size=40)
        chooser.fate = fate
        assert sample(logits, [chooser]).tokens_B[0] == token


def test_answers_to_one_prompt_differ_and_the_first_is_as_alone() -> None:
    logits = torch.zeros(1, 1000)
    setting = params(seed=5)
    choosers = [Chooser(setting, vocab_size=1000, sample=index) for index in range(8)]
    tokens = [int(sample(logits, [chooser]).tokens_B[0]) for chooser in choosers]
    assert len(set(tokens)) >= 7
    alone = Chooser(setting, vocab_size=1000)
    assert tokens[0] == sample(logits, [alone]).tokens_B[0]
    for _ in range(100):
        alone.add(3)
    assert alone.step == 100 and alone.chance == uniform(5, 100)


def test_a_long_answer_is_counted_to_the_end() -> None:
    chooser = Chooser(params(frequency_penalty=0.01), (1, 2), vocab_size=10)
    for step in range(300):
        chooser.add(step % 3)
    logits = torch.zeros(10)
    chooser.adjust(logits)
    assert logits.tolist() == pytest.approx([-1.0, -1.0, -1.0] + [0.0] * 7)


@pytest.mark.req("SC-007", "EC-8", "FR-062")
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("size", [10, 1000, 32768])
def test_broken_logits_choose_some_token_and_say_so(broken: float, size: int) -> None:
    settings = [
        {},
        {"temperature": 0.0},
        {"top_k": 5},
        {"top_p": 0.5},
        {"min_p": 0.5},
        {"top_k": 2000},
    ]
    logits_BV = torch.full((len(settings) + 1, size), broken)
    logits_BV[-1] = torch.arange(size) / size
    choosers = [Chooser(params(**setting), vocab_size=size) for setting in (*settings, {})]
    sampled = sample(logits_BV, choosers)
    assert 0 <= sampled.tokens_B.min() and sampled.tokens_B.max() < size
    assert torch.isfinite(sampled.logprobs_B).tolist() == [False] * len(settings) + [True]


def test_chance_is_even_and_repeatable() -> None:
    values = [uniform(seed, step) for seed in range(100) for step in range(100)]
    assert values == [uniform(seed, step) for seed in range(100) for step in range(100)]
    assert len(set(values)) > 9_990
    assert 0.0 <= min(values) and max(values) < 1.0
    tenths = [sum(1 for value in values if int(value * 10) == tenth) for tenth in range(10)]
    assert sum((count - 1000) ** 2 / 1000 for count in tenths) < 27.9  # chi-squared, 9 free, 0.1%
    assert uniform(2**63 - 1, 5) != uniform(2**63 - 1, 6)

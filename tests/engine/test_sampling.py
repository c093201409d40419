"""sampling.py: the right distribution, and a choice that nobody else can change."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanochat.engine.request import SamplingParams
from nanochat.engine.sampling import NUCLEUS_CANDIDATES, choose, sample, uniform

GRID = [(index + 0.5) / 4000 for index in range(4000)]  # chances spread evenly over [0, 1)


def params(**values: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 1.0, "top_k": None, **values})


def twin(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """The distribution that should be sampled from, by sorting everything, in float64."""
    probabilities = (logits.double() / params.temperature).softmax(-1)
    ordered, tokens = probabilities.sort(descending=True)
    if params.top_k is not None:
        ordered[params.top_k :] = 0
    ordered /= ordered.sum()
    mass = 0.0
    for place in range(ordered.numel()):
        if place and mass >= params.top_p:
            ordered[place] = 0
        mass += float(ordered[place])
    return torch.zeros_like(ordered).scatter(0, tokens, ordered / ordered.sum())


@pytest.mark.parametrize(
    "setting",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0, "top_k": 5},
        {"top_k": 1000},
        {"top_p": 0.6},
        {"top_p": 1e-9},
        {"temperature": 1.5, "top_k": 8, "top_p": 0.7},
    ],
    ids=str,
)
@pytest.mark.req("FR-011")
@pytest.mark.req("FR-012")
def test_tokens_come_as_often_as_they_should(setting: dict[str, Any]) -> None:
    logits = torch.randn(40, generator=torch.Generator().manual_seed(1)) * 2
    counts = torch.zeros(40, dtype=torch.float64)
    for chance in GRID:
        counts[choose(logits, params(**setting), chance)] += 1
    # Inversion of an even grid errs by one grid step at each end of a token's interval.
    expected = twin(logits, params(**setting))
    assert (counts / len(GRID) - expected).abs().max() <= 2 / len(GRID)
    assert counts[expected == 0].sum() == 0


@pytest.mark.req("FR-011")
def test_greedy_takes_the_likeliest() -> None:
    logits_BV = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    for setting in ({"temperature": 0.0}, {"temperature": 1e-30}, {"top_k": 1}):
        tokens_B, logprobs_B = sample(logits_BV, [params(**setting)] * 5, [0] * 5)
        assert torch.equal(tokens_B, logits_BV.argmax(-1))
        assert torch.allclose(logprobs_B, logits_BV.log_softmax(-1).max(-1).values)


def test_logprobs_are_those_of_the_model_itself() -> None:
    logits_BV = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    hot = [params(temperature=5.0, top_k=3, seed=seed) for seed in range(3)]
    tokens_B, logprobs_B = sample(logits_BV, hot, [0, 1, 2])
    expected = [float(logits_BV[row].softmax(-1)[tokens_B[row]].log()) for row in range(3)]
    assert logprobs_B.tolist() == pytest.approx(expected, abs=1e-5)


SETTINGS = st.builds(
    params,
    temperature=st.sampled_from([0.0, 0.7, 1.0, 3.0]),
    top_k=st.sampled_from([None, 1, 3, 50]),
    top_p=st.sampled_from([0.3, 0.9, 1.0]),
    seed=st.integers(0, 2**63 - 1),
)


@given(st.lists(st.tuples(SETTINGS, st.integers(0, 1000)), min_size=1, max_size=5))
def test_neighbours_change_nothing(rows: list[tuple[SamplingParams, int]]) -> None:
    logits_BV = torch.randn(len(rows), 80, generator=torch.Generator().manual_seed(len(rows)))
    settings, steps = [row[0] for row in rows], [row[1] for row in rows]
    together = sample(logits_BV, settings, steps)
    for row in range(len(rows)):
        alone = sample(logits_BV[row : row + 1], settings[row : row + 1], steps[row : row + 1])
        assert together.tokens_B[row] == alone.tokens_B[0]
        assert torch.allclose(together.logprobs_B[row], alone.logprobs_B[0])


def test_a_wide_nucleus_is_found_in_a_large_vocabulary() -> None:
    size = 4 * NUCLEUS_CANDIDATES
    flat = torch.linspace(0, 0.1, size)  # nearly even: the nucleus is larger than the candidates
    chosen = {int(choose(flat, params(top_p=0.9), chance)) for chance in GRID}
    assert min(chosen) >= size * 0.08  # the least likely tenth, roughly, never comes
    assert max(chosen) == size - 1
    peaked = flat.clone()
    peaked[7] = 20.0
    assert {int(choose(peaked, params(top_p=0.9), chance)) for chance in GRID[::100]} == {7}


def test_rounding_never_leaves_what_was_kept() -> None:
    logits = torch.zeros(10)
    logits[3:6] = 12.0
    last_chance = 1 - 2.0**-24
    for setting in ({"top_k": 3}, {"top_p": 0.9}, {"top_k": 5, "top_p": 0.9}):
        assert int(choose(logits, params(**setting), last_chance)) in (3, 4, 5)
    assert 0 <= int(choose(torch.full((10,), math.nan), params(), 0.5)) < 10


def test_chance_is_even_and_repeatable() -> None:
    values = [uniform(seed, step) for seed in range(100) for step in range(100)]
    assert values == [uniform(seed, step) for seed in range(100) for step in range(100)]
    assert len(set(values)) > 9_990
    assert 0.0 <= min(values) and max(values) < 1.0
    counts = [sum(1 for value in values if int(value * 10) == tenth) for tenth in range(10)]
    assert sum((count - 1000) ** 2 / 1000 for count in counts) < 27.9  # chi-squared, 9 free, 0.1%
    assert uniform(2**63 - 1, 5) != uniform(2**63 - 1, 6)

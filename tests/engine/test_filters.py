"""filters.py: what is found without sorting is what sorting finds."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanochat.engine import filters
from nanochat.engine.filters import (
    MAX_CHANCE,
    keep_largest,
    keep_nucleus,
    largest,
    least_needed,
    most_likely,
    pick,
)

SHAPES = st.tuples(st.integers(1, 3), st.sampled_from([1, 31, 64, 300, 4096, 9000]))


def values(shape: tuple[int, int], seed: int, num_different: int | None = None) -> torch.Tensor:
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return numbers if num_different is None else (numbers * num_different).round()


@given(
    SHAPES, st.integers(0, 999), st.sampled_from([None, 2, 20]), st.sampled_from([1, 8, 64, 256])
)
@pytest.mark.req("FR-011")
def test_the_largest_are_found(
    shape: tuple[int, int], seed: int, num_different: int | None, k: int
) -> None:
    numbers = values(shape, seed, num_different)
    found, tokens = largest(numbers, k)
    assert torch.equal(found, numbers.sort(dim=-1, descending=True).values[:, :k])
    assert torch.equal(numbers.gather(1, tokens), found)
    assert all(len(set(row)) == len(row) for row in tokens.tolist())
    assert torch.equal(most_likely(numbers), numbers.argmax(-1))


@given(SHAPES, st.integers(0, 999), st.floats(1e-6, 1.0), st.sampled_from([0.05, 1.0, 4.0]))
@pytest.mark.req("FR-011")
def test_a_nucleus_is_as_small_as_it_can_be(
    shape: tuple[int, int], seed: int, top_p: float, sharpness: float
) -> None:
    scaled = values(shape, seed) * sharpness
    weights = scaled.softmax(-1)
    column = torch.full((shape[0], 1), top_p)
    counted = weights * (weights >= filters._least_by_counting(weights, scaled, column))
    for kept in (keep_nucleus(weights, scaled, column), counted):
        is_kept = kept > 0
        assert torch.equal(kept[is_kept], weights[is_kept])
        for row in range(shape[0]):
            inside, outside = weights[row][is_kept[row]], weights[row][~is_kept[row]]
            assert inside.sum() >= top_p - 1e-5
            above = inside[inside > inside.min() * (1 + 4e-6)]  # closer ones count as equal
            assert above.sum() <= top_p + 1e-5
            assert not len(outside) or outside.max() <= inside.min() * (1 + 1e-5)


def test_equals_stay_together() -> None:
    numbers = torch.tensor([3.0, 1.0, 2.0, 2.0, 2.0])
    keep_largest(numbers, 2)
    assert numbers.tolist() == [3.0, -torch.inf, 2.0, 2.0, 2.0]
    weights = torch.tensor([[0.4, 0.2, 0.2, 0.2]])
    assert least_needed(weights, torch.tensor([[0.5]])) == weights[0, 1]
    assert least_needed(weights, torch.tensor([[0.3]])) == weights[0, 0]
    assert keep_nucleus(weights, weights.log(), torch.tensor([[0.5]])).count_nonzero() == 4


@given(
    st.sampled_from([3, 128, 300, 5000]),
    st.integers(0, 999),
    st.one_of(st.floats(0, MAX_CHANCE), st.just(MAX_CHANCE), st.just(0.0)),
)
def test_what_has_no_weight_is_never_picked(size: int, seed: int, chance: float) -> None:
    weights = values((1, size), seed).abs()
    weights[values((1, size), seed + 1) > -1] = 0.0
    weights[0, seed % size] = 1e-6
    place = int(pick(weights, torch.tensor([[chance]])))
    assert weights[0, place] > 0
    cumulated = weights.double().cumsum(-1)[0]
    assert cumulated[place] >= cumulated[-1] * chance - 1e-3
    assert cumulated[place] - weights[0, place] <= cumulated[-1] * chance + 1e-3

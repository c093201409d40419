"""The computed shuffle: a permutation, the same in parts, different for every key, even."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.batches.order import shuffled

pytestmark = pytest.mark.req("FR-033")


@given(st.integers(1, 3000), st.integers())
def test_a_permutation(size: int, seed: int) -> None:
    assert sorted(shuffled(range(size), size, (seed,))) == [*range(size)]


@given(st.integers(2, 10**12), st.integers(0, 2**64), st.data())
def test_a_part_needs_only_itself(size: int, seed: int, data: st.DataObject) -> None:
    places = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=9, unique=True))
    values = shuffled(places, size, (seed, "epoch"))
    assert [int(shuffled([place], size, (seed, "epoch"))[0]) for place in places] == values.tolist()
    assert len(set(values.tolist())) == len(places)
    assert all(0 <= value < size for value in values)


def test_another_key_is_another_order() -> None:
    orders = {
        tuple(shuffled(range(50), 50, (seed, epoch))) for seed in range(5) for epoch in (0, 1)
    }
    assert len(orders) == 10
    assert tuple(range(50)) not in orders


def test_it_never_changes() -> None:
    # Runs that are resumed after an upgrade depend on these very numbers.
    assert shuffled(range(8), 8, ("documents", 0, 0)).tolist() == GOLDEN


GOLDEN = [5, 1, 4, 0, 6, 2, 3, 7]


@pytest.mark.parametrize("size", [5, 6, 16])
def test_every_value_comes_first_as_often(size: int) -> None:
    num_keys = 200 * size
    firsts = Counter(int(shuffled([0], size, (key,))[0]) for key in range(num_keys))
    # 200 expected of each, with a deviation of 14: five deviations.
    assert all(abs(firsts[value] - 200) < 75 for value in range(size))


def test_neighbours_part() -> None:
    values = shuffled(np.arange(100_000), 100_000, (1,))
    assert np.abs(np.diff(values)).mean() == pytest.approx(100_000 / 3, rel=0.02)
    assert np.corrcoef(values, np.arange(100_000))[0, 1] == pytest.approx(0, abs=0.02)

"""Which losses are unusual."""

import math
import random

import pytest

from nanochat.train.guard import FEWEST, SIGMAS, WINDOW, Guard


@pytest.mark.req("EC-8", "FR-060")
def test_spikes_stand_out_of_the_recent_losses() -> None:
    noise = random.Random(0)
    guard = Guard(max_skips=3)
    for _ in range(500):
        assert guard.see(3.0 + noise.gauss(0, 0.1), is_good=True) == "healthy"
    assert 5.0 < guard.sigmas(3.6) < 7.0
    assert guard.see(3.0 + 2 * SIGMAS * 0.1, is_good=True) == "spike"
    assert guard.see(2.0, is_good=True) == "healthy"  # far below is no harm
    for _ in range(WINDOW):
        guard.see(9.0, is_good=True)
    assert guard.see(9.0, is_good=True) == "healthy"  # what was unusual has become usual


def test_too_few_say_nothing() -> None:
    guard = Guard(max_skips=3)
    for _ in range(FEWEST - 1):
        guard.see(1.0, is_good=True)
    assert guard.sigmas(100.0) == 0.0
    guard.see(1.0, is_good=True)
    assert guard.sigmas(1.0) == 0.0 and guard.sigmas(1.1) == math.inf
    guard.forget()
    assert guard.sigmas(100.0) == 0.0


@pytest.mark.req("EC-8")
def test_bad_updates_are_counted_in_a_row() -> None:
    guard = Guard(max_skips=3)
    seen = [guard.see(math.nan, is_good=good) for good in (False, False)]
    assert seen == ["discarded", "discarded"]
    assert guard.see(1.0, is_good=True) == "healthy"
    assert [guard.see(math.inf, is_good=False) for _ in range(3)][-1] == "stuck"
    guard.forget()
    assert guard.see(math.nan, is_good=False) == "discarded"
    assert Guard(max_skips=1).see(math.nan, is_good=False) == "stuck"

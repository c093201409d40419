"""Rates over a run: figures of karpathy/nanochat's own functions (base_train.py, chat_sft.py at
92d63d4), executed and written down."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.train.schedule import Schedule

# (step, multiplier of the learning rates, Muon's momentum, Muon's weight decay from 0.28)
FIGURES = {
    1000: [
        (0, 0.025, 0.85, 0.28),
        (1, 0.05, 0.8503, 0.2799993091),
        (39, 1.0, 0.8617, 0.2789504971),
        (40, 1.0, 0.862, 0.2788960582),
        (350, 1.0, 0.955, 0.20355867),
        (351, 0.9985384615, 0.9553, 0.2031664718),
        (500, 0.7807692308, 0.9538461538, 0.14),
        (998, 0.0529230769, 0.9002153846, 2.7635e-06),
        (999, 0.0514615385, 0.9001076923, 6.909e-07),
    ],
    100: [
        (36, 0.925, 0.8608, 0.1996091008),
        (39, 1.0, 0.8617, 0.1874233088),
        (40, 0.9269230769, 0.862, 0.1832623792),
        (99, 0.0646153846, 0.8797, 6.90815e-05),
    ],
    20: [(0, 0.025, 0.85, 0.28), (19, 0.5, 0.8557, 0.0017236323)],
}


@pytest.mark.parametrize("num_steps", FIGURES)
@pytest.mark.req("FR-024")
def test_pretraining(num_steps: int) -> None:
    schedule = Schedule(num_steps=num_steps, weight_decay=0.28)
    for step, lr, momentum, weight_decay in FIGURES[num_steps]:
        assert schedule.lr_at(step) == pytest.approx(lr, abs=1e-9)
        assert schedule.momentum_at(step) == pytest.approx(momentum, abs=1e-9)
        assert schedule.weight_decay_at(step) == pytest.approx(weight_decay, abs=1e-9)


@pytest.mark.req("FR-024")
def test_fine_tuning_falls_to_nothing_over_its_second_half() -> None:
    schedule = Schedule(num_steps=100, warmup_steps=0, decay_fraction=0.5, final_lr=0.0)
    found = [schedule.lr_at(step) for step in (0, 25, 50, 75, 90, 100)]
    assert found == pytest.approx([1.0, 1.0, 1.0, 0.5, 0.2, 0.0])


def test_nothing_moves_that_should_not() -> None:
    schedule = Schedule(
        num_steps=10, warmup_steps=0, decay_fraction=0.0, momentum=(0.95, 0.95, 0.95)
    )
    assert schedule.decay_steps == 0
    for step in range(10):
        assert schedule.lr_at(step) == 1.0
        assert schedule.momentum_at(step) == pytest.approx(0.95)
        assert schedule.weight_decay_at(step) == 0.0
    after = Schedule(num_steps=1000, decay_fraction=0.0)
    assert after.momentum_at(500) == after.momentum_at(999) == 0.97


@given(
    num_steps=st.integers(1, 3000),
    warmup_steps=st.integers(0, 100),
    decay_fraction=st.floats(0.0, 1.0),
    peak_lr=st.floats(0.01, 2.0),
    final_lr=st.floats(0.0, 1.0),
)
@pytest.mark.req("FR-024", "FR-060")
def test_a_rate_rises_once_and_falls_once(
    num_steps: int, warmup_steps: int, decay_fraction: float, peak_lr: float, final_lr: float
) -> None:
    schedule = Schedule(
        num_steps=num_steps,
        warmup_steps=warmup_steps,
        decay_fraction=decay_fraction,
        peak_lr=peak_lr,
        final_lr=final_lr,
        weight_decay=0.3,
    )
    rates = [schedule.lr_at(step) for step in range(num_steps)]
    assert all(0.0 < rate <= peak_lr * (1 + 1e-12) for rate in rates)
    warm, rest = rates[:warmup_steps], rates[warmup_steps:]
    assert warm == sorted(warm)
    assert all(later <= earlier + 1e-12 for earlier, later in zip(rest, rest[1:], strict=False))
    momenta = [schedule.momentum_at(step) for step in range(num_steps)]
    assert all(0.85 - 1e-12 <= momentum <= 0.97 + 1e-12 for momentum in momenta)
    decays = [schedule.weight_decay_at(step) for step in range(num_steps)]
    assert decays[0] == 0.3 and decays == sorted(decays, reverse=True) and min(decays) >= 0.0

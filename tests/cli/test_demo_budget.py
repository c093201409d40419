"""How the demo's minutes become steps."""

import pytest

from nanochat.cli.demo_budget import BESIDE_TRAINING, Budget

SHARES = {"pretrain": 0.5, "midtrain": 0.35, "sft": 0.15}
TOTAL_S = 100.0
TRAINING_S = TOTAL_S * (1 - sum(BESIDE_TRAINING.values()))


class Clock:
    """A clock that is set."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.req("SC-003", "FR-078")
def test_a_steady_machine_gets_its_shares() -> None:
    clock = Clock()
    budget = Budget(TOTAL_S, SHARES, tokens_per_s=1000.0, clock=clock)
    for stage, share in SHARES.items():
        assert budget.num_steps(stage, 100) == pytest.approx(TRAINING_S * share * 10, abs=1)
        clock.now_s += TRAINING_S * share + TOTAL_S * BESIDE_TRAINING[stage]
        budget.spent(stage, TRAINING_S * share, TRAINING_S * share * 1000)
    assert clock.now_s == pytest.approx(1000.0 + TOTAL_S)


@pytest.mark.req("SC-003", "FR-078")
def test_a_machine_that_slows_down_trains_less_not_longer() -> None:
    clock = Clock()
    budget = Budget(TOTAL_S, SHARES, tokens_per_s=1000.0, clock=clock)
    clock.now_s += 62.5 + TOTAL_S * BESIDE_TRAINING["pretrain"]
    budget.spent("pretrain", 62.5, 50_000)  # was to take 44 seconds
    assert budget.tokens_per_s == 800.0
    left_s = TRAINING_S - 62.5
    assert budget.num_steps("midtrain", 100) == pytest.approx(left_s * 0.7 * 8, abs=1)
    clock.now_s += 60.0  # tokens took longer than they should
    budget.spent("midtrain", 30.0, 30.0 * 800.0)
    # Nothing is left, but fine-tuning has half of its time all the same.
    assert budget.num_steps("sft", 10) == int(TRAINING_S * 0.15 / 2 * 800.0 / 10)

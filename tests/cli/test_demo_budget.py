"""How the demo's minutes become steps."""

import pytest

from nanochat.cli.demo_budget import Budget

SHARES = {"pretrain": 0.5, "midtrain": 0.35, "sft": 0.15}


@pytest.mark.req("SC-003", "FR-078")
def test_a_steady_machine_gets_its_shares() -> None:
    budget = Budget(100.0, SHARES, tokens_per_s=1000.0)
    assert budget.num_steps("pretrain", 100) == 500
    budget.spent("pretrain", 50.0, 50_000)
    assert budget.num_steps("midtrain", 100) == 350
    budget.spent("midtrain", 35.0, 35_000)
    assert budget.num_steps("sft", 250) == 60


@pytest.mark.req("SC-003", "FR-078")
def test_a_machine_that_slows_down_trains_less_not_longer() -> None:
    budget = Budget(100.0, SHARES, tokens_per_s=1000.0)
    budget.spent("pretrain", 62.5, 50_000)  # was to take 50 seconds
    assert budget.tokens_per_s == 800.0
    assert budget.num_steps("midtrain", 100) == int(37.5 * 0.7 * 800.0 / 100)
    budget.spent("midtrain", 37.5, 37.5 * 800.0)
    # nothing is left, but fine-tuning has half of its 15 seconds all the same
    assert budget.num_steps("sft", 250) == int(7.5 * 800.0 / 250)

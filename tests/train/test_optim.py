"""The optimizer: its twin, accumulation, narrow copies of wide masters, moments that come back."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nanochat.batches.batch import Batch
from nanochat.common.errors import CheckpointError
from nanochat.model.config import GENERATIONS
from nanochat.model.gpt import GPT
from nanochat.train import optim
from nanochat.train.loss import loss_sum
from nanochat.train.optim import (
    RECIPES,
    AdamRecipe,
    Optimizer,
    OptimizerRecipe,
    Rates,
    role_of,
)
from tests.conftest import DOUBLE_ATOL, LAYER_ATOL
from tests.fakes import random_gpt, tiny_config
from tests.twins.optim import SlowOptimizer


def batches(num: int, rows: int = 2, width: int = 16, seed: int = 0) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 70, (num, rows, width + 1), generator=generator)
    return [Batch(part[:, :-1].contiguous(), part[:, 1:].contiguous()) for part in tokens]


def in_float64(recipe: OptimizerRecipe) -> OptimizerRecipe:
    return dataclasses.replace(recipe, muon=dataclasses.replace(recipe.muon, always_bfloat16=False))


def backward(model: GPT, batch: Batch, num_targets: int | None = None) -> float:
    loss = loss_sum(model, batch) / (num_targets or batch.num_targets)
    loss.backward()
    return float(loss.detach())


def changing(step: int) -> Rates:
    """Rates that move at every step, as a schedule's do."""
    return Rates(lr=1.0 - step / 40, momentum=0.85 + step / 300, weight_decay=0.3 - step / 100)


# ------------------------------------------------------------------------------------- the twin


@pytest.mark.parametrize(("generation", "depth"), [("v3", 2), ("v4", 2), ("v5", 3)])
@pytest.mark.req("FR-017")
def test_thirty_steps_equal_the_slow_twin(generation: Any, depth: int) -> None:
    config = tiny_config(depth, generation)
    ours, twin = (random_gpt(config, dtype=torch.float64) for _ in range(2))
    recipe = in_float64(RECIPES[generation])
    optimizer = Optimizer(ours, recipe, lr_scale=0.5)
    weights = {name: weight.data for name, weight in twin.named_parameters()}
    slow = SlowOptimizer(weights, recipe, config.model_dim, lr_scale=0.5)
    before = {name: weight.clone() for name, weight in weights.items()}
    for step, batch in enumerate(batches(30)):
        loss = backward(ours, batch)
        twin_loss = F.cross_entropy(twin(batch.inputs_BT).mT, batch.targets_BT)
        assert loss == pytest.approx(float(twin_loss.detach()), abs=DOUBLE_ATOL)
        grads = torch.autograd.grad(twin_loss, list(twin.parameters()))
        optimizer.step(changing(step))
        slow.step(dict(zip(weights, grads, strict=True)), changing(step))
    for name, master in optimizer.masters().items():
        torch.testing.assert_close(master, weights[name], atol=DOUBLE_ATOL, rtol=0, msg=name)
        assert (weights[name] - before[name]).abs().max() > 1e-3, f"{name} has not moved"
    for name, moment in optimizer.state().items():
        if name != "num_steps":
            torch.testing.assert_close(moment, slow.moments[name], atol=DOUBLE_ATOL, rtol=1e-6)


# -------------------------------------------------------------------------------------- roles


@pytest.mark.req("FR-017")
def test_every_weight_has_a_role_and_its_rates() -> None:
    """Of karpathy/nanochat's base_train.py at 92d63d4: width 32 scales tables by sqrt(768/32)."""
    model = random_gpt(tiny_config(3))
    roles = {name: role_of(name) for name, _ in model.named_parameters()}
    assert roles["value_embeddings.2.weight"] == "value_embedding"
    assert roles["blocks.2.attention.value_gate.weight"] == "matrix"
    scalars = {name: role for name, role in roles.items() if "." not in name}
    assert scalars == {
        "residual_lambdas": "residual",
        "input_lambdas": "input",
        "smear_lambda": "smear",
        "backout_lambda": "smear",
    }
    assert roles["smear_gate.weight"] == "smear"
    wide = (768 / 32) ** 0.5
    rates = Optimizer(model, RECIPES["v5"], lr_scale=0.25).rates_by_role()
    assert rates == pytest.approx(
        {
            "head": 0.008 * wide * 0.25,
            "embedding": 0.3 * wide * 0.25,
            "value_embedding": 0.15 * wide * 0.25,
            "residual": 0.005 * 0.25,
            "input": 0.5 * 0.25,
            "smear": 0.2,  # whatever the batch
            "matrix": 0.02 * 0.25,
        }
    )
    old = Optimizer(random_gpt(tiny_config(3, "v1")), RECIPES["v1"]).rates_by_role()
    assert old == pytest.approx({"head": 0.004 * wide, "embedding": 0.3 * wide, "matrix": 0.02})


def test_recipes_are_those_of_the_generations() -> None:
    assert set(RECIPES) == set(GENERATIONS)
    v3, v4, v5 = (RECIPES[name] for name in ("v3", "v4", "v5"))
    assert v4.adam == v5.adam != v3.adam
    assert v5.adam["embedding"] == AdamRecipe(
        lr=0.3, betas=(0.8, 0.995), weight_decay=0.001, scales_with_width=True
    )
    assert [r.muon.always_bfloat16 for r in (v3, v4, v5)] == [True, True, False]
    assert [r.muon.weight_decay for r in (v3, v4, v5)] == [0.2, 0.28, 0.28]
    assert [r.muon.slack for r in (v3, v4, v5)] == [1.02, 1.01, 1.01]


# ---------------------------------------------------------------------------------- gradients


def trained(parts: int, dtype: torch.dtype = torch.float32, steps: int = 2) -> dict[str, Tensor]:
    """Masters after steps of four rows, computed in so many parts."""
    model = random_gpt(tiny_config(3))
    optimizer = Optimizer(model, RECIPES["v5"], compute_dtype=dtype)
    for step, batch in enumerate(batches(steps, rows=4)):
        for inputs, targets in zip(
            batch.inputs_BT.chunk(parts), batch.targets_BT.chunk(parts), strict=True
        ):
            backward(model, Batch(inputs, targets), batch.num_targets)
        optimizer.step(changing(step))
    return optimizer.masters()


def furthest(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.req("FR-018")
def test_four_small_steps_are_one_large() -> None:
    whole = trained(parts=1, steps=1)
    assert furthest(trained(parts=4, steps=1), whole) <= LAYER_ATOL
    assert furthest(trained(parts=2, steps=1), whole) <= LAYER_ATOL


@pytest.mark.req("FR-018")
def test_gradients_of_narrow_copies_are_summed_wide() -> None:
    """Parts of 1, 2^-9 and 2^-9: in bfloat16 the small ones would be lost, one after the other."""
    model = random_gpt(tiny_config(1))
    optimizer = Optimizer(model, RECIPES["v5"], compute_dtype=torch.bfloat16)
    weight = model.head.weight
    assert weight.dtype == torch.bfloat16
    for factor in (1.0, 2.0**-9, 2.0**-9):
        (weight.sum() * factor).backward()
        assert weight.grad is None  # taken as it appears
    for name, parameter in model.named_parameters():
        if name != "head.weight":
            parameter.sum().backward()
    optimizer.step(Rates())
    first = optimizer.state()["head.weight/first"]
    assert first.dtype == torch.float32
    assert torch.allclose(first, torch.full_like(first, 0.2 * (1 + 2.0**-8)), rtol=1e-6)


@pytest.mark.req("FR-017", "SC-007")
def test_masters_stay_wide_and_copies_follow() -> None:
    model = random_gpt(tiny_config(3))
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer = Optimizer(model, RECIPES["v5"], compute_dtype=torch.bfloat16)
    for name, master in optimizer.masters().items():
        assert torch.equal(master, before[name])  # nothing was rounded on the way
    for step, batch in enumerate(batches(3)):
        backward(model, batch)
        optimizer.step(changing(step))
        for name, weight in model.named_parameters():
            master = optimizer.masters()[name]
            is_scalar = role_of(name) in ("residual", "input", "smear")
            assert master.dtype == torch.float32
            assert weight.dtype == (torch.float32 if is_scalar else torch.bfloat16)
            assert torch.equal(weight, master.to(weight.dtype))


@pytest.mark.req("FR-017", "SC-007")
def test_narrow_training_learns_as_much() -> None:
    """Twenty times the same two rows: both dtypes have nearly learnt them by heart."""
    (batch,) = batches(1)
    last = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = random_gpt(tiny_config(3))
        optimizer = Optimizer(model, RECIPES["v5"], lr_scale=0.2, compute_dtype=dtype)
        for _ in range(20):
            last[dtype] = backward(model, batch)
            optimizer.step(Rates())
    assert last[torch.float32] < 1.0  # from 4.7
    assert last[torch.bfloat16] == pytest.approx(last[torch.float32], abs=0.2)


def test_without_narrowing_the_model_and_the_masters_are_one() -> None:
    model = random_gpt(tiny_config(3))
    optimizer = Optimizer(model, RECIPES["v5"])
    for name, weight in model.named_parameters():
        assert weight.data_ptr() == optimizer.masters()[name].data_ptr()


def test_discarded_gradients_leave_no_trace() -> None:
    model, twin = random_gpt(tiny_config(3)), random_gpt(tiny_config(3))
    optimizer, other = Optimizer(model, RECIPES["v5"]), Optimizer(twin, RECIPES["v5"])
    good, bad = batches(2)
    backward(model, bad)
    optimizer.discard_gradients()
    for m, o in ((model, optimizer), (twin, other)):
        backward(m, good)
        o.step(Rates())
    assert furthest(optimizer.masters(), other.masters()) == 0.0


@pytest.mark.parametrize("is_on_accelerator", [False, True])
@pytest.mark.parametrize("generation", ["v3", "v5"])
@pytest.mark.req("EC-8", "FR-060", "SC-007")
def test_an_update_that_is_not_good_moves_nothing(
    generation: Any, is_on_accelerator: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decided here or, as on an accelerator, by arithmetic that waits for nobody."""
    monkeypatch.setattr(optim, "_is_here", lambda tensor: not is_on_accelerator)
    config, recipe = tiny_config(2, generation), in_float64(RECIPES[generation])
    model, plain = (random_gpt(config, dtype=torch.float64) for _ in range(2))
    optimizer, simple = Optimizer(model, recipe), Optimizer(plain, recipe)
    for step, batch in enumerate(batches(6)):
        is_bad = step in (0, 3)
        backward(model, batch)
        if is_bad:
            for gradient in optimizer.gradients():
                gradient.flatten()[0] = math.nan if step else math.inf
        optimizer.step(changing(step), torch.tensor(not is_bad))
        if not is_bad:
            backward(plain, batch)
            simple.step(changing(step))
        assert furthest(optimizer.masters(), simple.masters()) <= DOUBLE_ATOL
    assert optimizer.num_steps == simple.num_steps == 4
    assert furthest(optimizer.state(), simple.state()) <= DOUBLE_ATOL


def test_weights_are_loaded_into_masters_and_copies() -> None:
    model, other = random_gpt(tiny_config(2)), random_gpt(tiny_config(2), seed=1)
    optimizer = Optimizer(model, RECIPES["v5"], compute_dtype=torch.bfloat16)
    weights = {name: weight.detach() for name, weight in other.named_parameters()}
    optimizer.load_masters(weights)
    assert furthest(optimizer.masters(), weights) == 0.0
    head = model.head.weight
    assert head.dtype == torch.bfloat16 and torch.equal(head, other.head.weight.bfloat16())


def test_a_table_without_a_gradient_stays() -> None:
    """A weight of AdamW's that took no part in the loss is left as it is."""
    model = random_gpt(tiny_config(3))
    optimizer = Optimizer(model, RECIPES["v5"])
    before = optimizer.masters()["head.weight"].clone()
    model.hidden(batches(1)[0].inputs_BT).sum().backward()
    optimizer.step(Rates())
    assert torch.equal(optimizer.masters()["head.weight"], before)
    assert "head.weight/first" not in optimizer.state()


# ------------------------------------------------------------------------------------- moments


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.req("FR-020", "SC-008", "SC-011")
def test_going_on_from_a_state_is_going_on(dtype: torch.dtype) -> None:
    model = random_gpt(tiny_config(3))
    optimizer = Optimizer(model, RECIPES["v5"], compute_dtype=dtype)
    *first, second, third = batches(6)
    for step, batch in enumerate(first):
        backward(model, batch)
        optimizer.step(changing(step))
    state = {name: moment.clone() for name, moment in optimizer.state().items()}
    again = GPT(model.config)
    again.load_state_dict(optimizer.masters())
    resumed = Optimizer(again, RECIPES["v5"], compute_dtype=dtype)
    resumed.load_state(state)
    assert resumed.num_steps == 4
    loaded = {name: moment.clone() for name, moment in state.items()}
    for m, o in ((model, optimizer), (again, resumed)):
        for step, batch in enumerate((second, third), start=4):
            backward(m, batch)
            o.step(changing(step))
    assert furthest(resumed.masters(), optimizer.masters()) == 0.0
    assert furthest(resumed.state(), optimizer.state()) == 0.0
    assert int(resumed.state()["num_steps"]) == 6
    assert furthest(state, loaded) == 0.0  # what was loaded was copied, not shared


@pytest.mark.req("FR-019", "FR-020")
def test_before_the_first_update_moments_may_be_missing() -> None:
    """AdamW has made none then; whatever there was before is forgotten."""
    model = random_gpt(tiny_config(3))
    optimizer = Optimizer(model, RECIPES["v5"])
    weights = {name: weight.clone() for name, weight in optimizer.masters().items()}
    fresh = {name: moment.clone() for name, moment in optimizer.state().items()}
    assert "head.weight/first" not in fresh
    moved = []
    for _ in range(2):
        backward(model, batches(1)[0])
        optimizer.step(Rates())
        moved.append({name: weight.clone() for name, weight in optimizer.masters().items()})
        optimizer.load_masters(weights)
        optimizer.load_state(fresh)
        assert optimizer.num_steps == 0
    assert furthest(*moved) == 0.0
    optimizer.load_state({"num_steps": torch.tensor(0)})
    assert all(not moment.any() for moment in optimizer.state().values())


@pytest.mark.req("FR-046", "FR-047")
def test_moments_that_do_not_fit_are_refused() -> None:
    model = random_gpt(tiny_config(3))
    optimizer = Optimizer(model, RECIPES["v5"])
    backward(model, batches(1)[0])
    optimizer.step(Rates())
    state = {name: moment.clone() for name, moment in optimizer.state().items()}
    for name in ("head.weight/second", "blocks.0.mlp.expand.weight/first", "num_steps"):
        lacking = {key: moment for key, moment in state.items() if key != name}
        with pytest.raises(CheckpointError, match=f"lacks 1 moments, such as {name}"):
            optimizer.load_state(lacking)
    for name in ("head.weight/second", "blocks.0.mlp.expand.weight/first"):
        with pytest.raises(CheckpointError, match=rf"{name} has shape \(3,\), expected \("):
            optimizer.load_state(state | {name: torch.zeros(3)})

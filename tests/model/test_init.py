"""First weights: how wide, what is zero, and that nothing but the seed decides them."""

import itertools
import math

import pytest
import torch

from nanochat.checkpoint.reference import load_config, name_of
from nanochat.model.config import GENERATIONS, Generation, GPTConfig
from nanochat.model.gpt import GPT
from nanochat.model.init import INITS, Init, initialize
from tests.golden.parity import from_golden

CONFIGS = {
    name: GPTConfig.from_depth(
        4, vocab_size=512, context_len=64, head_dim=16, aspect_ratio=32, generation=name
    )
    for name in GENERATIONS
}
BOUND = math.sqrt(3 / 128)  # uniform in +-bound has variance 1/width


def first_weights(generation: Generation, seed: int = 0) -> dict[str, torch.Tensor]:
    model = GPT(CONFIGS[generation])
    initialize(model, generation, seed)
    return {name: weight.detach() for name, weight in model.named_parameters()}


# standard deviation of the tables, bound of the MLP, range of the gates
@pytest.mark.parametrize(
    ("generation", "embedding", "expand", "gate"),
    [
        ("v1", 1.0, 1.0, None),
        ("v2", 1.0, 1.0, None),
        ("v3", 1.0, 1.0, 0.0),
        ("v4", 0.8, 0.5, 0.02),
        ("v5", 0.8, 0.4, 0.02),
    ],
)
@pytest.mark.req("FR-001", "FR-070")
def test_every_role_starts_as_its_generation_does(
    generation: Generation, embedding: float, expand: float, gate: float | None
) -> None:
    for name, weight in first_weights(generation).items():
        role = name.split(".")[-2] if "." in name else name
        low, high, deviation = (
            float(x) for x in (weight.min(), weight.max(), weight.std(correction=0))
        )
        if role in ("embedding", "head"):
            expected = embedding if role == "embedding" else 0.001
            assert abs(deviation / expected - 1) < 0.02 and abs(float(weight.mean())) < 0.02
        elif role in ("output", "contract"):
            assert not weight.any(), name
        elif role in ("value_gate", "smear_gate"):
            assert gate is not None and 0.0 <= low <= high <= gate
            assert high == 0.0 or (low < 0.5 * gate < high)
        elif weight.ndim == 2:
            bound = BOUND * (expand if role == "expand" else 1.0)
            assert -bound <= low < -0.98 * bound and 0.98 * bound < high <= bound, name
            assert abs(deviation * math.sqrt(3) / bound - 1) < 0.02, name


@pytest.mark.req("FR-070")
def test_scalars_start_as_their_generation_does() -> None:
    scalars = {
        name: {
            key: [round(value, 4) for value in weight.tolist()]
            for key, weight in first_weights(name).items()
            if weight.ndim == 1
        }
        for name in GENERATIONS
    }
    assert scalars["v1"] == {}
    assert scalars["v2"] == {"residual_lambdas": [1.0] * 4, "input_lambdas": [0.0] * 4}
    tenth = {"residual_lambdas": [1.0] * 4, "input_lambdas": [0.1] * 4}
    assert scalars["v3"] == scalars["v4"] == tenth
    assert scalars["v5"] == {
        "residual_lambdas": [1.15, 1.1167, 1.0833, 1.05],
        "input_lambdas": [0.2, 0.15, 0.1, 0.05],
        "smear_lambda": [0.0],
        "backout_lambda": [0.2],
    }
    assert set(INITS) == set(GENERATIONS) and INITS["v1"] == Init()


@pytest.mark.req("FR-070")
def test_statistics_are_those_of_karpathys_first_weights() -> None:
    """His V5 model of width 64: the deviations of its tensors, role by role."""
    figures = from_golden("v5")
    assert figures.first_weights is not None
    model = GPT(load_config(figures.meta, figures.weights))
    initialize(model)
    ours = dict(model.named_parameters())
    for name, theirs in figures.first_weights.items():
        weight = ours[name_of(name)].detach()
        if not theirs.any() or theirs.ndim == 1:
            assert torch.allclose(weight, theirs), name
        elif theirs.numel() >= 1000:  # a gate has 24 entries: too few for a statistic
            assert abs(float(weight.std() / theirs.std()) - 1) < 0.05, name


@pytest.mark.req("FR-033")
def test_equal_seeds_give_equal_bits_whatever_else_happens() -> None:
    once = first_weights("v5", seed=7)
    torch.manual_seed(123)
    again = GPT(CONFIGS["v5"])
    state = torch.get_rng_state()
    initialize(again, "v5", seed=7)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is left alone
    assert all(torch.equal(once[name], weight) for name, weight in again.named_parameters())
    other = first_weights("v5", seed=8)
    drawn = [name for name, weight in once.items() if weight.ndim == 2 and weight.any()]
    assert all(not torch.equal(once[name], other[name]) for name in drawn)


def test_a_weight_does_not_depend_on_the_others() -> None:
    """The same name and shape get the same numbers in a deeper model of another generation."""
    deep = GPT(GPTConfig.from_depth(8, vocab_size=512, context_len=8, head_dim=16, aspect_ratio=16))
    initialize(deep, "v5")
    shallow = first_weights("v1")
    for name, weight in deep.named_parameters():
        if name.endswith(("query.weight", "key.weight", "value.weight")) and name in shallow:
            assert torch.equal(weight.detach(), shallow[name]), name
    for a, b in itertools.combinations(["query", "key", "value"], 2):
        assert not torch.equal(
            shallow[f"blocks.0.attention.{a}.weight"], shallow[f"blocks.0.attention.{b}.weight"]
        )


def test_narrow_weights_are_rounded_wide_ones() -> None:
    narrow = GPT(CONFIGS["v5"]).bfloat16()
    initialize(narrow)
    for name, weight in first_weights("v5").items():
        assert torch.equal(narrow.get_parameter(name), weight.bfloat16())

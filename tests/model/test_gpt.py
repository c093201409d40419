"""GPT equals its plain twin whatever the config; options that are off are absent."""

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.model.config import GENERATIONS, Generation, GPTConfig, ValueEmbedding
from nanochat.model.gpt import GPT, Block
from tests.conftest import DOUBLE_ATOL, LOGITS_ATOL
from tests.fakes import random_gpt, tiny_config
from tests.twins.model import logits_slowly, loss_slowly

TOKENS = torch.tensor([[3, 60, 3, 3, 17, 69, 0], [5, 4, 4, 61, 2, 2, 33]])


def assert_equals_twin(config: GPTConfig, tokens: torch.Tensor) -> None:
    model = random_gpt(config, dtype=torch.float64)
    weights = dict(model.named_parameters())
    expected = torch.stack([logits_slowly(weights, config, row) for row in tokens.tolist()])
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), expected.detach(), atol=DOUBLE_ATOL, rtol=0)
    targets = tokens.roll(1, dims=1)
    twin_loss = sum(
        loss_slowly(logits, row, -100)
        for logits, row in zip(expected, targets.tolist(), strict=True)
    )
    assert isinstance(twin_loss, torch.Tensor)
    twin_grads = torch.autograd.grad(twin_loss, list(weights.values()), allow_unused=True)
    loss = torch.nn.functional.cross_entropy(model(tokens).mT, targets, reduction="sum")
    loss.backward()
    for (name, weight), grad in zip(weights.items(), twin_grads, strict=True):
        assert weight.grad is not None, name
        twin = torch.zeros_like(weight) if grad is None else grad
        torch.testing.assert_close(weight.grad, twin, atol=DOUBLE_ATOL, rtol=1e-6, msg=name)


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.req("FR-001", "FR-070")
def test_the_twin_agrees_for_every_generation(generation: Generation) -> None:
    assert_equals_twin(tiny_config(3, generation, windows=(2, 4, None)), TOKENS)


@given(
    depth=st.integers(1, 3),
    heads=st.sampled_from([(1, 1), (3, 1), (4, 4), (4, 2)]),
    width=st.sampled_from([24, 33]),
    head_dim=st.sampled_from([2, 6]),
    window=st.sampled_from([None, 0, 3]),
    generation=st.sampled_from(list(GENERATIONS)),
    num_tokens=st.integers(1, 6),
)
@settings(max_examples=12)
@pytest.mark.req("FR-001", "FR-005")
def test_the_twin_agrees_for_any_shape(
    depth: int,
    heads: tuple[int, int],
    width: int,
    head_dim: int,
    window: int | None,
    generation: Generation,
    num_tokens: int,
) -> None:
    changes: dict[str, Any] = {
        "num_heads": heads[0],
        "num_kv_heads": heads[1],
        "head_dim": head_dim,
        "model_dim": width,
        "windows": (window,) * depth,
    }
    if GENERATIONS[generation].get("value_embedding", True) is not None:
        changes["value_embedding"] = ValueEmbedding(5, 2.5)
    assert_equals_twin(tiny_config(depth, generation, **changes), TOKENS[:, :num_tokens])


@pytest.mark.req("FR-007", "FR-009")
def test_what_is_off_is_absent() -> None:
    names = {name: set(GPT(tiny_config(2, name)).state_dict()) for name in GENERATIONS}
    assert len(names["v1"]) == 2 + 2 * 6  # tables and six matrices a block
    assert names["v2"] - names["v1"] == {"residual_lambdas", "input_lambdas"}
    values = {"value_embeddings.1.weight", "blocks.1.attention.value_gate.weight"}
    assert names["v3"] - names["v2"] == names["v4"] - names["v2"] == values
    assert names["v5"] - names["v4"] == {"smear_gate.weight", "smear_lambda", "backout_lambda"}
    assert not [name for name in names["v5"] if "bias" in name or "norm" in name]


def test_embedding_and_head_are_two(random_config: GPTConfig) -> None:
    model = random_gpt(random_config)
    assert model.embedding.weight.data_ptr() != model.head.weight.data_ptr()
    assert model.embedding.weight.shape == model.head.weight.shape == (128, 32)


@pytest.fixture(params=["v1", "v5"])
def random_config(request: pytest.FixtureRequest) -> GPTConfig:
    return tiny_config(2, request.param, windows=(3, None))


@torch.no_grad()
def test_logits_are_of_the_true_vocabulary_and_capped(random_config: GPTConfig) -> None:
    model = random_gpt(random_config)
    model.head.weight.mul_(1e4)
    logits = model(TOKENS)
    assert logits.shape == (2, 7, 70) and logits.dtype == torch.float32
    assert logits.abs().max() == pytest.approx(15.0)
    model.head.weight[70:] = float("nan")  # rows of padding are never seen
    assert torch.equal(model(TOKENS), logits)
    hidden = model.hidden(TOKENS)
    assert hidden.shape == (2, 7, 32)
    assert torch.equal(model.logits(hidden), logits)


@torch.no_grad()
def test_no_position_sees_what_follows_it(random_config: GPTConfig) -> None:
    model = random_gpt(random_config)
    logits = model(TOKENS)
    for place in range(1, 7):
        changed = TOKENS.clone()
        changed[:, place] = (changed[:, place] + 1) % 70
        others = model(changed)
        before = (others[:, :place] - logits[:, :place]).abs().max()
        assert before == 0.0
        assert (others[:, place] - logits[:, place]).abs().max() > LOGITS_ATOL


@torch.no_grad()
def test_rows_do_not_see_each_other(random_config: GPTConfig) -> None:
    model = random_gpt(random_config)
    alone = torch.cat([model(TOKENS[:1]), model(TOKENS[1:])])
    torch.testing.assert_close(model(TOKENS), alone, atol=LOGITS_ATOL, rtol=0)


@torch.no_grad()
@pytest.mark.req("SC-007")
def test_narrow_weights_give_wide_finite_logits(random_config: GPTConfig) -> None:
    wide, narrow = random_gpt(random_config), random_gpt(random_config)
    for parameter in narrow.parameters():
        if parameter.ndim > 1:
            parameter.data = parameter.data.bfloat16()
    assert narrow.hidden(TOKENS).dtype == torch.bfloat16
    logits = narrow(TOKENS)
    assert logits.dtype == torch.float32
    assert (logits - wide(TOKENS)).abs().max() < 0.2  # of 2.5: three digits through two layers
    narrow.embedding.weight.mul_(1e30)
    for block in narrow.blocks:
        assert isinstance(block, Block)
        block.mlp.expand.weight.mul_(1e3)
    assert torch.isfinite(narrow(TOKENS)).all()


def test_every_weight_learns() -> None:
    """No weight is cut off from the loss, whichever options are on."""
    for generation in GENERATIONS:
        model = random_gpt(tiny_config(3, generation))
        model(TOKENS).square().sum().backward()
        dead = [
            name
            for name, weight in model.named_parameters()
            if weight.grad is None or not weight.grad.any()
        ]
        assert dead == []


def test_a_text_may_be_longer_than_the_context() -> None:
    config = tiny_config(2, context_len=4, windows=(None, None))
    longer = dataclasses.replace(config, context_len=7)
    with torch.no_grad():
        assert torch.equal(random_gpt(config)(TOKENS), random_gpt(longer)(TOKENS))

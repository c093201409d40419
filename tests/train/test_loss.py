"""The loss equals the plain twin however it is cut into chunks; bits per byte by hand."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nanochat.batches.batch import IGNORE, Batch
from nanochat.common.device import find_compiler
from nanochat.model.gpt import GPT
from nanochat.train import loss as module
from nanochat.train.loss import (
    bits_per_byte,
    compile_loss_sum,
    loss_sum,
    softcap_cross_entropy,
)
from tests.conftest import DOUBLE_ATOL, LAYER_ATOL
from tests.fakes import random_gpt, tiny_config
from tests.twins.model import loss_slowly

LossSum = Callable[[GPT, Batch], Tensor]
SIZES = {"one piece": (2**30, 2**30), "three tokens": (128 * 8 * 3, 128 * 2), "one": (1, 1)}


@pytest.fixture(params=["eager", "compiled"])
def either_loss_sum(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> LossSum:
    """The loss of an uncompiled run, and what a compiler is given, here run as it stands."""
    if request.param == "eager":
        return loss_sum
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    return compile_loss_sum("cpu", is_padded=False)


@pytest.fixture(params=SIZES)
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    chunk, part = SIZES[request.param]
    monkeypatch.setattr(module, "CHUNK_BYTES", chunk)
    monkeypatch.setattr(module, "SLICE_ELEMENTS", part)


def some_batch(seed: int = 0, rows: int = 2, width: int = 5) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 70, (rows, width + 1), generator=generator)
    targets = tokens[:, 1:].clone()
    targets[torch.rand(targets.shape, generator=generator) < 0.3] = IGNORE
    return Batch(tokens[:, :-1].contiguous(), targets)


def twin_loss(model: GPT, batch: Batch) -> Tensor:
    hidden = model.hidden(batch.inputs_BT).flatten(0, 1)
    cap = model.config.logit_softcap
    logits = cap * torch.tanh(hidden @ model.head.weight[: model.config.vocab_size].T / cap)
    return loss_slowly(logits, batch.targets_BT.flatten().tolist(), IGNORE)


def capped_model(softcap: float, dtype: torch.dtype) -> GPT:
    config = dataclasses.replace(tiny_config(1), logit_softcap=softcap)
    model = random_gpt(config, dtype=dtype)
    model.head.weight.data.mul_(softcap / 3)  # logits that feel their cap
    return model


# caps below and above 60, where exponentials need their maximum taken off
@pytest.mark.parametrize("softcap", [15.0, 60.0, 61.0, 500.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.usefixtures("sizes")
@pytest.mark.req("SC-007")
def test_the_twin_agrees(softcap: float, dtype: torch.dtype, either_loss_sum: LossSum) -> None:
    ours, twin = (capped_model(softcap, dtype) for _ in range(2))
    batch = some_batch()
    loss, expected = either_loss_sum(ours, batch), twin_loss(twin, batch)
    atol = DOUBLE_ATOL if dtype == torch.float64 else LAYER_ATOL
    assert loss.dtype == dtype
    torch.testing.assert_close(loss, expected, atol=atol, rtol=1e-6)
    (loss * 0.3).backward()
    (expected * 0.3).backward()
    for (name, a), (_, b) in zip(ours.named_parameters(), twin.named_parameters(), strict=True):
        assert a.grad is not None and b.grad is not None
        assert float((a.grad - b.grad).abs().max()) <= 10 * atol * max(
            1.0, float(b.grad.abs().max())
        ), name
    assert ours.head.weight.grad is not None
    assert not ours.head.weight.grad[70:].any()  # rows of padding learn nothing
    with torch.no_grad():
        torch.testing.assert_close(either_loss_sum(ours, batch), expected, atol=atol, rtol=1e-6)


@given(st.integers(0, 1000), st.integers(1, 7), st.integers(1, 20))
@pytest.mark.req("SC-007")
def test_chunks_change_nothing(seed: int, tokens_a_chunk: int, rows_a_slice: int) -> None:
    model, batch = capped_model(15.0, torch.float64), some_batch(seed)
    whole = loss_sum(model, batch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_BYTES", 128 * 8 * tokens_a_chunk)
        patch.setattr(module, "SLICE_ELEMENTS", 128 * rows_a_slice)
        torch.testing.assert_close(loss_sum(model, batch), whole, atol=DOUBLE_ATOL, rtol=0)


@pytest.mark.usefixtures("sizes")
@pytest.mark.req("SC-007", "FR-060")
def test_nothing_to_predict_is_zero_and_not_nan(either_loss_sum: LossSum) -> None:
    model = capped_model(15.0, torch.float32)
    inputs, targets = some_batch()
    loss = either_loss_sum(model, Batch(inputs, torch.full_like(targets, IGNORE)))
    loss.backward()
    assert float(loss.detach()) == 0.0
    for name, weight in model.named_parameters():
        assert weight.grad is not None and not weight.grad.any(), name


@pytest.mark.usefixtures("sizes")
@pytest.mark.req("SC-007", "FR-060")
def test_narrow_logits(either_loss_sum: LossSum) -> None:
    """bfloat16 has three digits: loss and gradients keep two of them."""
    wide, narrow = (capped_model(15.0, torch.float32) for _ in range(2))
    for weight in narrow.parameters():
        if weight.ndim > 1:
            weight.data = weight.data.bfloat16()
    batch = some_batch(rows=4, width=16)
    loss, expected = either_loss_sum(narrow, batch), twin_loss(wide, batch)
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=0.01)
    loss.backward()
    expected.backward()
    ours, theirs = narrow.head.weight.grad, wide.head.weight.grad
    assert ours is not None and theirs is not None and ours.dtype == torch.bfloat16
    assert float((ours.float() - theirs).norm() / theirs.norm()) < 0.05


def test_gradients_are_the_slopes(either_loss_sum: LossSum) -> None:
    """Of the head along one direction; the twin above has the same formula, this has none."""
    model, batch = capped_model(15.0, torch.float64), some_batch()
    head = model.head.weight
    direction = torch.randn(head.shape, generator=torch.Generator().manual_seed(1)).double()
    (slope,) = torch.autograd.grad(either_loss_sum(model, batch), head)
    ends = []
    with torch.no_grad():
        for step in (1e-6, -2e-6):
            head.add_(direction, alpha=step)
            ends.append(float(either_loss_sum(model, batch)))
    assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(float((slope * direction).sum()), rel=1e-5)


def test_the_plain_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU and its compiler are given."""
    model, batch = capped_model(15.0, torch.float64), some_batch()
    expected = twin_loss(model, batch)
    hidden = model.hidden(batch.inputs_BT).flatten(0, 1)
    targets = batch.targets_BT.flatten()
    plain = softcap_cross_entropy(hidden, model.head.weight, targets, 15.0, 70)
    torch.testing.assert_close(plain, expected, atol=DOUBLE_ATOL, rtol=0)
    seen: list[Any] = []
    monkeypatch.setattr(
        torch, "compile", lambda function, dynamic: seen.append(dynamic) or function
    )
    assert compile_loss_sum("cuda", is_padded=True) is loss_sum and seen == [True]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(loss_sum(model, batch), expected, atol=DOUBLE_ATOL, rtol=0)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own modules
@pytest.mark.parametrize("is_padded", [False, True])
def test_compiled_code_computes_the_same(is_padded: bool) -> None:
    if find_compiler() is None:
        pytest.skip("needs a C++ compiler")
    ours, twin = (random_gpt(tiny_config(2, windows=(3, None))) for _ in range(2))
    compiled = compile_loss_sum("cpu", is_padded=is_padded)
    for width in (8, 16):
        batch = some_batch(width=width)
        loss, expected = compiled(ours, batch), loss_sum(twin, batch)
        torch.testing.assert_close(loss, expected, atol=10 * LAYER_ATOL, rtol=0)
        loss.backward()
        expected.backward()
    for (name, a), (_, b) in zip(ours.named_parameters(), twin.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=20 * LAYER_ATOL, rtol=1e-4, msg=name)


# ------------------------------------------------------------------------------- bits per byte


@pytest.mark.req("FR-025")
def test_bits_per_byte_by_hand() -> None:
    """A model that knows nothing needs log2(70) bits a token, whatever the token."""
    model = random_gpt(tiny_config(1))
    model.head.weight.data.zero_()
    token_bytes = [1] * 20 + [3] * 40 + [0] * 10  # the last ten are special
    inputs = torch.zeros(1, 6, dtype=torch.int64)
    targets = torch.tensor([[0, 19, 20, 59, 60, IGNORE]])  # 1 + 1 + 3 + 3 bytes in four tokens
    batches = [Batch(inputs, targets), Batch(inputs[:, :1], torch.tensor([[25]]))]
    bpb = bits_per_byte(model, batches, token_bytes)
    assert bpb == pytest.approx(5 * math.log2(70) / 11)
    assert bits_per_byte(model, batches[1:], token_bytes) == pytest.approx(math.log2(70) / 3)


def test_special_and_ignored_targets_leave_both_sums() -> None:
    model = random_gpt(tiny_config(1))
    inputs, targets = some_batch(rows=2, width=9)
    token_bytes = [token % 4 for token in range(70)]
    logits = model(inputs).detach().flatten(0, 1).double()
    flat = targets.flatten().tolist()
    kept = [token if token != IGNORE and token % 4 else IGNORE for token in flat]
    assert kept != flat
    nats = float(loss_slowly(logits, kept, IGNORE))
    num_bytes = sum(token % 4 for token in kept if token != IGNORE)
    bpb = bits_per_byte(model, [Batch(inputs, targets)], token_bytes)
    assert bpb == pytest.approx(nats / math.log(2) / num_bytes)
    assert all(weight.grad is None for weight in model.parameters())


def test_no_bytes_is_an_error() -> None:
    model = random_gpt(tiny_config(1))
    batch = Batch(torch.zeros(1, 2, dtype=torch.int64), torch.tensor([[69, IGNORE]]))
    for batches in ([], [batch]):
        with pytest.raises(ValueError, match="no bytes to predict"):
            bits_per_byte(model, batches, [0] * 70)

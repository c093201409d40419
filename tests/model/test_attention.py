"""Attention equals the twin that takes one query at a time, however it is computed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nanochat.model import attention, eager
from nanochat.model.attention import attend
from tests.conftest import DOUBLE_ATOL, LAYER_ATOL
from tests.twins.attention import attend_slowly


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of four queries, so that short texts have several."""
    monkeypatch.setattr(attention, "WINDOW_BLOCK_TOKENS", 4)
    monkeypatch.setattr(eager, "NEAR_BLOCK_TOKENS", 4)


def random_heads(
    T: int, heads: int, kv_heads: int, *, rows: int = 2, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(T * 100 + heads * 10 + kv_heads)
    sizes = (heads, kv_heads, kv_heads)
    q, k, v = (torch.randn(rows, T, size, 6, generator=generator).to(dtype) for size in sizes)
    return q, k, v


@given(
    T=st.integers(1, 14),
    kv_heads=st.sampled_from([1, 2, 3]),
    per_group=st.sampled_from([1, 2, 3]),
    window=st.one_of(st.none(), st.integers(0, 16)),
)
@settings(max_examples=40)
@pytest.mark.req("FR-005")
def test_the_twin_agrees(T: int, kv_heads: int, per_group: int, window: int | None) -> None:
    q, k, v = random_heads(T, kv_heads * per_group, kv_heads)
    expected = attend_slowly(q, k, v, window)
    torch.testing.assert_close(attend(q, k, v, window), expected, atol=DOUBLE_ATOL, rtol=0)
    trained = attend(q.clone().requires_grad_(), k, v, window)
    torch.testing.assert_close(trained, expected, atol=DOUBLE_ATOL, rtol=0)


@pytest.mark.parametrize("is_by_products", [True, False])
@pytest.mark.parametrize(("T", "window"), [(1, None), (7, 3), (9, 0), (9, None), (13, 5), (13, 40)])
@pytest.mark.req("FR-005")
def test_gradients_agree(
    T: int, window: int | None, is_by_products: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_by_products:
        monkeypatch.setattr(attention, "PRODUCTS_MAX_TOKENS", -1)
    ours = [x.requires_grad_() for x in random_heads(T, 4, 2)]
    twins = [x.requires_grad_() for x in random_heads(T, 4, 2)]
    y, z = attend(*ours, window), attend_slowly(*twins, window)
    torch.testing.assert_close(y, z, atol=DOUBLE_ATOL, rtol=0)
    direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).double()
    y.backward(direction)
    z.backward(direction)
    for left, right in zip(ours, twins, strict=True):
        torch.testing.assert_close(left.grad, right.grad, atol=DOUBLE_ATOL, rtol=0)


def test_gradients_are_the_slopes() -> None:
    q, k, v = (x.requires_grad_() for x in random_heads(6, 2, 1, rows=1))
    assert torch.autograd.gradcheck(lambda q, k, v: attend(q, k, v, 3), (q, k, v))


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = random_heads(300, 2, 1, rows=1, dtype=torch.float32)
    for window in (None, 17, 100):
        values = []
        for size in (7, 256, 1000):
            monkeypatch.setattr(attention, "WINDOW_BLOCK_TOKENS", size)
            monkeypatch.setattr(eager, "NEAR_BLOCK_TOKENS", size)
            monkeypatch.setattr(eager, "FAR_BLOCK_TOKENS", size)
            values += [attend(q, k, v, window), attend(q.clone().requires_grad_(), k, v, window)]
        for other in values[1:]:
            torch.testing.assert_close(other, values[0], atol=LAYER_ATOL, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.req("SC-007")
def test_large_scores_stay_finite(dtype: torch.dtype) -> None:
    """Softmax takes its maximum off: scores of 1e4 are no overflow, forward or backward."""
    q, k, v = (x.to(dtype) * 100 for x in random_heads(9, 2, 2))
    q.requires_grad_()
    y = attend(q, k, v, 4)
    y.sum().backward()
    assert y.dtype == dtype and torch.isfinite(y).all()
    assert q.grad is not None and torch.isfinite(q.grad).all()

"""The small formulas: values and gradients are those of the plain ones, on both paths."""

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nanochat.model.layers import MLP, Linear, RotaryTable, mix, relu_squared, rms_norm, rotate
from tests.conftest import DOUBLE_ATOL, LAYER_ATOL
from tests.twins.model import norm, rotate_slowly

EPS = 1e-6
CPU = torch.device("cpu")


@pytest.fixture(params=["eager", "compiled"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Both ways a formula is written: with a gradient of its own, and plain for the compiler."""
    if request.param == "compiled":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    yield request.param


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_same(
    ours: Callable[..., Tensor], twin: Callable[..., Tensor], *inputs: Tensor, atol: float
) -> None:
    """Equal values, and equal gradients of every input for one random direction."""
    for function_inputs in (inputs, tuple(x.to(torch.float32) for x in inputs)):
        tolerance = atol if function_inputs is inputs else LAYER_ATOL
        a = [x.clone().requires_grad_() for x in function_inputs]
        b = [x.clone().requires_grad_() for x in function_inputs]
        y, z = ours(*a), twin(*b)
        assert y.dtype == z.dtype == function_inputs[0].dtype
        torch.testing.assert_close(y, z, atol=tolerance, rtol=0)
        direction = randn(*y.shape, seed=9).to(y.dtype)
        y.backward(direction)
        z.backward(direction)
        for left, right in zip(a, b, strict=True):
            torch.testing.assert_close(left.grad, right.grad, atol=10 * tolerance, rtol=0)


# ------------------------------------------------------------------------------------ the norm


@pytest.mark.req("FR-004", "FR-008")
def test_rms_norm(path: str) -> None:
    x = randn(3, 5, 16) * 3
    assert_same(lambda x: rms_norm(x, EPS), lambda x: norm(x, EPS), x, atol=DOUBLE_ATOL)
    # a row in which the epsilon counts
    small = randn(2, 8) * 1e-3
    assert_same(lambda x: rms_norm(x, 1e-2), lambda x: norm(x, 1e-2), small, atol=DOUBLE_ATOL)


@given(st.floats(1e-3, 1e3), st.integers(1, 40))
@pytest.mark.req("FR-004")
def test_a_norm_is_one_whatever_the_scale(scale: float, width: int) -> None:
    x = randn(2, width, seed=width) * scale
    y = rms_norm(x, 1e-20)
    assert y.square().mean(-1).sub(1).abs().max() <= DOUBLE_ATOL
    torch.testing.assert_close(rms_norm(x * 7, 1e-20), y, atol=DOUBLE_ATOL, rtol=0)


@pytest.mark.req("SC-007")
def test_nothing_is_not_a_number(path: str) -> None:
    for value in (0.0, 1e-38, 1e18):
        x = torch.full((2, 8), value, requires_grad=True)
        y = rms_norm(x, 1e-7)
        y.sum().backward()
        assert torch.isfinite(y).all() and x.grad is not None and torch.isfinite(x.grad).all()


def test_narrow_numbers_keep_their_type_and_are_summed_wide(path: str) -> None:
    x = randn(4, 512).bfloat16()
    y = rms_norm(x, EPS)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), norm(x.double(), EPS), atol=0.0, rtol=2**-7)
    assert relu_squared(x).dtype == torch.bfloat16
    a, b = torch.tensor(0.5), torch.tensor(-2.0)
    assert mix(x, a, x, b).dtype == torch.bfloat16


# -------------------------------------------------------------------------------- the rotation


def tables(T: int, width: int, base: float = 100.0) -> tuple[Tensor, Tensor]:
    cos, sin = RotaryTable(width, base, T, round_to_bfloat16=False)(T, torch.float64, CPU)
    return cos[None, :, None], sin[None, :, None]


@pytest.mark.req("FR-002")
def test_rotate(path: str) -> None:
    cos, sin = tables(7, 8)

    def twin(x: Tensor) -> Tensor:
        rows = [
            torch.stack([rotate_slowly(head, t, 100.0) for head in row[t]])
            for row in x
            for t in range(7)
        ]
        return torch.stack(rows).view(x.shape)

    x = randn(2, 7, 3, 8)
    assert_same(lambda x: rotate(x, cos.to(x.dtype), sin.to(x.dtype)), twin, x, atol=DOUBLE_ATOL)


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20))
@pytest.mark.req("FR-002")
def test_only_the_distance_counts(i: int, j: int, shift: int) -> None:
    """The product of a rotated query and a rotated key depends on i - j alone; lengths stay."""
    cos, sin = tables(64, 8)
    q, k = randn(8, seed=1), randn(8, seed=2)

    def at(x: Tensor, place: int) -> Tensor:
        return rotate(x.view(1, 1, 1, 8), cos[:, [place]], sin[:, [place]]).flatten()

    here, there = at(q, i) @ at(k, j), at(q, i + shift) @ at(k, j + shift)
    assert abs(float(here - there)) <= 1e-5  # the tables are float32: the angles are rounded
    assert abs(float(at(q, i).norm() - q.norm())) <= 1e-6


@pytest.mark.req("FR-014")
def test_no_position_is_past_the_end_of_the_table() -> None:
    long = RotaryTable(8, 100.0, 500, round_to_bfloat16=False)(500, torch.float32, CPU)
    growing = RotaryTable(8, 100.0, 4, round_to_bfloat16=False)
    for size in (3, 5, 6, 300, 2, 500):
        with torch.inference_mode():
            cos, sin = growing(size, torch.float32, CPU)
        assert cos.shape == sin.shape == (size, 4)
        assert torch.equal(cos, long[0][:size]) and torch.equal(sin, long[1][:size])
    x = randn(1, 500, 1, 8, dtype=torch.float32).requires_grad_()
    cos, sin = growing(500, torch.float32, CPU)  # grown under inference_mode, used in training
    rotate(x, cos[None, :, None], sin[None, :, None]).sum().backward()
    assert not list(growing.state_dict())


def test_cosines_are_rounded_where_the_generation_does() -> None:
    rounded = RotaryTable(8, 100.0, 50, round_to_bfloat16=True)(50, torch.float32, CPU)
    exact = RotaryTable(8, 100.0, 50, round_to_bfloat16=False)(50, torch.float32, CPU)
    for a, b in zip(rounded, exact, strict=True):
        assert torch.equal(a, b.bfloat16().float()) and not torch.equal(a, b)
    assert exact[0][0].tolist() == [1.0] * 4
    assert abs(float(exact[1][3, 2]) - math.sin(3 * 100 ** (-4 / 8))) <= 1e-6


# ------------------------------------------------------------------------------------- the MLP


@pytest.mark.req("FR-006")
def test_relu_squared(path: str) -> None:
    x = randn(3, 5, 7)
    assert_same(relu_squared, lambda x: torch.clamp(x, min=0) ** 2, x, atol=DOUBLE_ATOL)
    assert relu_squared(torch.tensor([-2.0, 0.0, 3.0])).tolist() == [0.0, 0.0, 9.0]


def test_mix(path: str) -> None:
    x, y = randn(3, 5, 7, seed=1), randn(3, 5, 7, seed=2)
    a, b = torch.tensor(0.7, dtype=torch.float64), torch.tensor(-1.3, dtype=torch.float64)
    assert_same(mix, lambda x, a, y, b: a * x + b * y, x, a, y, b, atol=DOUBLE_ATOL)


@pytest.mark.parametrize("name", ["rms_norm", "relu_squared", "rotate", "mix"])
def test_gradients_are_the_slopes(name: str) -> None:
    cos, sin = tables(3, 4)
    a, b = (torch.tensor(v, dtype=torch.float64).requires_grad_() for v in (0.7, -1.3))
    x, y = randn(2, 3, 2, 4).requires_grad_(), randn(2, 3, 2, 4, seed=3).requires_grad_()
    assert {
        "rms_norm": lambda: torch.autograd.gradcheck(lambda x: rms_norm(x, EPS), (x,)),
        "relu_squared": lambda: torch.autograd.gradcheck(relu_squared, (x,)),
        "rotate": lambda: torch.autograd.gradcheck(lambda x: rotate(x, cos, sin), (x,)),
        "mix": lambda: torch.autograd.gradcheck(mix, (x, a, y, b)),
    }[name]()


@pytest.mark.req("FR-006", "FR-009")
def test_no_part_has_a_bias() -> None:
    linear = Linear(6, 4)
    linear.weight.data = randn(4, 6, dtype=torch.float32)
    assert [name for name, _ in linear.named_parameters()] == ["weight"]
    x = randn(3, 6)
    assert torch.equal(linear(x), x @ linear.weight.double().T)  # computed in the input's type
    mlp = MLP(8)
    assert {name: tuple(weight.shape) for name, weight in mlp.named_parameters()} == {
        "expand.weight": (32, 8),
        "contract.weight": (8, 32),
    }
    for weight in mlp.parameters():  # nobody has filled them
        weight.data = randn(*weight.shape, dtype=torch.float32)
    x = randn(3, 8, dtype=torch.float32)[None]
    expected = (x @ mlp.expand.weight.T).clamp(min=0).square() @ mlp.contract.weight.T
    torch.testing.assert_close(mlp(x), expected, atol=LAYER_ATOL, rtol=0)

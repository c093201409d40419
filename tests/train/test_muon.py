"""Muon's parts, each by what it promises."""

import dataclasses

import pytest
import torch

from nanochat.train.muon import (
    POLAR_EXPRESS,
    MuonRecipe,
    MuonStep,
    equilibrate,
    muon_update,
    polar_express,
    polar_express_rounded,
    reduce_variance,
)
from nanochat.train.optim import RECIPES
from tests.conftest import DOUBLE_ATOL
from tests.twins.optim import orthogonalized

SHAPES = [(6, 6), (4, 9), (9, 4), (1, 5), (5, 1)]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.req("FR-017")
def test_singular_values_end_near_one_and_directions_stay(shape: tuple[int, int]) -> None:
    """Against the singular value decomposition, whose polar factor has all values at one."""
    x_MRC = randn(3, *shape)
    y_MRC = polar_express(x_MRC, 1.01)
    u, s, vt = torch.linalg.svd(x_MRC, full_matrices=False)
    values = (u.mT @ y_MRC @ vt.mT).diagonal(dim1=-2, dim2=-1)
    rest = y_MRC - u @ torch.diag_embed(values) @ vt
    assert rest.abs().max() <= DOUBLE_ATOL  # the singular vectors are those of x
    is_large = s > 0.02 * s.amax(-1, keepdim=True)  # five steps do not lift what is smaller
    assert 0.7 < values[is_large].min() and values.max() < 1.3
    assert y_MRC.shape == x_MRC.shape


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("generation", ["v3", "v5"])
@pytest.mark.req("FR-017")
def test_stacked_equals_one_at_a_time(shape: tuple[int, int], generation: str) -> None:
    recipe = dataclasses.replace(RECIPES[generation].muon, always_bfloat16=False)
    x_MRC = randn(3, *shape)
    ours = equilibrate(x_MRC) if recipe.equilibrate else x_MRC
    ours = polar_express(ours, recipe.slack)
    twin = dataclasses.replace(recipe, renormalize=False)
    for index in range(3):
        expected = orthogonalized(x_MRC[index], twin, None)
        torch.testing.assert_close(ours[index], expected, atol=DOUBLE_ATOL, rtol=0)


@pytest.mark.parametrize("shape", [(32, 32), (16, 48), (48, 16)])
@pytest.mark.req("FR-017")
def test_rounded_is_the_iteration_in_bfloat16(shape: tuple[int, int]) -> None:
    """Five iterations with a last bit of 2^-8 each: within 10% of PyTorch's bfloat16, every number
    one of bfloat16's, and not those of float32."""
    x_MRC = randn(3, *shape).float()
    rounded = polar_express_rounded(x_MRC, 1.01)
    narrow = polar_express(x_MRC.bfloat16(), 1.01).float()
    assert torch.equal(rounded, rounded.bfloat16().float())
    assert (rounded - narrow).norm() <= 0.1 * narrow.norm()
    exact = polar_express(x_MRC, 1.01)
    assert 1e-4 < (rounded - exact).norm() / exact.norm() < 0.1


def test_rows_get_equal_norms_and_the_whole_keeps_its_own() -> None:
    x_MRC = randn(2, 4, 9) * torch.tensor([1.0, 10.0, 0.1, 3.0])[:, None]
    y_MRC = equilibrate(x_MRC)
    norms = y_MRC.norm(dim=-1)
    torch.testing.assert_close(norms, norms[:, :1].expand_as(norms))
    torch.testing.assert_close(y_MRC.norm(dim=(1, 2)), x_MRC.norm(dim=(1, 2)))
    assert torch.isfinite(equilibrate(torch.zeros(1, 3, 3))).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_variance_is_reduced_along_the_longer_side(shape: tuple[int, int]) -> None:
    x_MRC = randn(2, *shape)
    rows, columns = shape
    variance = torch.zeros((2, rows, 1) if rows >= columns else (2, 1, columns)).double()
    before = x_MRC.clone()
    y_MRC = reduce_variance(x_MRC, variance, weight=0.1)
    torch.testing.assert_close(y_MRC.norm(dim=(1, 2)), before.norm(dim=(1, 2)))
    mean = before.square().mean(dim=-1 if rows >= columns else -2, keepdim=True)
    torch.testing.assert_close(variance, 0.1 * mean)
    # one step after zeros every line has the same root mean square
    lines = y_MRC.square().mean(dim=-1 if rows >= columns else -2)
    torch.testing.assert_close(lines, lines[:, :1].expand_as(lines))


def test_decay_is_cautious() -> None:
    """Only entries that the update makes smaller anyway are decayed."""
    weights_MRC = torch.full((1, 3, 3), 2.0, dtype=torch.float64)
    moved = []
    for decay in (0.0, 0.5):
        new = weights_MRC.clone()
        momentum, variance = torch.zeros(1, 3, 3).double(), torch.zeros(1, 3, 1).double()
        step = MuonStep(lr=0.1, momentum=0.9, weight_decay=decay)
        grads_MRC = randn(1, 3, 3)
        muon_update(new, grads_MRC, momentum, variance, step, MuonRecipe(), torch.float64)
        moved.append(new)
    is_decayed = weights_MRC > moved[0]
    assert 0 < is_decayed.sum() < 9
    expected = torch.where(is_decayed, 0.1 * 0.5 * 2.0, 0.0).double()
    torch.testing.assert_close(moved[0] - moved[1], expected)


@pytest.mark.req("SC-007")
def test_no_gradient_moves_nothing_and_breaks_nothing() -> None:
    for recipe in (MuonRecipe(), RECIPES["v3"].muon):
        weights_MRC = randn(2, 4, 3).float()
        before = weights_MRC.clone()
        momentum, variance = torch.zeros(2, 4, 3), torch.zeros(2, 4, 1)
        step = MuonStep(lr=0.02, momentum=0.95, weight_decay=0.0)
        muon_update(
            weights_MRC, torch.zeros(2, 4, 3), momentum, variance, step, recipe, torch.bfloat16
        )
        assert torch.equal(weights_MRC, before) and torch.isfinite(variance).all()


def test_five_quintics() -> None:
    assert len(POLAR_EXPRESS) == 5
    for value in (0.05, 0.3, 1.0):
        x = value
        for a, b, c in POLAR_EXPRESS:
            x = a * x + b * x**3 + c * x**5
        assert 0.7 < x < 1.2

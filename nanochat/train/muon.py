"""Muon: a matrix moves by its gradient's direction with all singular values near one.
in: gradients of equal-shaped matrices   out: their new weights   who calls: optim.py

Steps, each a function: Nesterov momentum; row equilibration (MuonEq); polar express;
renormalisation (Muon+);
variance reduction (NorMuon); cautious decay.  All matrices of one shape go through together.
Source: Jordan et al. 2024 (Muon); Amsel et al., arXiv:2505.16932 (polar express); arXiv:2603.28254
        (MuonEq);
arXiv:2602.21545 (Muon+); arXiv:2510.05491 (NorMuon); karpathy/nanochat nanochat/optim.py at
2f09686 and 92d63d4.
Read next: optim.py; tests/twins/optim.py (the same for one matrix at a time).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "POLAR_EXPRESS",
    "MuonRecipe",
    "MuonStep",
    "equilibrate",
    "muon_apply",
    "muon_direction",
    "muon_update",
    "polar_express",
    "polar_express_rounded",
    "reduce_variance",
]

# Five quintics a x + b x^3 + c x^5; arXiv:2505.16932 for 5 iterations, safety factor 2e-2, cushion
# 2.
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class MuonRecipe:
    """What a generation's Muon does; the defaults are V5's."""

    lr: float = 0.02
    weight_decay: float = 0.28
    beta2: float = 0.9
    slack: float = 1.01
    """The norm is divided by this too before the iteration, so that no singular value exceeds
    one."""
    equilibrate: bool = True
    renormalize: bool = True
    always_bfloat16: bool = False
    """V3 and V4 orthogonalise in bfloat16 even when everything else is float32."""


@dataclass(frozen=True, slots=True)
class MuonStep:
    """The numbers of one update: learning rate (before the shape's factor), momentum, decay."""

    lr: float
    momentum: float
    weight_decay: float


def muon_update(
    weights_MRC: Tensor,
    grads_MRC: Tensor,
    momentum_MRC: Tensor,
    variance: Tensor,
    step: MuonStep,
    recipe: MuonRecipe,
    matmul_dtype: torch.dtype,
    is_good: Tensor | None = None,
) -> None:
    """Move the weights in place; the gradients are overwritten.

    Where `is_good` (a boolean on the same device) is false everything stays as it is, whatever the
    gradients hold; None is true.
    Shapes: weights, grads, momentum (M, R, C); variance (M, R, 1) if R >= C, else (M, 1, C).
    """
    x_MRC = muon_direction(grads_MRC, momentum_MRC, variance, step, recipe, matmul_dtype, is_good)
    rows, columns = weights_MRC.shape[-2:]
    muon_apply(weights_MRC, x_MRC, step, (rows, columns), is_good)


def muon_direction(
    grads_MRC: Tensor,
    momentum_MRC: Tensor,
    variance: Tensor,
    step: MuonStep,
    recipe: MuonRecipe,
    matmul_dtype: torch.dtype,
    is_good: Tensor | None = None,
) -> Tensor:
    """What needs whole matrices: where to, from gradients (overwritten) and moments (moved).

    Shapes: as muon_update -> (M, R, C).
    """
    applied: Tensor | float = 1.0
    if is_good is not None:
        applied = is_good.to(grads_MRC.dtype)
        grads_MRC.copy_(torch.where(is_good, grads_MRC, 0.0))  # NaN times 0 would be NaN
    momentum_MRC.lerp_(grads_MRC, (1 - step.momentum) * applied)
    x_MRC = grads_MRC.lerp_(momentum_MRC, step.momentum)
    x_MRC = x_MRC.to(matmul_dtype)
    if recipe.equilibrate:
        x_MRC = equilibrate(x_MRC)
    if recipe.always_bfloat16 and matmul_dtype != torch.bfloat16:
        x_MRC = polar_express_rounded(x_MRC, recipe.slack)
    else:
        x_MRC = polar_express(x_MRC, recipe.slack)
    x_MRC = x_MRC.to(momentum_MRC.dtype)
    if recipe.renormalize:
        target = min(x_MRC.shape[-2:]) ** 0.5
        x_MRC.mul_(target / _norm(x_MRC, (-2, -1)).clamp_min(1e-6))
    return reduce_variance(x_MRC, variance, (1 - recipe.beta2) * applied)


def muon_apply(
    weights: Tensor,
    directions: Tensor,
    step: MuonStep,
    matrix_shape: tuple[int, int],
    is_good: Tensor | None = None,
) -> None:
    """Move weights in place, each by itself: any part of matrices of `matrix_shape` may be given.

    Shapes: weights and directions (overwritten) the same.
    """
    rows, columns = matrix_shape
    lr = step.lr * max(1.0, rows / columns) ** 0.5
    if step.weight_decay:
        agrees = (directions * weights) >= 0
        directions.addcmul_(weights, agrees.to(directions.dtype), value=step.weight_decay)
    if is_good is None:
        weights.sub_(directions, alpha=lr)
    else:
        weights.sub_(directions * (lr * is_good.to(weights.dtype)))


def equilibrate(x_MRC: Tensor) -> Tensor:
    """Each row scaled to the mean row norm, so that the spectrum is better conditioned.   Shapes:
    the same."""
    target = _norm(x_MRC, (-2, -1)) / x_MRC.size(-2) ** 0.5
    return x_MRC * (target / _norm(x_MRC, -1).clamp_min(1e-6)).to(x_MRC.dtype)


def polar_express(x_MRC: Tensor, slack: float) -> Tensor:
    """The nearest matrices with orthonormal rows or columns, roughly: singular values end within
    0.7 to 1.2.

    Shapes: (M, R, C) -> the same, dtype kept.  Works on the smaller Gram matrix.
    """
    is_tall = x_MRC.size(-2) > x_MRC.size(-1)
    x = x_MRC.mT if is_tall else x_MRC
    x = x / (_norm(x, (-2, -1)).to(x.dtype) * slack + 1e-6)
    for a, b, c in POLAR_EXPRESS:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


def polar_express_rounded(x_MRC: Tensor, slack: float) -> Tensor:
    """As polar_express in bfloat16, computed in float32: inputs, products and sums are rounded.

    It rounds where karpathy/nanochat's compiled step does, and processors without bfloat16
    multiply it a hundred times as fast.   Shapes: the same.
    """
    is_tall = x_MRC.size(-2) > x_MRC.size(-1)
    x = _rounded(x_MRC.mT if is_tall else x_MRC)
    x = _rounded(x / (_norm(x, (-2, -1)) * slack + 1e-6))
    for a, b, c in POLAR_EXPRESS:
        gram = _rounded(x @ x.mT)
        polynomial = _rounded(b * gram + c * _rounded(gram @ gram))
        x = _rounded(a * x + _rounded(polynomial @ x))
    return x.mT if is_tall else x


def reduce_variance(x_MRC: Tensor, variance: Tensor, weight: Tensor | float) -> Tensor:
    """x with its rows (or columns) divided by their running root mean square, its norm kept.

    `variance` is moved towards this step's means in place, by `weight` of the way.
    Shapes: (M, R, C) -> the same.
    """
    axis = -1 if x_MRC.size(-2) >= x_MRC.size(-1) else -2
    mean = x_MRC.to(variance.dtype).square().mean(dim=axis, keepdim=True)
    variance.lerp_(mean, weight)
    scale = variance.clamp_min(1e-10).rsqrt()
    before = mean.sum(dim=(-2, -1), keepdim=True).sqrt()
    after = (mean * scale.square()).sum(dim=(-2, -1), keepdim=True).sqrt()
    scale = scale * (before / after.clamp_min(1e-10 / x_MRC.size(axis) ** 0.5))
    return x_MRC.mul_(scale.to(x_MRC.dtype))


def _rounded(x: Tensor) -> Tensor:
    """The nearest bfloat16 numbers, as float32."""
    return x.bfloat16().float()


def _norm(x: Tensor, axes: int | tuple[int, int]) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    return torch.linalg.vector_norm(x, dim=axes, keepdim=True, dtype=wide)

"""The optimizer, one matrix and one row at a time.   in: weights, gradients   out: new weights

AdamW for tables and scalars, Muon for the matrices inside blocks, as karpathy/nanochat's formulas
read: nothing is stacked, nothing is shared, nothing is kept narrower than asked for.
Read next: nanochat/train/optim.py, nanochat/train/muon.py.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from nanochat.train.muon import POLAR_EXPRESS, MuonRecipe
from nanochat.train.optim import OptimizerRecipe, Rates

EPS = 1e-10


class SlowOptimizer:
    """Weights by name, moved by `step`; moments under `<name>/first` and `<name>/second`."""

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        recipe: OptimizerRecipe,
        model_dim: int,
        *,
        lr_scale: float = 1.0,
        matmul_dtype: torch.dtype | None = None,
    ) -> None:
        self.weights, self.recipe = weights, recipe
        self.model_dim, self.lr_scale, self.matmul_dtype = model_dim, lr_scale, matmul_dtype
        self.num_steps = 0
        self.moments: dict[str, Tensor] = {}

    @torch.no_grad()
    def step(self, grads: Mapping[str, Tensor], rates: Rates) -> None:
        """One update of every weight."""
        self.num_steps += 1
        for name, weight in self.weights.items():
            if name.startswith("blocks."):
                self._muon(name, weight, grads[name], rates)
            else:
                self._adamw(name, weight, grads[name], rates)

    def _adamw(self, name: str, weight: Tensor, grad: Tensor, rates: Rates) -> None:
        role, adam = adam_role(name), self.recipe.adam[adam_role(name)]
        lr = adam.lr * rates.lr
        if role in ("head", "embedding", "value_embedding"):
            lr *= (768 / self.model_dim) ** 0.5
        if role != "smear":
            lr *= self.lr_scale
        first, second = self._moments(name, weight, weight)
        beta1, beta2 = adam.betas
        first.copy_(beta1 * first + (1 - beta1) * grad)
        second.copy_(beta2 * second + (1 - beta2) * grad * grad)
        mean = first / (1 - beta1**self.num_steps)
        square = second / (1 - beta2**self.num_steps)
        weight.copy_(weight - lr * adam.weight_decay * weight)
        weight.copy_(weight - lr * mean / (square.sqrt() + EPS))

    def _muon(self, name: str, weight: Tensor, grad: Tensor, rates: Rates) -> None:
        rows, columns = weight.shape
        muon, momentum = self.recipe.muon, rates.momentum
        is_by_rows = rows >= columns
        first, second = self._moments(
            name, weight, weight.new_zeros((rows, 1) if is_by_rows else (1, columns))
        )
        first.copy_(momentum * first + (1 - momentum) * grad)
        update = (1 - momentum) * grad + momentum * first  # Nesterov
        update = orthogonalized(update, muon, self.matmul_dtype)
        update = normuon(update if is_by_rows else update.T, second.flatten(), muon.beta2)
        update = update if is_by_rows else update.T
        lr = muon.lr * self.lr_scale * rates.lr * max(1.0, rows / columns) ** 0.5
        for row in range(rows):
            agrees = update[row] * weight[row] >= 0  # decay only where the update shrinks too
            decay = rates.weight_decay * weight[row] * agrees
            weight[row] = weight[row] - lr * (update[row] + decay)

    def _moments(self, name: str, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        return (
            self.moments.setdefault(f"{name}/first", torch.zeros_like(first)),
            self.moments.setdefault(f"{name}/second", torch.zeros_like(second)),
        )


def adam_role(name: str) -> str:
    """Which of AdamW's groups a weight is in."""
    groups = {
        "head.weight": "head",
        "embedding.weight": "embedding",
        "residual_lambdas": "residual",
        "input_lambdas": "input",
    }
    if name.startswith("value_embeddings."):
        return "value_embedding"
    return groups.get(name, "smear")


def orthogonalized(x: Tensor, muon: MuonRecipe, matmul_dtype: torch.dtype | None) -> Tensor:
    """One matrix with its singular values moved towards one."""
    rows, columns = x.shape
    dtype = x.dtype
    x = x.to(matmul_dtype or dtype)
    if muon.equilibrate:
        target = frobenius(x) / rows**0.5
        norms = [frobenius(row).clamp(min=1e-6) for row in x]  # a dead neuron's row is zero
        scaled = [row * (target / norm).to(x.dtype) for row, norm in zip(x, norms, strict=True)]
        x = torch.stack(scaled)
    x = x / (frobenius(x).to(x.dtype) * muon.slack + 1e-6)
    for a, b, c in POLAR_EXPRESS:
        gram = x.T @ x if rows > columns else x @ x.T  # the smaller one
        polynomial = b * gram + c * (gram @ gram)
        x = a * x + (x @ polynomial if rows > columns else polynomial @ x)
    x = x.to(dtype)
    if muon.renormalize:
        x = x * (min(rows, columns) ** 0.5 / frobenius(x))
    return x


def normuon(x: Tensor, variance: Tensor, beta2: float) -> Tensor:
    """The rows of x over their running root mean square; the norm of the whole stays.

    `variance` (one number a row) is moved in place.
    """
    out = torch.empty_like(x)
    for row in range(len(x)):
        variance[row] = beta2 * variance[row] + (1 - beta2) * (x[row] ** 2).mean()
        out[row] = x[row] / torch.sqrt(torch.clamp(variance[row], min=1e-10))
    return out * frobenius(x) / frobenius(out)


def frobenius(x: Tensor) -> Tensor:
    """The root of the sum of squares, summed in float32 or wider."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * wide).sum().sqrt()

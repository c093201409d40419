"""The small parts.   in: x_BTD   out: x_BTD   who calls: gpt.py, attention.py

No part has biases or learned norms (FR-004, FR-009).
Read next: attention.py.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanochat.model.eager import Mix, ReluSquared, RMSNorm, Rotate

__all__ = [
    "MLP",
    "Embedding",
    "Linear",
    "RotaryTable",
    "mix",
    "relu_squared",
    "rms_norm",
    "rotate",
]


class Linear(nn.Linear):
    """A matrix without bias whose weight is used in the dtype of its input.

    Training keeps the weights in the compute dtype already (train/optim.py), so the cast costs
    nothing there.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def reset_parameters(self) -> None:
        """Nothing: init.initialize fills weights, or a checkpoint does.  On the meta device PyTorch
        would import its compiler for this, which is two seconds of every start."""

    def forward(self, input: Tensor) -> Tensor:
        """Shapes: (..., in_features) -> (..., out_features)."""
        return F.linear(input, self.weight.to(input.dtype))


class Embedding(nn.Embedding):
    """A table of rows, filled as a Linear is."""

    def reset_parameters(self) -> None:
        """Nothing, as for a Linear."""


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """x scaled to unit root mean square over its last dimension; no learned weight (FR-004,
    FR-008).

    Shapes: any -> the same.
    Source: Zhang and Sennrich, arXiv:1910.07467; the mean of squares is taken in float32 for
            narrower types.
    """
    if _is_eager_on_cpu(x):
        return cast(Tensor, RMSNorm.apply(x, eps))
    return F.rms_norm(x, (x.size(-1),), eps=eps)


class RotaryTable(nn.Module):
    """Cosines and sines by position, grown on demand, so no position is past its end (FR-002,
    FR-014).

    Source: Su et al., arXiv:2104.09864; the halves are paired and rotated by minus theta as
            karpathy/nanochat does.
    """

    cos_SE: Tensor
    sin_SE: Tensor

    def __init__(
        self, head_dim: int, base: float, num_positions: int, *, round_to_bfloat16: bool
    ) -> None:
        super().__init__()
        self.head_dim, self.base, self.round_to_bfloat16 = head_dim, base, round_to_bfloat16
        cos_SE, sin_SE = self._compute(num_positions, torch.device("cpu"))
        self.register_buffer("cos_SE", cos_SE, persistent=False)
        self.register_buffer("sin_SE", sin_SE, persistent=False)

    def forward(
        self, num_positions: int, dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Tables for positions 0 .. num_positions - 1, in `dtype`; E here is half the head's
        width."""
        if num_positions > self.cos_SE.size(0) or self.cos_SE.device != device:
            size = self.cos_SE.size(0)
            if num_positions > size:
                size = max(num_positions, 2 * size)  # so that it is not made anew for every token
            with torch.inference_mode(False):  # the tables outlive this call; training saves them
                self.cos_SE, self.sin_SE = self._compute(size, device)
        return self.cos_SE[:num_positions].to(dtype), self.sin_SE[:num_positions].to(dtype)

    def _compute(self, num_positions: int, device: torch.device) -> tuple[Tensor, Tensor]:
        # Computed on the CPU: the same bits on every device.
        channels_E = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device="cpu")
        frequencies_E = 1.0 / (self.base ** (channels_E / self.head_dim))
        angles_SE = torch.outer(
            torch.arange(num_positions, dtype=torch.float32, device="cpu"), frequencies_E
        )
        cos_SE, sin_SE = angles_SE.cos(), angles_SE.sin()
        if self.round_to_bfloat16:
            cos_SE, sin_SE = cos_SE.bfloat16().float(), sin_SE.bfloat16().float()
        return cos_SE.to(device), sin_SE.to(device)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x with its two halves rotated by minus the angle.

    Shapes: x (B, T, heads, E); cos and sin broadcast to (B, T, heads, E/2).
    """
    if _is_eager_on_cpu(x):
        return cast(Tensor, Rotate.apply(x, cos, sin))
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos + second * sin, second * cos - first * sin), dim=-1)


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0)^2 (FR-006).

    Shapes: any -> the same.
    Source: So et al., arXiv:2109.08668.
    """
    if _is_eager_on_cpu(x):
        return cast(Tensor, ReluSquared.apply(x))
    return F.relu(x).square()


def mix(x: Tensor, a: Tensor, y: Tensor, b: Tensor) -> Tensor:
    """a * x + b * y for learned scalars.   Shapes: x and y the same, a and b scalars -> as x."""
    if _is_eager_on_cpu(x):
        return cast(Tensor, Mix.apply(x, a, y, b))
    return a.to(x.dtype) * x + b.to(x.dtype) * y


class MLP(nn.Module):
    """Expand four times, square what is positive, contract."""

    def __init__(self, model_dim: int) -> None:
        super().__init__()
        self.expand = Linear(model_dim, 4 * model_dim)
        self.contract = Linear(4 * model_dim, model_dim)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Shapes: x_BTD -> (B, T, D)."""
        hidden_BTF = relu_squared(self.expand(x_BTD))
        return self.contract(hidden_BTF)


def _is_eager_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and not torch.compiler.is_compiling()

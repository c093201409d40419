"""The small formulas with hand-written gradients.   in: tensors   out: tensors   who calls: layers.py, train/loss.py

Autograd keeps an intermediate for every operation and walks each back on its own.  On a CPU, where a small
model's time goes into memory passes and not into matrices, that doubles a training step.  Here each formula
makes the fewest passes that PyTorch's own operators allow; no compiler is needed.  Under torch.compile the
plain formulas in layers.py are used, which fuse better.
Read next: layers.py (the plain twins; tests/model/test_layers.py holds them together).
"""

from typing import Any

import torch
from torch import Tensor

__all__ = ["ReluSquared", "RMSNorm", "Rotate"]


class RMSNorm(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps); four passes instead of the nine of the composed form (2.5x faster on 2 cores)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        """Shapes: any -> the same."""
        wide = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        inverse = norm.square_().div_(x.size(-1)).add_(eps).rsqrt_()
        y = x * inverse.to(x.dtype)
        ctx.save_for_backward(y, inverse)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """d y / d x = (I - y y^T / width) / rms, up to eps."""
        (grad_y,) = grads
        y, inverse = ctx.saved_tensors
        dot = (grad_y * y).mean(dim=-1, keepdim=True, dtype=inverse.dtype).to(y.dtype)
        return torch.addcmul(grad_y, y, dot, value=-1).mul_(inverse.to(y.dtype)), None


class ReluSquared(torch.autograd.Function):
    """max(x, 0)^2."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Shapes: any -> the same."""
        positive = x.relu()
        ctx.save_for_backward(positive)
        return positive.square()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """2 max(x, 0) grad."""
        (positive,) = ctx.saved_tensors
        return (positive * grads[0]).mul_(2)


class Rotate(torch.autograd.Function):
    """Both halves of the last dimension rotated by minus the angle; the way back rotates by plus the angle."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Shapes: x (B, T, heads, E), cos and sin (1 or B, T, 1, E/2)."""
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin, sign=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """The inverse rotation of the gradient."""
        cos, sin = ctx.saved_tensors
        return _rotate(grads[0], cos, sin, sign=-1), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    first, second = x.chunk(2, dim=-1)
    out_first, out_second = out.chunk(2, dim=-1)
    torch.mul(first, cos, out=out_first).addcmul_(second, sin, value=sign)
    torch.mul(second, cos, out=out_second).addcmul_(first, sin, value=-sign)
    return out

"""The small formulas with hand-written gradients.   in: tensors   out: tensors   who calls:
layers.py, train/loss.py

Autograd keeps an intermediate for every operation and walks each back on its own.  On a CPU, where
a small
model's time goes into memory passes and not into matrices, that doubles a training step.  Here
each formula
makes the fewest passes that PyTorch's own operators allow; no compiler is needed.  Under
torch.compile the
plain formulas in layers.py are used, which fuse better.
Read next: layers.py (the plain twins; tests/model/test_layers.py holds them together).
"""

from typing import Any

import torch
from torch import Tensor

__all__ = ["Attention", "Mix", "RMSNorm", "ReluSquared", "Rotate"]

# Keys that no query of a block sees are never multiplied.  Forward and backward, float32, one core
# with AVX2, against blocks of 256: 0.6 of the time for 256 tokens with a window of 128, 0.8 without
# one; of 512 tokens that all see, 0.93 with 128 and 0.97 with 64.
NEAR_BLOCK_TOKENS, FAR_BLOCK_TOKENS = 64, 128
NEAR_TOKENS = 256


class RMSNorm(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps); four passes instead of the nine of the composed form (2.5x faster
    on 2 cores)."""

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
        return positive * positive  # twice as fast as .square() in bfloat16

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """2 max(x, 0) grad."""
        (positive,) = ctx.saved_tensors
        return (positive * grads[0]).mul_(2)


class Rotate(torch.autograd.Function):
    """Both halves of the last dimension rotated by minus the angle; the way back rotates by plus
    the angle."""

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


class Mix(torch.autograd.Function):
    """a * x + b * y for learned scalars a and b; the products are never stored."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, y: Tensor, b: Tensor) -> Tensor:
        """Shapes: x and y any, the same; a and b scalars on the CPU."""
        ctx.save_for_backward(x, a, y, b)
        return (x * a.item()).add_(y, alpha=b.item())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The gradients of both streams, and of both scalars (torch.dot takes 100 times as long in
        bfloat16)."""
        x, a, y, b = ctx.saved_tensors
        (grad,) = grads
        grad_a, grad_b = ((grad * z).sum(dtype=a.dtype) for z in (x, y))
        return grad * a.item(), grad_a.view_as(a), grad * b.item(), grad_b.view_as(b)


class Attention(torch.autograd.Function):
    """Causal, windowed attention by plain matrix products; the probabilities are kept for the way
    back.

    On two cores with AMX forward and backward together take a third of the time of PyTorch's flash
    kernel,
    whose backward pass on a CPU multiplies in float32.  Memory: B * H * T * T values a layer.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int) -> Tensor:
        """Shapes: q, k, v (heads of all rows, T, E) -> the same; a query sees `window` tokens to
        its left."""
        y = torch.empty_like(q)
        probabilities = []
        for start, stop, reach in _blocks(q.size(1), window):
            bias = _bias(start, stop, reach, window, q)
            scores = torch.baddbmm(bias, q[:, start:stop], k[:, reach:stop].mT, alpha=scale)
            probabilities.append(scores.softmax(dim=-1))
            y[:, start:stop] = probabilities[-1] @ v[:, reach:stop]
        ctx.scale, ctx.window = scale, window
        ctx.save_for_backward(q, k, v, *probabilities)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Block by block: through the values, the softmax, the scores."""
        q, k, v, *probabilities = ctx.saved_tensors
        grad_y = grads[0].contiguous()
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for (start, stop, reach), p in zip(
            _blocks(q.size(1), ctx.window), probabilities, strict=True
        ):
            grad_block = grad_y[:, start:stop]
            grad_v[:, reach:stop] += p.mT @ grad_block
            grad_p = grad_block @ v[:, reach:stop].mT
            grad_scores = torch._softmax_backward_data(grad_p, p, -1, p.dtype).mul_(ctx.scale)
            grad_q[:, start:stop] = grad_scores @ k[:, reach:stop]
            grad_k[:, reach:stop] += grad_scores.mT @ q[:, start:stop]
        return grad_q, grad_k, grad_v, None, None


def _blocks(num_tokens: int, window: int) -> list[tuple[int, int, int]]:
    """First and last query of each block, and the first key that one of them sees."""
    is_near = min(num_tokens, window) <= NEAR_TOKENS
    size = NEAR_BLOCK_TOKENS if is_near else FAR_BLOCK_TOKENS
    starts = range(0, num_tokens, size)
    return [(start, min(start + size, num_tokens), max(0, start - window)) for start in starts]


def _bias(start: int, stop: int, reach: int, window: int, like: Tensor) -> Tensor:
    """Zero where a query of the block sees a key, minus infinity elsewhere.   Shapes: (queries,
    keys)."""
    distance = torch.arange(start, stop)[:, None] - torch.arange(reach, stop)
    bias = torch.zeros(distance.shape, dtype=like.dtype)
    return bias.masked_fill_((distance < 0) | (distance > window), float("-inf"))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    first, second = x.chunk(2, dim=-1)
    out_first, out_second = out.chunk(2, dim=-1)
    torch.mul(first, cos, out=out_first).addcmul_(second, sin, value=sign)
    torch.mul(second, cos, out=out_second).addcmul_(first, sin, value=-sign)
    return out

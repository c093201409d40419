"""Cross entropy behind the soft cap, and bits per byte.
in: hidden_ND, head, targets   out: a loss   who calls: loop.py, evals

`softcap_cross_entropy` never holds the logits of a whole batch in float32: it works through chunks
of tokens and leaves, in the chunk's own memory, the gradient where the logits were.
Read next: loop.py; tests/train/test_loss.py (the plain twin).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from nanochat.batches.batch import IGNORE, Batch
from nanochat.model.gpt import GPT

__all__ = [
    "SoftcapCrossEntropy",
    "bits_per_byte",
    "compile_loss_sum",
    "loss_sum",
    "softcap_cross_entropy",
]

CHUNK_BYTES = 256 * 2**20  # of logits in the compute dtype, at most, at a time
SLICE_ELEMENTS = 2**17  # of float32 logits at a time: half a megabyte stays in a core's own cache
# exp(60) * 1e6 entries still fits float32, so below this no maximum need be subtracted.
LARGEST_CAP_WITHOUT_MAX = 60.0


def loss_sum(model: GPT, batch: Batch) -> Tensor:
    """Summed negative log-likelihood of the batch's targets, in nats.

    Shapes: Batch (B, T) -> scalar.
    """
    return _loss_of_hidden(model, model.hidden(batch.inputs_BT), batch, _loss_and_gradient_)


def compile_loss_sum(device_type: str, *, is_padded: bool) -> Callable[[GPT, Batch], Tensor]:
    """`loss_sum` through torch.compile; rows of many widths (`is_padded`) share one compilation.

    On a CPU the trunk and the loss of a chunk are compiled apart: whole, the loss would be fused
    into kernels that write and read the logits of the batch in float32 (40% of the step at a
    vocabulary of 32,768).
    """
    if device_type != "cpu":
        return torch.compile(loss_sum, dynamic=is_padded)
    hidden = torch.compile(GPT.hidden, dynamic=is_padded)
    kernel = torch.compile(_loss_and_gradient, dynamic=is_padded)

    def compiled_loss_sum(model: GPT, batch: Batch) -> Tensor:
        return _loss_of_hidden(model, hidden(model, batch.inputs_BT), batch, kernel)

    return compiled_loss_sum


def softcap_cross_entropy(
    hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, softcap: float, vocab_size: int
) -> Tensor:
    """Summed -log softmax(cap tanh(hidden head^T / cap))[target] over the targets that are not
    IGNORE, in plain operators.

    Shapes: hidden_ND, head_VD (V padded), targets_N -> scalar in float32 or wider.
    """
    logits = F.linear(hidden_ND, head_VD.to(hidden_ND.dtype))[:, :vocab_size]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    capped = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(capped, targets_N, ignore_index=IGNORE, reduction="sum")


class SoftcapCrossEntropy(torch.autograd.Function):
    """The same and, in the same pass, its gradients: logits are computed once and never kept.

    `kernel` turns the raw logits of a chunk into its loss and their gradients.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        head_VD: Tensor,
        targets_N: Tensor,
        softcap: float,
        vocab_size: int,
        kernel: "Kernel",
    ) -> Tensor:
        """Shapes: as softcap_cross_entropy."""
        weights_VD = head_VD.to(hidden_ND.dtype)
        wide = torch.promote_types(hidden_ND.dtype, torch.float32)
        grad_hidden_ND = torch.empty_like(hidden_ND)
        grad_head: Tensor | None = None
        loss = torch.zeros((), dtype=wide)
        chunk = max(1, CHUNK_BYTES // (weights_VD.size(0) * weights_VD.element_size()))
        for start in range(0, hidden_ND.size(0), chunk):
            part = slice(start, start + chunk)
            logits = hidden_ND[part] @ weights_VD.T
            chunk_loss, gradient = kernel(logits, targets_N[part], softcap, vocab_size)
            loss += chunk_loss
            torch.mm(gradient, weights_VD, out=grad_hidden_ND[part])
            product = gradient.T @ hidden_ND[part]
            grad_head = product if grad_head is None else grad_head.to(wide).add_(product)
        assert grad_head is not None, "no tokens"
        ctx.save_for_backward(grad_hidden_ND, grad_head.to(head_VD.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        """The gradients of the forward pass, times the gradient of the loss."""
        grad_hidden_ND, grad_head_VD = ctx.saved_tensors
        (grad,) = grads
        grad_hidden_ND = grad_hidden_ND * grad.to(grad_hidden_ND.dtype)
        return grad_hidden_ND, grad_head_VD * grad.to(grad_head_VD.dtype), None, None, None, None


Kernel = Callable[[Tensor, Tensor, float, int], tuple[Tensor, Tensor]]


def _loss_of_hidden(model: GPT, hidden_BTD: Tensor, batch: Batch, kernel: Kernel) -> Tensor:
    hidden_ND, targets_N = hidden_BTD.flatten(0, 1), batch.targets_BT.flatten()
    config, head_VD = model.config, model.head.weight
    is_fused = hidden_ND.device.type == "cpu" and not torch.compiler.is_compiling()
    if is_fused and torch.is_grad_enabled():
        arguments = (hidden_ND, head_VD, targets_N, config.logit_softcap, config.vocab_size, kernel)
        return cast(Tensor, SoftcapCrossEntropy.apply(*arguments))
    rows = max(1, CHUNK_BYTES // (4 * head_VD.size(0))) if is_fused else hidden_ND.size(0)
    losses = [
        softcap_cross_entropy(part_ND, head_VD, part_N, config.logit_softcap, config.vocab_size)
        for part_ND, part_N in zip(hidden_ND.split(rows), targets_N.split(rows), strict=True)
    ]
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum()


def _loss_and_gradient(
    logits_NV: Tensor, targets_N: Tensor, softcap: float, vocab_size: int
) -> tuple[Tensor, Tensor]:
    """The summed loss of a chunk and the gradients of its raw logits, to be compiled: one loop."""
    wide = torch.promote_types(logits_NV.dtype, torch.float32)
    capped = torch.tanh(logits_NV[:, :vocab_size].to(wide) / softcap)  # V is padded, this is not
    is_target_N = targets_N != IGNORE
    shift = _shift(capped, softcap)
    exponentials = torch.exp(capped * softcap - shift)
    totals = exponentials.sum(dim=1, keepdim=True)
    safe_targets = targets_N.clamp_min(0)[:, None]
    picked = torch.tanh(logits_NV.gather(1, safe_targets).to(wide) / softcap)
    losses_N = (totals.log() + shift - picked * softcap)[:, 0] * is_target_N
    columns = torch.arange(vocab_size, device=logits_NV.device)
    gradient = exponentials / totals - (columns == safe_targets).to(wide)
    gradient = gradient * (1.0 - capped * capped) * is_target_N[:, None]
    padding = logits_NV.size(1) - vocab_size
    return losses_N.sum(), F.pad(gradient.to(logits_NV.dtype), (0, padding))


def _shift(capped: Tensor, softcap: float) -> Tensor | float:
    """What is taken off before exponentials: nothing where the cap alone keeps them finite."""
    if softcap <= LARGEST_CAP_WITHOUT_MAX:
        return 0.0
    return capped.amax(dim=1, keepdim=True) * softcap


def _loss_and_gradient_(
    logits_NV: Tensor, targets_N: Tensor, softcap: float, vocab_size: int
) -> tuple[Tensor, Tensor]:
    """The same in place, uncompiled: the chunk's own memory is overwritten with the gradients."""
    wide = torch.promote_types(logits_NV.dtype, torch.float32)
    rows = max(1, SLICE_ELEMENTS // logits_NV.size(1))
    losses = []
    for part, targets in zip(logits_NV.split(rows), targets_N.split(rows), strict=True):
        is_target = targets != IGNORE
        safe_targets = targets.clamp_min(0)[:, None]
        capped = part[:, :vocab_size].to(wide).div_(softcap).tanh_()
        picked = capped.gather(1, safe_targets) * softcap
        exponentials = capped * softcap
        shift = _shift(capped, softcap)
        if isinstance(shift, Tensor):
            exponentials.sub_(shift)
        exponentials.exp_()
        totals = exponentials.sum(dim=1, keepdim=True)
        losses.append((totals.log() + shift - picked)[:, 0].mul_(is_target).sum())
        probabilities = exponentials.div_(totals)
        minus_one = probabilities.new_full((), -1.0).expand_as(safe_targets)
        probabilities.scatter_add_(1, safe_targets, minus_one)
        slope = capped.square_().neg_().add_(1.0)
        part[:, :vocab_size] = probabilities.mul_(slope).mul_(is_target[:, None])
        part[:, vocab_size:] = 0
    return torch.stack(losses).sum(), logits_NV


@torch.no_grad()
def bits_per_byte(model: GPT, batches: Iterable[Batch], token_bytes: Sequence[int]) -> float:
    """Bits the model needs per byte of the text it predicts; comparable across vocabularies.

    Targets that are IGNORE or special tokens (0 bytes) are left out of both sums.
    Raises: ValueError if the batches hold no byte.
    Source: karpathy/nanochat nanochat/loss_eval.py at 92d63d4.
    """
    device = model.embedding.weight.device
    bytes_V = torch.tensor(token_bytes, device=device)
    nats, num_bytes = 0.0, 0
    for batch in batches:
        targets_BT = batch.targets_BT.to(device)
        bytes_BT = torch.where(targets_BT == IGNORE, 0, bytes_V[targets_BT.clamp_min(0)])
        targets_BT = torch.where(bytes_BT > 0, targets_BT, IGNORE)
        nats += float(loss_sum(model, Batch(batch.inputs_BT.to(device), targets_BT)))
        num_bytes += int(bytes_BT.sum())
    if num_bytes == 0:
        raise ValueError(
            "no bytes to predict: the validation batches hold only special or ignored tokens"
        )
    return nats / (math.log(2) * num_bytes)

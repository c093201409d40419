"""Cross entropy behind the soft cap, and bits per byte.
in: hidden_ND, head, targets   out: a loss   who calls: loop.py, evals

`softcap_cross_entropy` never holds the logits of a whole batch in float32: it works through chunks
of tokens
and leaves, in the chunk's own memory, the gradient where the logits were.
Read next: loop.py; tests/train/test_loss.py (the plain twin).
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from nanochat.batches.batch import IGNORE, Batch
from nanochat.model.gpt import GPT

__all__ = ["SoftcapCrossEntropy", "bits_per_byte", "loss_sum", "softcap_cross_entropy"]

CHUNK_BYTES = 256 * 2**20  # of logits in the compute dtype, at most, at a time
SLICE_ELEMENTS = 2**17  # of float32 logits at a time: half a megabyte stays in a core's own cache
LARGEST_CAP_WITHOUT_MAX = (
    60.0  # exp(60) * 1e6 entries still fits float32, so no maximum need be subtracted
)


def loss_sum(model: GPT, batch: Batch) -> Tensor:
    """Summed negative log-likelihood of the batch's targets, in nats.

    Shapes: Batch (B, T) -> scalar.
    """
    hidden_BTD = model.hidden(batch.inputs_BT)
    head_VD = model.head.weight
    return softcap_cross_entropy(
        hidden_BTD.flatten(0, 1),
        head_VD,
        batch.targets_BT.flatten(),
        model.config.logit_softcap,
        model.config.vocab_size,
    )


def softcap_cross_entropy(
    hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, softcap: float, vocab_size: int
) -> Tensor:
    """Summed -log softmax(cap tanh(hidden head^T / cap))[target] over the targets that are not
    IGNORE.

    Shapes: hidden_ND, head_VD (V padded), targets_N -> scalar in float32 or wider.
    """
    if hidden_ND.device.type == "cpu" and not torch.compiler.is_compiling():
        return cast(
            Tensor, SoftcapCrossEntropy.apply(hidden_ND, head_VD, targets_N, softcap, vocab_size)
        )
    logits_NV = F.linear(hidden_ND, head_VD.to(hidden_ND.dtype))[:, :vocab_size]
    logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    logits_NV = softcap * torch.tanh(logits_NV / softcap)
    return F.cross_entropy(logits_NV, targets_N, ignore_index=IGNORE, reduction="sum")


class SoftcapCrossEntropy(torch.autograd.Function):
    """The loss and, in the same pass, its gradients: the logits are computed once and never
    kept."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        head_VD: Tensor,
        targets_N: Tensor,
        softcap: float,
        vocab_size: int,
    ) -> Tensor:
        """Shapes: as softcap_cross_entropy."""
        weights_VD = head_VD.to(hidden_ND.dtype)
        wide = torch.promote_types(hidden_ND.dtype, torch.float32)
        needs_grad = any(ctx.needs_input_grad)
        grad_hidden_ND = torch.empty_like(hidden_ND) if needs_grad else None
        grad_head: Tensor | None = None
        loss = torch.zeros((), dtype=wide)
        chunk = max(1, CHUNK_BYTES // (weights_VD.size(0) * weights_VD.element_size()))
        for start in range(0, hidden_ND.size(0), chunk):
            part = slice(start, start + chunk)
            logits = hidden_ND[part] @ weights_VD.T
            loss += _loss_and_gradient_(
                logits, targets_N[part], softcap, vocab_size, wide, needs_grad
            )
            if grad_hidden_ND is not None:
                torch.mm(logits, weights_VD, out=grad_hidden_ND[part])
                product = logits.T @ hidden_ND[part]
                grad_head = product if grad_head is None else grad_head.to(wide).add_(product)
        if grad_hidden_ND is not None and grad_head is not None:
            ctx.save_for_backward(grad_hidden_ND, grad_head.to(head_VD.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """The gradients of the forward pass, times the gradient of the loss."""
        grad_hidden_ND, grad_head_VD = ctx.saved_tensors
        (grad,) = grads
        return grad_hidden_ND * grad.to(grad_hidden_ND.dtype), grad_head_VD * grad, None, None, None


def _loss_and_gradient_(
    logits: Tensor,
    targets: Tensor,
    softcap: float,
    vocab_size: int,
    wide: torch.dtype,
    needs_grad: bool,
) -> Tensor:
    """The summed loss of one chunk; its raw logits are overwritten with their gradients."""
    rows = max(1, SLICE_ELEMENTS // logits.size(1))
    losses = []
    for start in range(0, logits.size(0), rows):
        part, targets_part = logits[start : start + rows], targets[start : start + rows]
        is_target = targets_part != IGNORE
        safe_targets = targets_part.clamp_min(0)[:, None]
        capped = part[:, :vocab_size].to(wide).div_(softcap).tanh_()
        picked = capped.gather(1, safe_targets)[:, 0] * softcap
        shift = softcap if softcap > LARGEST_CAP_WITHOUT_MAX else 0.0
        exponentials = (capped * softcap).sub_(shift).exp_() if shift else (capped * softcap).exp_()
        totals = exponentials.sum(dim=1, keepdim=True)
        losses.append((totals[:, 0].log() + shift - picked).mul_(is_target).sum())
        if needs_grad:
            probabilities = exponentials.div_(totals)
            probabilities.scatter_add_(
                1, safe_targets, probabilities.new_full((), -1.0).expand_as(safe_targets)
            )
            slope = capped.square_().neg_().add_(1.0)
            part[:, :vocab_size] = probabilities.mul_(slope).mul_(is_target[:, None])
            part[:, vocab_size:] = 0
    return torch.stack(losses).sum()


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

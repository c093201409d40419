"""Attention over memory.   in: queries, stretches of slots   out: what they see, mixed
who calls: forward.py

Scales are in the queries already.  One query a row (decode) sees every key it is given: the runs
end at its own position and begin where its window does, so nothing is masked.  A piece of a prompt
(prefill) sees what lies before each of its tokens, in blocks of queries.
Read next: forward.py; kvmemory.py (what a run is).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from nanochat.engine.kvmemory import Window

__all__ = ["attend_piece", "attend_row"]

QUERY_BLOCK = 256  # keys that no query of the block sees are not multiplied


def attend_row(q_KGE: Tensor, k_KSE: Tensor, v_KSE: Tensor) -> Tensor:
    """Attention of one token with all of these keys.

    Shapes: q_KGE (a group of queries for each key head), k_KSE, v_KSE -> (K, G, E).
    """
    if q_KGE.dtype == torch.float32 or q_KGE.device.type != "cpu":
        # Two small products: half the time of the flash kernel for one query in float32.
        scores_KGS = torch.bmm(q_KGE, k_KSE.transpose(1, 2))
        return torch.bmm(torch.softmax(scores_KGS, -1), v_KSE)
    # In bfloat16 it is the other way round, five times.
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    return flash(q_KGE[None], k_KSE[None], v_KSE[None], scale=1.0)[0][0]


def attend_piece(
    q_KTGE: Tensor, k_KSE: Tensor, v_KSE: Tensor, *, start: int, first: int, window: Window
) -> Tensor:
    """Attention of the tokens from position `start` on with keys from position `first` on.

    Shapes: q_KTGE, k_KSE, v_KSE -> (K, T, G, E).
    """
    K, T, G, E = q_KTGE.shape
    if T == k_KSE.size(1) and G == 1 and (window is None or window >= T - 1):
        y = F.scaled_dot_product_attention(
            q_KTGE[None, :, :, 0], k_KSE[None], v_KSE[None], is_causal=True, scale=1.0
        )
        return y[0].unsqueeze(2)
    blocks = []
    for begin in range(0, T, QUERY_BLOCK):
        end = min(begin + QUERY_BLOCK, T)
        low = 0 if window is None else max(0, start + begin - window - first)
        high = start + end - first
        queries = torch.arange(start + begin, start + end, device=q_KTGE.device)[:, None]
        keys = torch.arange(first + low, first + high, device=q_KTGE.device)
        is_visible = keys <= queries
        if window is not None:
            is_visible &= queries - keys <= window
        # The queries of a group lie one after another, as further queries of their key head.
        y = F.scaled_dot_product_attention(
            q_KTGE[:, begin:end].reshape(1, K, -1, E),
            k_KSE[None, :, low:high],
            v_KSE[None, :, low:high],
            attn_mask=is_visible.repeat_interleave(G, 0),
            scale=1.0,
        )
        blocks.append(y.view(K, end - begin, G, E))
    return torch.cat(blocks, dim=1)

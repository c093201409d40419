"""Attention over memory.   in: queries, stretches of slots   out: what they see, mixed
who calls: forward.py, decode.py

One query a row (decode) sees every key it is given: the runs end at its own position and begin
where its window does, so nothing is masked.  A piece of a prompt (prefill) sees what lies before
each of its tokens, in blocks of queries.
Read next: forward.py; kvmemory.py (what a run is).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from nanochat.engine.kvmemory import Window

__all__ = ["attend_piece", "attend_row"]

QUERY_BLOCK = 256  # keys that no query of the block sees are not multiplied


def attend_row(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attention of one token with all of these keys.

    Shapes: q (1, K, G, E), a group of queries for each key head; k, v (1, K, S, E) -> as q.
    """
    if q.dtype == torch.float32:
        # Two small products: half the time of the flash kernel for one query in float32.
        zero = q.new_zeros(())
        scores = torch.baddbmm(zero, q[0], k[0].transpose(1, 2), beta=0, alpha=scale)
        return torch.bmm(torch.softmax(scores, -1), v[0])[None]
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    # In bfloat16 on a CPU it is the other way round, five times.
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    return flash(q, k, v, scale=scale)[0]


def attend_piece(
    q_KTGE: Tensor,
    k_KSE: Tensor,
    v_KSE: Tensor,
    *,
    start: int,
    first: int,
    window: Window,
    scale: float,
) -> Tensor:
    """Attention of the tokens from position `start` on with keys from position `first` on.

    Shapes: q_KTGE, k_KSE, v_KSE -> (K, T, G, E).
    """
    K, T, G, E = q_KTGE.shape
    if T == k_KSE.size(1) and G == 1 and (window is None or window >= T - 1):
        y = F.scaled_dot_product_attention(
            q_KTGE[None, :, :, 0], k_KSE[None], v_KSE[None], is_causal=True, scale=scale
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
            scale=scale,
        )
        blocks.append(y.view(K, end - begin, G, E))
    return torch.cat(blocks, dim=1)

"""Attention of a whole text with itself.   in: queries, keys, values   out: what is seen, mixed
who calls: groups.py

What a window does not cut is one causal call.  Behind it every query sees as many keys as every
other, so that blocks of queries share one mask, made once; small blocks, because a block multiplies
by all keys that any of its queries sees (64 queries instead of 256 at a window of 1,024: a third
less time on a CPU).
Read next: attend.py (against memory), groups.py.
"""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from nanochat.engine.kvmemory import Window

__all__ = ["attend_masked", "attend_text"]

QUERY_BLOCK = {"cpu": 64}
QUERY_BLOCK_ELSEWHERE = 256  # a GPU wants few calls


def attend_text(
    q_KTGE: Tensor, k_KTE: Tensor, v_KTE: Tensor, window: Window, scale: float
) -> list[Tensor]:
    """Causal attention; a query sees itself and `window` tokens before it (None: all).

    Shapes: -> parts (K, some of T, G, E) that follow each other.
    """
    T = q_KTGE.size(1)
    whole = T if window is None else min(T, window + 1)
    parts = [_causal(q_KTGE[:, :whole], k_KTE[:, :whole], v_KTE[:, :whole], scale)]
    if window is None or whole == T:
        return parts
    block = QUERY_BLOCK.get(q_KTGE.device.type, QUERY_BLOCK_ELSEWHERE)
    mask = _band(window, block, q_KTGE.size(2), q_KTGE.dtype, str(q_KTGE.device))
    for begin in range(whole, T, block):
        end = min(begin + block, T)
        keys = slice(begin - window, end)
        rows = (end - begin) * q_KTGE.size(2)
        parts.append(
            attend_masked(
                q_KTGE[:, begin:end],
                k_KTE[:, keys],
                v_KTE[:, keys],
                mask[:rows, : window + end - begin],
                scale,
            )  # fmt: skip
        )
    return parts


def attend_masked(
    q_KTGE: Tensor, k_KSE: Tensor, v_KSE: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    """Queries of a group lie one after another, as further queries of their key head.

    Shapes: mask (T * G, S), added to the scores, None for nothing -> as q.
    """
    K, T, G, E = q_KTGE.shape
    y = F.scaled_dot_product_attention(
        q_KTGE.reshape(1, K, T * G, E), k_KSE[None], v_KSE[None], attn_mask=mask, scale=scale
    )
    return y.view(K, T, G, E)


def _causal(q_KTGE: Tensor, k_KTE: Tensor, v_KTE: Tensor, scale: float) -> Tensor:
    K, T, G, E = q_KTGE.shape
    q_HTE = q_KTGE.transpose(1, 2).reshape(K * G, T, E)
    # Every query head needs its keys beside it.
    k_HTE, v_HTE = (
        (k_KTE.repeat_interleave(G, 0), v_KTE.repeat_interleave(G, 0))
        if G > 1
        else (
            k_KTE,
            v_KTE,
        )
    )
    y = F.scaled_dot_product_attention(
        q_HTE[None], k_HTE[None], v_HTE[None], is_causal=True, scale=scale
    )
    return y[0].view(K, G, T, E).transpose(1, 2)


@lru_cache(maxsize=8)
def _band(window: int, block: int, num_groups: int, dtype: torch.dtype, device: str) -> Tensor:
    """What query i of a block sees of the keys from `window` before the block on: i to i + window.

    Shapes: -> (block * num_groups, window + block).
    """
    queries = torch.arange(block)[:, None]
    keys = torch.arange(window + block)[None]
    is_seen = (keys >= queries) & (keys <= queries + window)
    mask = torch.zeros(is_seen.shape).masked_fill_(~is_seen, float("-inf"))
    return mask.repeat_interleave(num_groups, 0).to(device, dtype)

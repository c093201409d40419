"""Attention one query at a time.   in: q, k, v, a window   out: what attend should give

Read next: nanochat/model/attention.py.
"""

import torch
from torch import Tensor


def attend_slowly(q_BTHE: Tensor, k_BTKE: Tensor, v_BTKE: Tensor, window: int | None) -> Tensor:
    """Each query meets itself and at most `window` keys to its left, head by head.

    Shapes: as nanochat.model.attention.attend.
    """
    B, T, H, E = q_BTHE.shape
    per_group = H // k_BTKE.size(2)
    rows = []
    for row in range(B):
        for query in range(T):
            first = 0 if window is None else max(0, query - window)
            for head in range(H):
                keys = k_BTKE[row, first : query + 1, head // per_group]
                values = v_BTKE[row, first : query + 1, head // per_group]
                scores = keys @ q_BTHE[row, query, head] / E**0.5
                weights = scores.exp() / scores.exp().sum()
                rows.append((weights[:, None] * values).sum(dim=0))
    return torch.stack(rows).view(B, T, H, E)

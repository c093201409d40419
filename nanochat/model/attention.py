"""Causal attention with grouped heads and windows.   in: x_BTD   out: x_BTD   who calls: gpt.py

A query sees itself and at most `window` tokens to its left, so window + 1 keys.  A whole text at
once, for training and as the truth that the engine's cached paths are held against.
Source: grouped queries Ainslie et al., arXiv:2305.13245; QK norm Henry et al., arXiv:2010.04245,
        after the rotation.
Read next: gpt.py; engine/forward.py (new tokens against what has been read).
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanochat.model.config import GPTConfig
from nanochat.model.eager import Attention
from nanochat.model.layers import Linear, rms_norm, rotate

__all__ = ["CausalAttention", "attend"]

# Queries a block when a window is shorter than the text: keys are sliced to the block's reach, so
# memory
# and time grow with T * window and not with T * T.
WINDOW_BLOCK_TOKENS = 256
PRODUCTS_MAX_TOKENS = (
    1024  # above this the kept probabilities outgrow what the faster products save
)


class CausalAttention(nn.Module):
    """Mixes each token with those before it; on some layers a value table by token joins the
    values."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.window = config.windows[layer]
        self.query = Linear(config.model_dim, config.num_heads * config.head_dim)
        self.key = Linear(config.model_dim, config.num_kv_heads * config.head_dim)
        self.value = Linear(config.model_dim, config.num_kv_heads * config.head_dim)
        self.output = Linear(config.num_heads * config.head_dim, config.model_dim)
        if config.value_embedding is not None and config.has_value_embedding(layer):
            self.value_gate = Linear(config.value_embedding.gate_channels, config.num_kv_heads)

    def forward(
        self, x_BTD: Tensor, value_embedding: Tensor | None, rotation: tuple[Tensor, Tensor]
    ) -> Tensor:
        """`rotation` is the rotary table, cosines and sines by position.

        Shapes: x_BTD, value_embedding (B, T, K * E) or None -> (B, T, D).
        """
        config = self.config
        B, T, _ = x_BTD.shape
        q_BTHE = self.query(x_BTD).view(B, T, config.num_heads, config.head_dim)
        k_BTKE = self.key(x_BTD).view(B, T, config.num_kv_heads, config.head_dim)
        v_BTKE = self.value(x_BTD).view(B, T, config.num_kv_heads, config.head_dim)
        if value_embedding is not None:
            v_BTKE = v_BTKE + self._gate(x_BTD) * value_embedding.view(v_BTKE.shape)
        q_BTHE, k_BTKE = self._position(q_BTHE, rotation), self._position(k_BTKE, rotation)
        y_BTHE = attend(q_BTHE, k_BTKE, v_BTKE, self.window)
        return self.output(y_BTHE.reshape(B, T, -1))

    def _gate(self, x_BTD: Tensor) -> Tensor:
        gate = self.config.value_embedding
        assert gate is not None, "a value embedding without its gate"
        logits_BTK = self.value_gate(x_BTD[..., : gate.gate_channels])
        return (gate.gate_scale * torch.sigmoid(logits_BTK)).unsqueeze(-1)

    def _position(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """Rotate first, then norm (the order matters for rounding), then scale if the generation
        does."""
        x = rms_norm(rotate(x, *rotation), self.config.norm_eps)
        return x if self.config.qk_scale == 1.0 else x * self.config.qk_scale


def attend(q_BTHE: Tensor, k_BTKE: Tensor, v_BTKE: Tensor, window: int | None) -> Tensor:
    """Causal attention of a whole text with itself.

    Shapes: q_BTHE, k_BTKE, v_BTKE -> (B, T, H, E); H is a multiple of K.
    Units:  window in tokens to the left of the query; None: all.
    """
    T = q_BTHE.size(1)
    reach = T if window is None else window
    is_trained = torch.is_grad_enabled() and q_BTHE.requires_grad
    if is_trained and q_BTHE.device.type == "cpu" and min(T, reach) <= PRODUCTS_MAX_TOKENS:
        return _attend_by_products(q_BTHE, k_BTKE, v_BTKE, reach)
    if reach >= T - 1:
        return _sdpa(q_BTHE, k_BTKE, v_BTKE, None)
    blocks = []
    for start in range(0, T, WINDOW_BLOCK_TOKENS):
        stop, first = min(start + WINDOW_BLOCK_TOKENS, T), max(0, start - reach)
        rows = torch.arange(start, stop, device=q_BTHE.device)[:, None]
        columns = torch.arange(first, stop, device=q_BTHE.device)[None, :]
        visible = (columns <= rows) & (rows - columns <= reach)
        blocks.append(
            _sdpa(q_BTHE[:, start:stop], k_BTKE[:, first:stop], v_BTKE[:, first:stop], visible)
        )
    return torch.cat(blocks, dim=1)


def _attend_by_products(q_BTHE: Tensor, k_BTKE: Tensor, v_BTKE: Tensor, reach: int) -> Tensor:
    """The training path on a CPU: heads become rows of a batch of matrices."""
    B, T, H, E = q_BTHE.shape
    num_groups = H // k_BTKE.size(2)
    if num_groups > 1:
        k_BTKE, v_BTKE = (x.repeat_interleave(num_groups, dim=2) for x in (k_BTKE, v_BTKE))
    q, k, v = (x.transpose(1, 2).reshape(B * H, T, E) for x in (q_BTHE, k_BTKE, v_BTKE))
    y = cast(Tensor, Attention.apply(q, k, v, E**-0.5, reach))
    return y.view(B, H, T, E).transpose(1, 2)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """PyTorch's attention, which wants heads before time; `visible` None means causal."""
    num_groups = q.size(2) // k.size(2)
    if num_groups > 1:
        k, v = (x.repeat_interleave(num_groups, dim=2) for x in (k, v))
    y = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=visible,
        is_causal=visible is None,
    )
    return y.transpose(1, 2)

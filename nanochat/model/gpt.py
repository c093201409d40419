"""The transformer.   in: tokens_BT   out: logits_BTV   who calls: train, evals

    e  = norm(embedding[token])
    x  = e + smear * sigmoid(gate(e)) * e[previous token]              (smear)
    for each block:  x = residual * x + input * x0                     (residual lambdas)
                     x = x + attention(norm(x));  x = x + mlp(norm(x))
    x  = x - backout * x[middle block]                                 (backout)
    logits = cap * tanh(head(norm(x)) / cap)

What a generation lacks is absent from the module and from its weights.
Source: karpathy/nanochat nanochat/gpt.py, five commits: see config.py.
Read next: attention.py, init.py (first weights), cost.py (what it costs).
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nanochat.model.attention import CausalAttention
from nanochat.model.config import GPTConfig
from nanochat.model.layers import MLP, Embedding, Linear, RotaryTable, mix, rms_norm

__all__ = ["GPT", "Block"]

LARGEST_FIRST_TABLE = 2**16  # positions; a longer context's table grows when it is used


class Block(nn.Module):
    """Attention, then MLP, each on the normed stream and added to it."""

    recomputes = False
    """Whether the backward pass computes this block again instead of keeping what it needs."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.norm_eps = config.norm_eps
        self.attention = CausalAttention(config, layer)
        self.mlp = MLP(config.model_dim)

    def forward(
        self, x_BTD: Tensor, value_embedding: Tensor | None, rotation: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Shapes: x_BTD -> (B, T, D)."""
        if self.recomputes and torch.is_grad_enabled():
            arguments = (x_BTD, value_embedding, rotation)
            return cast(
                Tensor,
                checkpoint(  # nothing in a block is random
                    self._both, *arguments, use_reentrant=False, preserve_rng_state=False
                ),
            )
        return self._both(x_BTD, value_embedding, rotation)

    def _both(
        self, x_BTD: Tensor, value_embedding: Tensor | None, rotation: tuple[Tensor, Tensor]
    ) -> Tensor:
        x_BTD = x_BTD + self.attention(rms_norm(x_BTD, self.norm_eps), value_embedding, rotation)
        return x_BTD + self.mlp(rms_norm(x_BTD, self.norm_eps))


class GPT(nn.Module):
    """A decoder-only transformer (FR-001).  Weights are whatever memory held: call init.initialize
    or load them."""

    residual_lambdas: Tensor
    input_lambdas: Tensor

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        rows, width = config.padded_vocab_size, config.model_dim
        self.embedding = Embedding(rows, width)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.head = Linear(width, rows)
        if config.residual_lambdas:
            self.residual_lambdas = nn.Parameter(torch.ones(config.num_layers))
            self.input_lambdas = nn.Parameter(torch.zeros(config.num_layers))
        self.value_embeddings = nn.ModuleDict(
            {
                str(layer): Embedding(rows, config.num_kv_heads * config.head_dim)
                for layer in range(config.num_layers)
                if config.has_value_embedding(layer)
            }
        )
        if config.smear_channels is not None:
            self.smear_gate = Linear(config.smear_channels, 1)
            self.smear_lambda = nn.Parameter(torch.zeros(1))
        if config.backout:
            self.backout_lambda = nn.Parameter(torch.zeros(1))
        self.rotary = RotaryTable(
            config.head_dim,
            config.rope_base,
            min(config.context_len, LARGEST_FIRST_TABLE),
            round_to_bfloat16=config.rope_dtype == "bfloat16",
        )

    def recompute(self, is_on: bool) -> None:
        """Whether the backward pass computes blocks again: a block then keeps its input alone, and
        a step takes about a third longer."""
        for block in self.blocks:
            block.recomputes = is_on  # type: ignore[assignment]

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Capped logits of the token after each.

        Shapes: tokens_BT -> logits_BTV in float32, V the true vocabulary.
        """
        return self.logits(self.hidden(tokens_BT))

    def hidden(self, tokens_BT: Tensor) -> Tensor:
        """The normed stream that the head reads.   Shapes: tokens_BT -> (B, T, D)."""
        config = self.config
        x_BTD = self._embed(tokens_BT)
        cos, sin = self.rotary(tokens_BT.size(1), x_BTD.dtype, tokens_BT.device)
        rotation = cos[None, :, None], sin[None, :, None]
        first_BTD = x_BTD
        middle_BTD: Tensor | None = None
        for layer, block in enumerate(self.blocks):
            if config.residual_lambdas:
                x_BTD = mix(
                    x_BTD, self.residual_lambdas[layer], first_BTD, self.input_lambdas[layer]
                )
            value_embedding = self._value_embedding(layer, tokens_BT, x_BTD.dtype)
            x_BTD = block(x_BTD, value_embedding, rotation)
            if config.backout and layer == config.backout_layer:
                middle_BTD = x_BTD
        if middle_BTD is not None:
            x_BTD = x_BTD - self.backout_lambda.to(x_BTD.dtype) * middle_BTD
        return rms_norm(x_BTD, config.norm_eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """Capped logits in float32 (or wider) from the normed stream.   Shapes: (..., D) -> (...,
        V)."""
        logits = self.head(hidden)[..., : self.config.vocab_size]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return self.config.logit_softcap * torch.tanh(logits / self.config.logit_softcap)

    def _embed(self, tokens_BT: Tensor) -> Tensor:
        e_BTD = rms_norm(self.embedding(tokens_BT), self.config.norm_eps)
        if self.config.smear_channels is None:
            return e_BTD
        gate_BTG = self.smear_gate(e_BTD[..., : self.config.smear_channels])
        amount = self.smear_lambda.to(e_BTD.dtype) * torch.sigmoid(gate_BTG)
        return torch.cat((e_BTD[:, :1], e_BTD[:, 1:] + amount[:, 1:] * e_BTD[:, :-1]), dim=1)

    def _value_embedding(self, layer: int, tokens_BT: Tensor, dtype: torch.dtype) -> Tensor | None:
        if not self.config.has_value_embedding(layer):
            return None
        found: Tensor = self.value_embeddings[str(layer)](tokens_BT)
        return found.to(dtype)

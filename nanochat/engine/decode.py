"""One token of every row -> the stream that the head reads.   in: Step   out: hidden_BD
who calls: forward.py, paged.py

The path that decides how fast a model talks.  Reading the weights empties the caches between any
two operators, so each costs 2 to 4 us and not 1: everything that can be is done once.  For a number
of rows there is one set of buffers, every view of them is made once, and a layer is about 25 calls
that write into them.  No call waits for the host, so a GPU can record them all as one graph.
Read next: weights.py (what is folded), attend.py, forward.py.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nanochat.engine.kvmemory import KVMemory, Window
from nanochat.engine.operators import bucket_of
from nanochat.engine.weights import LayerWeights, Weights
from nanochat.model.config import GPTConfig

__all__ = ["Buffers", "ReadMemory", "Step", "decode"]

ReadMemory = Callable[[int, Tensor], Tensor]
"""(layer, q_BKGE) -> y_BR: what each row's query sees in memory."""


@dataclass(frozen=True, slots=True)
class Step:
    """What changes from step to step, as tensors."""

    pairs: Tensor
    """The tokens of all rows, then those before them: the tables' row of zeros where there is
    none."""
    tokens_B: Tensor
    """Its first half."""
    rotation_BE: Tensor
    """cos - i sin at each row's position."""
    slots: dict[Window, Tensor]
    """Where each row's key and value go, by group of layers."""


class Buffers:
    """The memory of a step of `num_rows` rows, and every view of it that is needed."""

    def __init__(
        self,
        config: GPTConfig,
        weights: Weights,
        num_rows: int,
        *,
        dtype: torch.dtype,
        activation_dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        B, D, H, K, E = (
            num_rows, config.model_dim, config.num_heads, config.num_kv_heads, config.head_dim,
        )  # fmt: skip

        def floats(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=torch.float32, device=device)

        self.x_BD = floats(B, D)
        self.norm_B1 = floats(B, 1)
        self.h_BD = torch.empty(B, D, dtype=activation_dtype, device=device)
        self.first_BD = floats(B, D)
        self.middle_BD = floats(B, D)
        num_layers = config.num_layers if config.residual_lambdas else 0
        self.inputs_LBD = floats(num_layers, B, D)
        self.inputs = list(self.inputs_LBD)
        # Queries, keys, values and gates in one row, as real and as complex numbers; a rotation of
        # the whole row that leaves what is behind the keys alone needs no other views.
        q_width, k_width = H * E, K * E
        width = max(layer.qkv.shape[0] for layer in weights.layers)
        self.qkv_BC = floats(B, width).zero_()
        self.parts = {
            layer.qkv.shape[0]: self.qkv_BC[:, : layer.qkv.shape[0]] for layer in weights.layers
        }
        self.complex = torch.view_as_complex(self.qkv_BC.view(B, width // 2, 2))
        self.turns = torch.ones(B, width // 2, dtype=torch.complex64, device=device)
        turned = self.turns[:, : (q_width + k_width) // 2]
        self.turns_BHE = turned.view(B, H + K, E // 2)
        rows = self.qkv_BC
        self.qk_BHE = rows[:, : q_width + k_width].view(B, H + K, E)
        self.qk_norm_BH1 = floats(B, H + K, 1)
        self.q_in = rows[:, :q_width].view(B, K, H // K, E)
        self.k_in = rows[:, q_width : q_width + k_width].view(B, K, E)
        self.v_in = rows[:, q_width + k_width : q_width + 2 * k_width].view(B, K, E)
        gates_start = q_width + 2 * k_width
        self.gates_in = rows[:, gates_start : gates_start + K, None]
        self.q_norm = self.qk_norm_BH1[:, :H].view(B, K, H // K, 1)
        self.k_norm = self.qk_norm_BH1[:, H:]
        self.q_BKGE = torch.empty(B, K, H // K, E, dtype=dtype, device=device)
        self.new = torch.empty(B, 2 * K, E, dtype=dtype, device=device)
        self.k_out, self.v_out = self.new[:, :K], self.new[:, K:]
        self.new_heads_first = self.new.transpose(0, 1)
        self.gates_BK1 = floats(B, K, 1)
        self.embedded = torch.empty(2 * B, D, dtype=weights.embedding_VD.dtype, device=device)
        self.values: list[Tensor] = []
        if weights.values_VR is not None:
            table = weights.values_VR
            self.values_BR = torch.empty(B, table.size(1), dtype=table.dtype, device=device)
            self.values = list(self.values_BR.view(B, -1, K, E).unbind(1))
        self.eps = torch.tensor(config.norm_eps, device=device)
        self.input_L11 = torch.tensor(
            [layer.input for layer in weights.layers][:num_layers], device=device
        )[:, None, None]
        bucket = bucket_of(B)
        self.layers: list[tuple[LayerWeights, tuple[Callable[[Tensor], Tensor], ...]]] = [
            (
                layer,
                tuple(
                    linear.by_bucket[bucket]
                    for linear in (layer.qkv, layer.output, layer.expand, layer.contract)
                ),
            )
            for layer in weights.layers
        ]


def decode(
    config: GPTConfig,
    weights: Weights,
    buffers: Buffers,
    step: Step,
    memory: KVMemory,
    read_memory: ReadMemory,
) -> Tensor:
    """Feed one token of every row.   Shapes: -> hidden_BD in float32, normed."""
    b = buffers
    x, h, eps, norm = b.x_BD, b.h_BD, b.eps, b.norm_B1
    by_width, by_head = 1 / config.model_dim, 1 / config.head_dim
    vector_norm, addcmul, mul = torch.linalg.vector_norm, torch.addcmul, torch.mul
    _embed(config, weights, b, step)
    b.turns_BHE.copy_(step.rotation_BE[:, None])
    for index, (layer, (qkv, output, expand, contract)) in enumerate(b.layers):
        if config.residual_lambdas:
            torch.add(b.inputs[index], x, alpha=layer.residual, out=x)
        vector_norm(x, 2, -1, True, out=norm)
        mul(x, addcmul(eps, norm, norm, value=by_width, out=norm).rsqrt_(), out=h)
        y = qkv(h)
        b.parts[y.size(1)].copy_(y)
        mul(b.complex, b.turns, out=b.complex)
        heads = b.qk_norm_BH1
        vector_norm(b.qk_BHE, 2, -1, True, out=heads)
        addcmul(eps, heads, heads, value=by_head, out=heads).rsqrt_()
        mul(b.q_in, b.q_norm, out=b.q_BKGE)
        mul(b.k_in, b.k_norm, out=b.k_out)
        if layer.value_table is None:
            b.v_out.copy_(b.v_in)
        else:
            torch.sigmoid(b.gates_in, out=b.gates_BK1)
            addcmul(b.v_in, b.gates_BK1, b.values[layer.value_table], out=b.v_out)
        memory.layers[index].index_copy_(1, step.slots[config.windows[index]], b.new_heads_first)
        x.add_(output(read_memory(index, b.q_BKGE)))
        vector_norm(x, 2, -1, True, out=norm)
        mul(x, addcmul(eps, norm, norm, value=by_width, out=norm).rsqrt_(), out=h)
        u = expand(h)
        x.add_(contract(u.mul_(u)))
        if config.backout and index == config.backout_layer:
            b.middle_BD.copy_(x)
    if config.backout:
        x.add_(b.middle_BD, alpha=-weights.backout)
    vector_norm(x, 2, -1, True, out=norm)
    return mul(x, addcmul(eps, norm, norm, value=by_width, out=norm).rsqrt_())


def _embed(config: GPTConfig, weights: Weights, b: Buffers, step: Step) -> None:
    """The stream before the first block, its share in each block, and the value embeddings."""
    B = step.tokens_B.size(0)
    table = weights.embedding_VD
    if weights.smear_V1 is None:
        torch.index_select(table, 0, step.tokens_B, out=b.embedded[:B])
        b.x_BD.copy_(b.embedded[:B])
    else:
        torch.index_select(table, 0, step.pairs, out=b.embedded)
        amount_B1 = weights.smear_V1.index_select(0, step.tokens_B)
        torch.addcmul(b.embedded[:B], amount_B1, b.embedded[B:], out=b.x_BD)
    if weights.values_VR is not None:
        torch.index_select(weights.values_VR, 0, step.tokens_B, out=b.values_BR)
    if config.residual_lambdas:
        torch.mul(b.x_BD, b.input_L11, out=b.inputs_LBD)

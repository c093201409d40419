"""A model -> weights as the engine reads them.   in: GPT   out: Weights   who calls: forward.py

Done once, when an engine starts.  Queries, keys, values and the gates of value embeddings become
one matrix; norm(embedding) and the gate of the smear depend on a token alone and become tables; the
halves of a head that are rotated together become neighbours, so that a rotation is one product of
complex numbers (queries and keys alike, so their products stay what they were).
Read next: operators.py (how a matrix is multiplied), forward.py.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nanochat.engine.operators import Linear, Role
from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.model.layers import rms_norm

__all__ = ["LayerWeights", "MakeLinear", "Weights", "fuse"]

MakeLinear = Callable[[Tensor, Role], Linear]
"""From weight_CR in float32."""

ROWS_MULTIPLE = 16  # of a fused matrix: the 4-bit operator wants it


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One block.  The columns of `qkv`: queries, keys, values, then a gate for each value head."""

    qkv: Linear
    output: Linear
    expand: Linear
    contract: Linear
    residual: float
    input: float
    value_table: int | None
    """Which of the value embeddings is added here."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Everything a step reads.  Tables have one more row, of zeros, for 'no token'."""

    embedding_VD: Tensor
    """norm(embedding)."""
    smear_V1: Tensor | None
    """How much of the token before is added."""
    values_VR: Tensor | None
    """The value embeddings of all layers side by side, times the scale of their gates."""
    layers: tuple[LayerWeights, ...]
    head: Linear
    """Divided by the cap of the logits."""
    backout: float

    @property
    def num_matrix_elements(self) -> int:
        """Weights that a step multiplies by."""
        linears = [self.head]
        for layer in self.layers:
            linears += [layer.qkv, layer.output, layer.expand, layer.contract]
        return sum(linear.shape[0] * linear.shape[1] for linear in linears)


@torch.no_grad()
def fuse(model: GPT, make: MakeLinear, dtype: torch.dtype, device: torch.device) -> Weights:
    """The weights of a model, packed by `make`; tables in `dtype`.  The model is not changed."""
    config = model.config
    embedding_VD = rms_norm(_floats(model.embedding.weight), config.norm_eps)
    smear_V1 = None
    if config.smear_channels is not None:
        gate_V1 = embedding_VD[:, : config.smear_channels] @ _floats(model.smear_gate.weight).T
        smear_V1 = _with_zeros(model.smear_lambda.float().cpu() * torch.sigmoid(gate_V1))
        smear_V1 = smear_V1.to(device)
    return Weights(
        embedding_VD=_with_zeros(embedding_VD).to(device, dtype),
        smear_V1=smear_V1,
        values_VR=_value_tables(model, dtype, device),
        layers=tuple(_layer(model, layer, make) for layer in range(config.num_layers)),
        head=make(_floats(model.head.weight) / config.logit_softcap, "plain"),
        backout=float(model.backout_lambda) if config.backout else 0.0,
    )


def _layer(model: GPT, layer: int, make: MakeLinear) -> LayerWeights:
    config = model.config
    weights = {
        name.removeprefix(f"blocks.{layer}."): weight
        for name, weight in model.named_parameters()
        if name.startswith(f"blocks.{layer}.")
    }
    query, key, value = (
        _floats(weights[f"attention.{name}.weight"]) for name in ("query", "key", "value")
    )
    parts = [_paired(query, config), _paired(key, config), value]
    has_value = config.has_value_embedding(layer)
    if has_value:
        gate = _floats(weights["attention.value_gate.weight"])
        parts.append(torch.nn.functional.pad(gate, (0, config.model_dim - gate.size(1))))
    num_rows = sum(part.size(0) for part in parts)
    parts.append(torch.zeros(-num_rows % ROWS_MULTIPLE, config.model_dim))
    tables = [other for other in range(layer) if config.has_value_embedding(other)]
    return LayerWeights(
        qkv=make(torch.cat(parts), "plain"),
        output=make(_floats(weights["attention.output.weight"]), "plain"),
        expand=make(_floats(weights["mlp.expand.weight"]), "expand"),
        contract=make(_floats(weights["mlp.contract.weight"]), "contract"),
        residual=float(model.residual_lambdas[layer]) if config.residual_lambdas else 1.0,
        input=float(model.input_lambdas[layer]) if config.residual_lambdas else 0.0,
        value_table=len(tables) if has_value else None,
    )


def _value_tables(model: GPT, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    config = model.config
    gate = config.value_embedding
    layers = [layer for layer in range(config.num_layers) if config.has_value_embedding(layer)]
    if gate is None:
        return None
    width = config.num_kv_heads * config.head_dim
    tables = torch.zeros(
        config.padded_vocab_size + 1, len(layers) * width, dtype=dtype, device=device
    )
    for index, layer in enumerate(layers):
        table = model.get_parameter(f"value_embeddings.{layer}.weight")
        part = tables[:-1, index * width : (index + 1) * width]
        part.copy_(_floats(table) * gate.gate_scale)
    return tables


def _paired(weight: Tensor, config: GPTConfig) -> Tensor:
    """Rows j and j + E/2 of every head become neighbours.   Shapes: (heads * E, D) -> the same."""
    halves = weight.view(-1, 2, config.head_dim // 2, weight.size(1))
    return halves.transpose(1, 2).reshape(weight.shape)


def _with_zeros(table: Tensor) -> Tensor:
    return torch.cat((table, table.new_zeros(1, table.size(1))))


def _floats(weight: Tensor) -> Tensor:
    return weight.detach().to("cpu", torch.float32)

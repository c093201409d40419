"""The model and its loss, one token at a time.   in: a GPT's weights   out: what GPT should give

Everything is written out in the order of the formulas, without modules, batches, caches or
hand-written gradients; autograd goes through all of it.
Read next: nanochat/model/gpt.py.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from nanochat.model.config import GPTConfig
from tests.twins.attention import attend_slowly


def norm(x: Tensor, eps: float) -> Tensor:
    """x over its root mean square."""
    return x / torch.sqrt((x * x).mean(dim=-1, keepdim=True) + eps)


def rotate_slowly(x: Tensor, position: int, base: float, *, is_rounded: bool = False) -> Tensor:
    """Pair i is x[i], x[i + E/2]; it turns by minus position * base^(-2i/E), in float32 steps.

    Shapes: (E,) -> (E,).
    """
    half = x.numel() // 2
    turned = x.new_zeros(x.numel())
    for i in range(half):
        frequency = 1.0 / (torch.tensor(base) ** (torch.tensor(2.0 * i) / x.numel()))
        angle = torch.tensor(float(position)) * frequency
        cos, sin = angle.cos(), angle.sin()
        if is_rounded:
            cos, sin = cos.bfloat16(), sin.bfloat16()
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        first, second = x[i].clone(), x[i + half].clone()
        turned[i] = first * cos + second * sin
        turned[i + half] = second * cos - first * sin
    return turned


def logits_slowly(
    weights: Mapping[str, Tensor], config: GPTConfig, tokens: Sequence[int]
) -> Tensor:
    """Capped logits after each token.   Shapes: T tokens -> (T, V)."""
    eps = config.norm_eps
    embedded = [norm(weights["embedding.weight"][token], eps) for token in tokens]
    stream = [_smeared(weights, config, embedded, place) for place in range(len(tokens))]
    first, middle = list(stream), None
    for layer in range(config.num_layers):
        if config.residual_lambdas:
            a, b = weights["residual_lambdas"][layer], weights["input_lambdas"][layer]
            stream = [a * x + b * x0 for x, x0 in zip(stream, first, strict=True)]
        mixed = _attention(weights, config, layer, [norm(x, eps) for x in stream], tokens)
        stream = [x + y for x, y in zip(stream, mixed, strict=True)]
        stream = [x + _mlp(weights, layer, norm(x, eps)) for x in stream]
        if config.backout and layer == config.num_layers // 2:
            middle = list(stream)
    if middle is not None:
        share = weights["backout_lambda"]
        stream = [x - share * y for x, y in zip(stream, middle, strict=True)]
    logits = torch.stack([weights["head.weight"] @ norm(x, eps) for x in stream])
    cap = config.logit_softcap
    return cap * torch.tanh(logits[:, : config.vocab_size] / cap)


def loss_slowly(logits: Tensor, targets: Sequence[int], ignore: int) -> Tensor:
    """Minus the log-probabilities of the targets that count, summed."""
    total = logits.sum() * 0.0
    for row, target in zip(logits, targets, strict=True):
        if target != ignore:
            total = total + torch.logsumexp(row, dim=0) - row[target]
    return total


def _smeared(
    weights: Mapping[str, Tensor], config: GPTConfig, embedded: list[Tensor], place: int
) -> Tensor:
    x = embedded[place]
    if config.smear_channels is None or place == 0:
        return x
    gate = torch.sigmoid(weights["smear_gate.weight"][0] @ x[: config.smear_channels])
    return x + weights["smear_lambda"] * gate * embedded[place - 1]


def _attention(
    weights: Mapping[str, Tensor],
    config: GPTConfig,
    layer: int,
    stream: list[Tensor],
    tokens: Sequence[int],
) -> list[Tensor]:
    name, width = f"blocks.{layer}.attention", config.head_dim
    queries, keys, values = [], [], []
    for place, x in enumerate(stream):
        value = (weights[f"{name}.value.weight"] @ x).view(config.num_kv_heads, width)
        if config.value_embedding is not None and layer % 2 == (config.num_layers - 1) % 2:
            channels = x[: config.value_embedding.gate_channels]
            gate = torch.sigmoid(weights[f"{name}.value_gate.weight"] @ channels)
            table = weights[f"value_embeddings.{layer}.weight"][tokens[place]]
            scale = config.value_embedding.gate_scale
            value = value + scale * gate[:, None] * table.view(config.num_kv_heads, width)
        values.append(value)
        for part, heads in ((queries, "query"), (keys, "key")):
            rows = (weights[f"{name}.{heads}.weight"] @ x).view(-1, width)
            part.append(torch.stack([_placed(row, config, place) for row in rows]))
    mixed = attend_slowly(
        torch.stack(queries)[None],
        torch.stack(keys)[None],
        torch.stack(values)[None],
        config.windows[layer],
    )[0]
    return [weights[f"{name}.output.weight"] @ heads.flatten() for heads in mixed]


def _placed(head: Tensor, config: GPTConfig, place: int) -> Tensor:
    is_rounded = config.rope_dtype == "bfloat16"
    turned = rotate_slowly(head, place, config.rope_base, is_rounded=is_rounded)
    return norm(turned, config.norm_eps) * config.qk_scale


def _mlp(weights: Mapping[str, Tensor], layer: int, x: Tensor) -> Tensor:
    hidden = weights[f"blocks.{layer}.mlp.expand.weight"] @ x
    return weights[f"blocks.{layer}.mlp.contract.weight"] @ (torch.clamp(hidden, min=0) ** 2)

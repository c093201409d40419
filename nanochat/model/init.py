"""First weights.   in: GPT, generation, seed   out: nothing, the weights are written   who calls:
train

Every matrix is filled from its own generator, seeded by (seed, name): the first weights do not
depend on the
order of the modules, on the device, or on what else draws random numbers.
Source: karpathy/nanochat GPT.init_weights at the commits in config.py.
Read next: train/pretrain.py.
"""

import hashlib
import math
from dataclasses import dataclass

import torch

from nanochat.model.config import Generation
from nanochat.model.gpt import GPT

__all__ = ["INITS", "Init", "initialize"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Init:
    """How wide each kind of weight starts.  `uniform` bounds are in units of sqrt(3 / width): unit
    output variance."""

    embedding_std: float = 1.0
    head_std: float = 0.001
    expand_bound: float = 1.0
    gate_bound: float = 0.0
    """Gates of value embeddings and smear start uniform in [0, this)."""
    residual: tuple[float, float] = (1.0, 1.0)
    """First and last layer's weight of the stream; linear between."""
    input: tuple[float, float] = (0.0, 0.0)
    """First and last layer's weight of the embedding."""
    backout: float = 0.0


INITS: dict[Generation, Init] = {
    "v1": Init(),
    "v2": Init(),
    "v3": Init(input=(0.1, 0.1)),
    "v4": Init(embedding_std=0.8, expand_bound=0.5, gate_bound=0.02, input=(0.1, 0.1)),
    "v5": Init(
        embedding_std=0.8,
        expand_bound=0.4,
        gate_bound=0.02,
        residual=(1.15, 1.05),
        input=(0.20, 0.05),
        backout=0.2,
    ),
}


@torch.no_grad()
def initialize(model: GPT, generation: Generation = "v5", seed: int = 0) -> None:
    """Fill every weight: projections back into the stream with zeros, the rest as the generation
    does.

    Equal seeds give equal weights on every device.
    """
    init = INITS[generation]
    for name, weight in model.named_parameters():
        generator = torch.Generator().manual_seed(_seed(seed, name))
        values = _first_values(name, weight.shape, model, init, generator)
        weight.copy_(values.to(weight.dtype))


def _first_values(
    name: str, shape: torch.Size, model: GPT, init: Init, generator: torch.Generator
) -> torch.Tensor:
    bound = math.sqrt(3.0 / model.config.model_dim)
    num_layers = model.config.num_layers
    if name == "embedding.weight":
        return torch.randn(shape, generator=generator) * init.embedding_std
    if name == "head.weight":
        return torch.randn(shape, generator=generator) * init.head_std
    if name.endswith(("output.weight", "contract.weight")):
        return torch.zeros(shape)
    if name.endswith("expand.weight"):
        return _uniform(shape, -bound * init.expand_bound, bound * init.expand_bound, generator)
    if name.endswith(("value_gate.weight", "smear_gate.weight")):
        return _uniform(shape, 0.0, init.gate_bound, generator)
    if name == "residual_lambdas":
        return torch.linspace(*init.residual, num_layers)
    if name == "input_lambdas":
        return torch.linspace(*init.input, num_layers)
    if name == "smear_lambda":
        return torch.zeros(shape)
    if name == "backout_lambda":
        return torch.full(shape, init.backout)
    return _uniform(shape, -bound, bound, generator)  # query, key, value, value embeddings


def _uniform(
    shape: torch.Size, low: float, high: float, generator: torch.Generator
) -> torch.Tensor:
    return torch.rand(shape, generator=generator) * (high - low) + low


def _seed(seed: int, name: str) -> int:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:7], "big")

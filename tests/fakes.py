"""Models for tests.   in: what matters to the test   out: a config, a GPT with every weight at work

The weights of initialisation leave half of a model at zero; these do not.
Read next: tests/conftest.py.
"""

import dataclasses
from typing import Any

import torch

from nanochat.model.config import Generation, GPTConfig
from nanochat.model.gpt import GPT

__all__ = ["random_gpt", "tiny_config"]


def tiny_config(depth: int = 2, generation: Generation = "v5", **changes: Any) -> GPTConfig:
    """`depth` layers of 4 heads of 8, 2 of them key/value heads; `changes` replace any field."""
    config = GPTConfig.from_depth(
        depth, vocab_size=70, context_len=32, head_dim=8, aspect_ratio=32, generation=generation
    )
    fields = {"model_dim": 32, "num_heads": 4, "num_kv_heads": 2, **changes}
    return dataclasses.replace(config, **fields)


def random_gpt(config: GPTConfig, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> GPT:
    """A model whose logits are neither flat nor capped, whose scalars are not zero."""
    model = GPT(config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        values = torch.randn(parameter.shape, generator=generator)
        scale = 0.4 if parameter.ndim == 1 else parameter.size(-1) ** -0.5
        parameter.data = (values * scale).to(dtype)
    return model

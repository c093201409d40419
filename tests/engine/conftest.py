"""Tiny models of the five generations, with every weight at work."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from nanochat.engine.engine import Engine
from nanochat.engine.request import Request, SamplingParams
from nanochat.model.config import Generation, GPTConfig
from nanochat.model.gpt import GPT
from nanochat.tokenizer.tokenizer import Tokenizer

CONTEXT_LEN = 96
VOCAB_SIZE = 300
GENERATIONS: tuple[Generation, ...] = ("v1", "v2", "v3", "v4", "v5")


def random_model(generation: Generation = "v5", seed: int = 0) -> GPT:
    """Grouped heads, windows shorter than the texts, no weight at zero."""
    config = GPTConfig.from_depth(
        4,
        vocab_size=VOCAB_SIZE,
        context_len=CONTEXT_LEN,
        head_dim=16,
        aspect_ratio=16,
        generation=generation,
    )
    windows = config.windows if generation == "v1" else (9, 20, 9, CONTEXT_LEN)
    model = GPT(dataclasses.replace(config, num_kv_heads=2, windows=windows))
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        values = torch.randn(parameter.shape, generator=generator)
        parameter.data = values * (0.6 if parameter.ndim == 1 else parameter.size(-1) ** -0.5)
    model.embedding.weight.data *= 8
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session", params=GENERATIONS)
def any_model(request: pytest.FixtureRequest) -> GPT:
    return random_model(request.param)


@pytest.fixture(scope="session")
def model() -> GPT:
    return random_model()


@pytest.fixture
def engine(model: GPT, tiny_tokenizer: Tokenizer) -> Engine:
    return Engine(model, tiny_tokenizer)


@pytest.fixture
def ask() -> Callable[..., Request]:
    """A request of these tokens; what is not said is greedy, 8 tokens long and never stops."""
    ids = itertools.count()

    def build(tokens: Any, beyond_context: Any = "refuse", **sampling: Any) -> Request:
        defaults = {"max_tokens": 8, "temperature": 0.0}
        return Request(
            request_id=f"r{next(ids)}",
            prompt_tokens=tuple(tokens),
            sampling=SamplingParams(**{**defaults, **sampling}),
            beyond_context=beyond_context,
        )

    return build


def random_tokens(num_tokens: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCAB_SIZE - 9, (num_tokens,), generator=generator).tolist()

"""A checkpoint of a tiny model, and karpathy/nanochat's directories made of the golden figures."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.checkpoint.format import Checkpoint
from nanochat.model.config import Generation
from nanochat.tokenizer.tokenizer import Tokenizer
from nanochat.train.optim import RECIPES, Optimizer
from tests.fakes import random_gpt, tiny_config
from tests.golden import parity

ReferenceDirectory = Callable[[Generation], Path]


def tiny_checkpoint(tokenizer: Tokenizer, seed: int = 0, **state: Any) -> Checkpoint:
    model = random_gpt(tiny_config(2, vocab_size=tokenizer.vocab_size), seed=seed)
    optimizer = Optimizer(model, RECIPES["v5"])
    return Checkpoint(
        config=model.config,
        weights=optimizer.masters(),
        tokenizer=tokenizer,
        optimizer=optimizer.state(),
        state={"stage": "pretrain", "step": 5, **state},
    )


@pytest.fixture
def checkpoint(tiny_tokenizer: Tokenizer) -> Checkpoint:
    return tiny_checkpoint(tiny_tokenizer)


@pytest.fixture
def reference_directory(tmp_path: Path) -> ReferenceDirectory:
    """<home>/base_checkpoints/d4 and <home>/tokenizer, as karpathy/nanochat writes them."""

    def create(generation: Generation) -> Path:
        figures = parity.from_golden(generation)
        home = tmp_path / f"reference_{generation}"
        directory = home / "base_checkpoints" / "d4"
        directory.mkdir(parents=True)
        torch.save(figures.weights, directory / "model_000030.pt")
        shutil.copy(figures.meta, directory / "meta_000030.json")
        if figures.optimizer is not None:
            torch.save(figures.optimizer, directory / "optim_000030_rank0.pt")
        (home / "tokenizer").mkdir()
        shutil.copy(parity.HERE / "tokenizer.pkl", home / "tokenizer" / "tokenizer.pkl")
        return directory

    return create

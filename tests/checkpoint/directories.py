"""Directories of karpathy/nanochat's: found, read, and changed for a test."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanochat.checkpoint.reference import (
    ReferenceFiles,
    locate,
)
from nanochat.checkpoint.resolve import restore
from tests.golden import parity

__all__ = ["Change", "Weights", "edit_meta", "files_of", "logits_of", "rewrite"]

Weights = dict[str, Tensor]
Change = Callable[[Weights], Weights]


def files_of(directory: Path, step: int | None = None) -> ReferenceFiles:
    files = locate(directory, step=step)
    assert files is not None
    return files


def logits_of(checkpoint: Any, figures: parity.Figures) -> Tensor:
    model = restore(checkpoint, "here")
    with torch.inference_mode():
        return model(figures.rows[:, :-1])[:, :: figures.logits_every]


def rewrite(directory: Path, change: Change) -> None:
    """Change the weights in place."""
    path = directory / "model_000030.pt"
    weights = {name: weight.clone() for name, weight in torch.load(path, mmap=False).items()}
    torch.save(change(weights), path)


def edit_meta(directory: Path, *, without: tuple[str, ...] = (), **changes: Any) -> None:
    path = directory / "meta_000030.json"
    meta = json.loads(path.read_text())
    meta["model_config"] |= changes
    for name in without:
        del (meta["model_config"] if name in meta["model_config"] else meta)[name]
    path.write_text(json.dumps(meta))

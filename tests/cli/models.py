"""Tiny models in a home, for the verbs that run one."""

from pathlib import Path

import torch

from nanochat.checkpoint.format import Checkpoint, save_checkpoint
from nanochat.checkpoint.resolve import run_directory
from nanochat.model.gpt import GPT
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.engine.conftest import CONTEXT_LEN, random_model

__all__ = ["CONTEXT_LEN", "save_model"]


def save_model(home: Path, tokenizer: Tokenizer, run: str = "tiny", stage: str = "sft") -> GPT:
    """A random model as the last step of a stage of a run."""
    model = random_model()
    checkpoint = Checkpoint(
        config=model.config,
        weights={name: weight.to(torch.float32) for name, weight in model.named_parameters()},
        tokenizer=tokenizer,
        state={"stage": stage, "step": 3},
    )
    save_checkpoint(run_directory(home, run) / stage / "checkpoints" / "step_000003", checkpoint)
    return model

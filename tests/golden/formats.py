"""The format of checkpoints -> checkpoints/v<version>/ beside this file.   in: nothing
out: one tiny checkpoint for every format version there has been

Run `python -m tests.golden.formats` once when FORMAT_VERSION rises, before it is released: the
folder of the new version is written, those of the others are never touched again.
Read next: tests/checkpoint/test_upgrades.py (who loads them), nanochat/checkpoint/upgrades.py.
"""

import dataclasses
import math
from pathlib import Path

import torch
from torch import Tensor

from nanochat.checkpoint.format import FORMAT_VERSION, Checkpoint, save_checkpoint
from nanochat.model.config import GPTConfig, ValueEmbedding
from nanochat.model.gpt import GPT
from nanochat.tokenizer.tokenizer import Tokenizer

FOLDER = Path(__file__).parent / "checkpoints"


def expected() -> Checkpoint:
    """What every one of them holds: one layer of width 4, numbers that float32 has exactly."""
    config = dataclasses.replace(
        GPTConfig.from_depth(1, vocab_size=265, context_len=16, head_dim=2, aspect_ratio=32),
        model_dim=4,
        num_heads=2,
        num_kv_heads=1,
        value_embedding=ValueEmbedding(gate_channels=2, gate_scale=3.0),
        smear_channels=2,
    )
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in GPT(config).named_parameters()}
    weights = {name: numbers(shape, 1) for name, shape in shapes.items()}
    moments = {"num_steps": torch.tensor(7)}
    for name, shape in shapes.items():
        is_matrix = name.startswith("blocks.") and len(shape) == 2
        second = (*shape[:-1], 1) if is_matrix else shape
        moments |= {f"{name}/first": numbers(shape, 2), f"{name}/second": numbers(second, 3)}
    return Checkpoint(
        config=config,
        weights=weights,
        tokenizer=Tokenizer([bytes([byte]) for byte in range(256)]),
        optimizer=moments,
        state={
            "stage": "sft",
            "step": 7,
            "metrics": {"loss": 1.5, "val_bpb": 0.75},
            "parent": "runs/tiny/midtrain/checkpoints/step_000004",
            "batch_tokens": 64,
        },
    )


def numbers(shape: tuple[int, ...], factor: int) -> Tensor:
    """Multiples of 1/64, different everywhere near."""
    return (torch.arange(math.prod(shape)) * factor % 251 - 125).float().view(shape) / 64


if __name__ == "__main__":
    if not (FOLDER / f"v{FORMAT_VERSION}").exists():
        FOLDER.mkdir(exist_ok=True)
        save_checkpoint(FOLDER / f"v{FORMAT_VERSION}", expected())

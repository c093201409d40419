"""What pretraining, mid-training and SFT have in common.   in: a config, a model   out: Finished
who calls: pretrain.py, midtrain.py, sft.py

Opens the stage's place in the run, writes config.json and plan.json, trains, saves.
Read next: pretrain.py.
"""

import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import nanochat
from nanochat.checkpoint.format import Checkpoint, find_steps, save_checkpoint
from nanochat.checkpoint.resolve import STAGES, run_directory
from nanochat.common.config import to_json_dict
from nanochat.common.device import best_device, find_compiler, total_memory_bytes
from nanochat.common.errors import ConfigError
from nanochat.common.files import write_json_atomically
from nanochat.model.gpt import GPT
from nanochat.tokenizer.tokenizer import Tokenizer
from nanochat.train.config import StageConfig
from nanochat.train.display import Display
from nanochat.train.loop import Stage, Stream, fit
from nanochat.train.optim import Optimizer
from nanochat.train.plan import Hardware, Plan

__all__ = ["Finished", "StageWork", "hardware_of", "open_stage", "train_stage"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """What a stage leaves."""

    run: str
    stage: str
    checkpoint: Path
    metrics: list[dict[str, float]]
    model: GPT
    tokenizer: Tokenizer

    @property
    def val_bpb(self) -> float | None:
        """Bits per byte at the end, where there was validation text."""
        return next((row["val_bpb"] for row in reversed(self.metrics) if "val_bpb" in row), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class StageWork:
    """What one stage brings to `train_stage`."""

    name: str
    run: str
    model: GPT
    tokenizer: Tokenizer
    optimizer: Optimizer
    stream: Stream
    plan: Plan
    validate: Callable[[], float] | None
    is_padded: bool = False
    parent: str | None = None
    """The checkpoint this stage started from."""


def hardware_of(config: StageConfig) -> Hardware:
    """The machine as a plan sees it."""
    device = best_device(config.device)
    return Hardware(
        device_type=device.type,
        memory_bytes=total_memory_bytes(device),
        has_compiler=find_compiler() is not None,
    )


def open_stage(config: StageConfig, run: str, stage: str) -> Path:
    """The stage's directory, empty; with --overwrite the stages that went on from it go with it.

    Raises: ConfigError if it has a finished checkpoint and --overwrite was not given.
    """
    directory = run_directory(config.home, run) / stage
    if find_steps(directory):
        if not config.overwrite:
            raise ConfigError(
                f"run {run} has finished {stage} already: choose another --run, or pass --overwrite"
            )
        for later in STAGES[STAGES.index(stage) :]:
            shutil.rmtree(directory.with_name(later), ignore_errors=True)
    (directory / "checkpoints").mkdir(parents=True, exist_ok=True)
    (directory / "metrics.jsonl").unlink(missing_ok=True)
    return directory


def train_stage(
    config: StageConfig, work: StageWork, directory: Path, display: Display
) -> Finished:
    """Train and save; `directory` comes from open_stage."""
    write_json_atomically(directory / "config.json", _provenance(config, work))
    write_json_atomically(directory / "plan.json", work.plan.to_json())
    for name, value, reason in work.plan.lines():
        display.note(f"  {name:<16}{value}" + (f"   ({reason})" if reason else ""))
    checkpoint = directory / "checkpoints" / f"step_{work.plan.num_steps:06d}"

    def save(step: int, metrics: dict[str, float]) -> None:
        state = {
            "stage": work.name,
            "step": step,
            "metrics": metrics,
            "parent": work.parent,
            "batch_tokens": work.plan.batch_tokens,
        }
        save_checkpoint(
            checkpoint,
            Checkpoint(
                config=work.model.config,
                weights=work.optimizer.masters(),
                tokenizer=work.tokenizer,
                optimizer=work.optimizer.state(),
                state=state,
            ),
        )

    metrics = fit(
        Stage(
            name=work.name,
            model=work.model,
            optimizer=work.optimizer,
            stream=work.stream,
            plan=work.plan,
            validate=work.validate,
            save=save,
            is_padded=work.is_padded,
            metrics_path=directory / "metrics.jsonl",
            display=display,
        )
    )
    return Finished(
        run=work.run,
        stage=work.name,
        checkpoint=checkpoint,
        metrics=metrics,
        model=work.model,
        tokenizer=work.tokenizer,
    )


def _provenance(config: StageConfig, work: StageWork) -> dict[str, object]:
    return {
        "stage": work.name,
        "settings": to_json_dict(config),
        "model": work.model.config.to_json(),
        "tokenizer_hash": work.tokenizer.content_hash,
        "parent": work.parent,
        "nanochat": nanochat.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.platform(),
    }

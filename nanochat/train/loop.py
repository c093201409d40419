"""The only training loop.   in: Stage   out: a trained model, metrics   who calls: pretrain.py,
midtrain.py, sft.py

Each step: fetch batch n, compute it in parts, move the weights, report.  Evaluation and saving are
callables
that the stage hands in.  Nothing waits for the device but the loss that is logged, one step late.
Read next: pretrain.py, midtrain.py, sft.py (what is handed in).
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

import torch
from torch import Tensor

from nanochat.batches.batch import Batch, micro_batches
from nanochat.batches.stream import prefetch
from nanochat.common.device import keep_freed_memory, peak_flops, peak_memory_bytes
from nanochat.common.errors import TrainingError
from nanochat.model.gpt import GPT
from nanochat.train.display import Display
from nanochat.train.loss import compile_loss_sum, loss_sum
from nanochat.train.optim import Optimizer, Rates
from nanochat.train.plan import Plan

__all__ = ["Stage", "Stream", "fit"]

LossFunction = Callable[[GPT, Batch], Tensor]

MICRO_BATCH_MULTIPLE = 32  # padded rows are cut back to a multiple of this many tokens


class Stream(Protocol):
    """Where batches come from: the n-th is a pure function of n."""

    def batch(self, index: int, num_rows: int, rank: int = 0, world_size: int = 1) -> Batch:
        """The n-th batch of `num_rows` rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """Everything a stage is."""

    name: str
    model: GPT
    optimizer: Optimizer
    stream: Stream
    plan: Plan
    validate: Callable[[], float] | None = None
    """Bits per byte of the validation text."""
    save: Callable[[int, dict[str, float]], None] | None = None
    """Called with the step and the last metrics when the stage is done."""
    is_padded: bool = False
    """Rows end in padding that need not be computed."""
    metrics_path: Path | None = None
    display: Display = field(default_factory=lambda: Display(is_quiet=True))


def fit(stage: Stage) -> list[dict[str, float]]:
    """Train; returns the rows of metrics.jsonl.

    Raises: TrainingError if the loss stops being a number, with the step and what to do.
    """
    device = stage.model.embedding.weight.device
    keep_freed_memory()
    compute = _loss_function(stage, device)
    clock = _Clock(stage, peak_flops(device, stage.model.embedding.weight.dtype))
    rows: list[dict[str, float]] = []
    stage.model.train()
    stage.display.start(stage.name, stage.plan.num_steps)
    metrics_file = stage.metrics_path.open("a") if stage.metrics_path else None
    try:
        for step, batch in enumerate(_batches(stage)):
            losses, num_targets = _step(stage, compute, batch, device, step)
            row = clock.row(step + 1, _mean_loss(losses, num_targets, step), num_targets)
            if stage.validate is not None and _is_due(step + 1, stage.plan):
                row["val_bpb"] = _paused(clock, stage)
            rows.append(row)
            _report(row, metrics_file, stage.display)
    finally:
        stage.display.stop()
        if metrics_file:
            metrics_file.close()
    if stage.save is not None:
        stage.save(stage.plan.num_steps, rows[-1])
    return rows


def _loss_function(stage: Stage, device: torch.device) -> LossFunction:
    if stage.plan.is_compiled:
        return compile_loss_sum(device.type, is_padded=stage.is_padded)
    return loss_sum


def _batches(stage: Stage) -> Iterator[Batch]:
    plan = stage.plan
    return prefetch(stage.stream.batch(index, plan.batch_rows) for index in range(plan.num_steps))


def _step(
    stage: Stage, compute: LossFunction, batch: Batch, device: torch.device, step: int
) -> tuple[list[Tensor], int]:
    """Gradients of the whole batch, in parts, then one update; a batch without targets changes
    nothing."""
    num_targets = batch.num_targets
    losses = []
    multiple = MICRO_BATCH_MULTIPLE if stage.is_padded else None
    for part in micro_batches(batch, stage.plan.device_batch_rows, multiple):
        if part.num_targets == 0:
            continue
        part = Batch(
            part.inputs_BT.to(device, non_blocking=True),
            part.targets_BT.to(device, non_blocking=True),
        )
        loss = compute(stage.model, part) / num_targets
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
    if losses:
        schedule = stage.plan.schedule
        rates = Rates(
            schedule.lr_at(step), schedule.momentum_at(step), schedule.weight_decay_at(step)
        )
        stage.optimizer.step(rates)
    return losses, num_targets


def _mean_loss(losses: list[Tensor], num_targets: int, step: int) -> float:
    if not losses:
        return 0.0
    loss = float(torch.stack(losses).sum())
    if not math.isfinite(loss):
        raise TrainingError(
            f"the loss is {loss} at step {step + 1} ({num_targets} targets): lower --lr-scale, or "
            "use --dtype float32"
        )
    return loss


def _is_due(step: int, plan: Plan) -> bool:
    return step == plan.num_steps or (plan.eval_every > 0 and step % plan.eval_every == 0)


def _paused(clock: "_Clock", stage: Stage) -> float:
    """Validate while the clock of the throughput stands still."""
    assert stage.validate is not None, "nothing to validate with"
    start_s = time.monotonic()
    stage.model.eval()
    value = stage.validate()
    stage.model.train()
    clock.pause(time.monotonic() - start_s)
    return value


def _report(row: dict[str, float], file: IO[str] | None, display: Display) -> None:
    display.step(row)
    if file is not None:
        file.write(json.dumps(row) + "\n")
        file.flush()


class _Clock:
    """Throughput, utilisation and time left, validation excluded."""

    def __init__(self, stage: Stage, peak: float) -> None:
        self._plan, self._peak = stage.plan, peak
        self._device = stage.model.embedding.weight.device
        self._start_s = self._last_s = time.monotonic()
        self._smooth_s = 0.0
        self._paused_s = 0.0

    def pause(self, seconds: float) -> None:
        """Time that is not training."""
        self._last_s += seconds
        self._paused_s += seconds

    def row(self, step: int, loss: float, num_targets: int) -> dict[str, float]:
        """The metrics of the step that has just ended.

        Units: tokens_per_s and mfu count the targets; mfu by the dense formula over the peak of
               this machine.
        """
        now_s = time.monotonic()
        step_s = now_s - self._last_s
        self._last_s = now_s
        self._smooth_s = step_s if step <= 2 else 0.9 * self._smooth_s + 0.1 * step_s
        tokens_per_s = num_targets / max(step_s, 1e-9)
        return {
            "step": step,
            "loss": loss,
            "lr": self._plan.schedule.lr_at(step - 1),
            "num_targets": num_targets,
            "tokens_per_s": tokens_per_s,
            "mfu": tokens_per_s * self._plan.flops_per_token / self._peak,
            "memory_bytes": peak_memory_bytes(self._device),
            "eta_s": self._smooth_s * (self._plan.num_steps - step),
            "elapsed_s": now_s - self._start_s - self._paused_s,
        }

"""The only training loop.   in: Stage   out: a trained model, metrics   who calls: pretrain.py,
midtrain.py, sft.py

    for each step   fetch batch n -> update -> save, if due -> validate, if due
    a signal        ends the run after its step, saved
    no number       the update is thrown away; too often in a row, training goes back to the last
                    checkpoint once and passes over what it had tried

Evaluation and saving are handed in.  Saving comes before evaluation, so that a failing evaluation
loses nothing.  The loss is read one step late: nothing waits for the device.
Read next: step.py (one update), guard.py (what is healthy), stages.py (what is handed in).
"""

import contextlib
import math
import signal
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import torch

from nanochat.batches.batch import Batch
from nanochat.batches.prefetch import prefetch, waited
from nanochat.common.device import keep_freed_memory, peak_flops
from nanochat.common.dist import World
from nanochat.common.errors import Stopped, TrainingError
from nanochat.common.transfer import Arrival
from nanochat.model.gpt import GPT
from nanochat.train.clock import Clock, Waiting
from nanochat.train.display import Display
from nanochat.train.guard import Guard
from nanochat.train.loss import compile_loss_sum, loss_sum
from nanochat.train.optim import Optimizer, Rates
from nanochat.train.plan import Plan
from nanochat.train.progress import Progress
from nanochat.train.rows import append_row, read_rows, rewrite_rows
from nanochat.train.step import LossFunction, Stepper, explained
from nanochat.train.stop import StopSignals

if TYPE_CHECKING:
    from nanochat.train.fsdp import ShardedOptimizer

__all__ = ["Keeper", "SourcedStream", "Stage", "Stream", "fit"]

PACE_EVERY = 20  # steps between looks at which rank is slow
MAX_SKIPS = 10  # updates thrown away in a row before training goes back


class Stream(Protocol):
    """Where batches come from: the n-th is a pure function of n."""

    @property
    def fingerprint(self) -> str:
        """What decides every batch but its number."""

    def batch(self, index: int, num_rows: int, rank: int = 0, world_size: int = 1) -> Batch:
        """The n-th batch of `num_rows` rows."""


@runtime_checkable
class SourcedStream(Protocol):
    """A stream that knows what its batches are from."""

    def tokens_by_source(self, index: int, num_rows: int) -> dict[str, int]:
        """What the n-th batch has of each source."""


class Keeper(Protocol):
    """Where checkpoints go."""

    def save(self, progress: Progress, metrics: dict[str, float]) -> None:
        """Keep the run as it is now; may go on in the background."""

    def validated(self, step: int, val_bpb: float) -> None:
        """The checkpoint of this step measured so much: the best one is kept."""

    def check(self) -> None:
        """Raise what has gone wrong in the background."""

    def finish(self) -> None:
        """Wait until everything is on disk."""

    def go_back(self) -> Progress | None:
        """Weights and moments of the newest checkpoint whose last update was applied, in place;
        None where there is none."""


class _KeepsNothing:
    """The keeper of a run that leaves no checkpoint."""

    def save(self, progress: Progress, metrics: dict[str, float]) -> None:
        pass

    def validated(self, step: int, val_bpb: float) -> None:
        pass

    def check(self) -> None:
        pass

    def finish(self) -> None:
        pass

    def go_back(self) -> Progress | None:
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """Everything a stage is."""

    name: str
    model: GPT
    optimizer: "Optimizer | ShardedOptimizer"
    stream: Stream
    plan: Plan
    validate: Callable[[], float | Mapping[str, float]] | None = None
    """Bits per byte of the validation text: one number, or several, val_bpb among them."""
    examine: Callable[[int], dict[str, float]] | None = None
    """Scores of tasks at a step, by the name they have in metrics.jsonl: it begins with eval/."""
    keeper: Keeper = field(default_factory=_KeepsNothing)
    is_padded: bool = False
    """Rows end in padding that need not be computed."""
    metrics_path: Path | None = None
    display: Display = field(default_factory=lambda: Display(is_quiet=True))
    progress: Progress = field(default_factory=Progress)
    """Where an earlier part of the run has come to; weights and moments are as it left them."""
    max_skips: int = MAX_SKIPS
    """Updates that may be thrown away in a row."""
    world: World = field(default_factory=World)
    replanned: Callable[[Plan], None] = lambda plan: None
    """Told when memory ran out and fewer rows are computed at once."""


def fit(stage: Stage) -> list[dict[str, float]]:
    """Train; returns the rows of metrics.jsonl, those of an earlier part of the run included.

    Raises: TrainingError if the loss stops being a number, with what to do; Stopped after a signal,
            saved; CheckpointError if saving failed.
    """
    keep_freed_memory()
    loop = _Loop(stage)
    stage.model.train()
    lr = stage.optimizer.rates_by_role()["matrix"]
    stage.display.start(stage.name, stage.plan.num_steps, lr)
    try:
        loop.run()
    finally:
        stage.display.stop()
    return loop.rows


class _Pending(NamedTuple):
    """A step whose loss has not been read yet."""

    step: int
    """Updates done with it."""
    batch: int
    """The number of its batch."""
    num_targets: int
    measured: Arrival
    """Loss, norm of the gradient, and whether the update was applied, on their way to the host."""
    timing: dict[str, float]
    """Of the clock, when it was done (on a GPU: when it was on its way)."""


class _Loop:
    """The state of one run of the loop."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.plan, self.progress = stage, stage.plan, stage.progress
        self.rows = read_rows(stage.metrics_path, stage.progress)
        self.guard = Guard(stage.max_skips, stage.progress.streak)
        self.pending: _Pending | None = None
        self.waiting = Waiting()
        device = stage.model.embedding.weight.device
        peak = peak_flops(device, stage.optimizer.compute_dtype) * stage.world.size
        elapsed_s = self.rows[-1]["elapsed_s"] if self.rows else 0.0
        self.clock = Clock(stage.plan, device, peak, elapsed_s)
        self.stepper = Stepper(
            stage.model,
            stage.optimizer,
            _loss_function(stage, device),
            device_rows=stage.plan.device_batch_rows,
            is_padded=stage.is_padded,
            world=stage.world,
        )

    def run(self) -> None:
        self._write_rows()
        self._validate_what_was_saved()
        with StopSignals() as signals, self.stage.world.together(self.stage.display.note):
            while self.progress.step < self.plan.num_steps:
                with contextlib.closing(self._batches()) as batches:
                    for batch, wait_s in waited(batches):
                        if not (self._advance(batch, wait_s) and self._stop_if_asked(signals)):
                            break  # training went back: the batches are other ones now
            self.stage.keeper.finish()
            self._stop_if_asked(signals)

    def _batches(self) -> Generator[Batch]:
        """From where the run stands to its end."""
        world, progress = self.stage.world, self.progress
        return prefetch(
            self.stage.stream.batch(
                progress.batch_number(step), self.plan.batch_rows, world.rank, world.size
            )
            for step in range(progress.step, self.plan.num_steps)
        )

    def _advance(self, batch: Batch, wait_s: float) -> bool:
        """One step and what is due after it; False if training went back."""
        self.stage.keeper.check()
        self.stepper.pace.waited(wait_s)
        if told := self.waiting.see(wait_s):
            self.stage.display.note(f"  step {self.progress.step}: {told}")
        step, schedule = self.progress.step, self.plan.schedule
        rates = Rates(
            schedule.lr_at(step), schedule.momentum_at(step), schedule.weight_decay_at(step)
        )
        result = self.stepper.step(batch, rates)
        # At once: behind the next step the copies would wait for it.
        measured = Arrival([result.loss, result.grad_norm, result.is_good])
        timing = self.clock.metrics(step + 1, result.num_targets)
        timing["data_wait_s"] = wait_s
        self._replan_if_halved()
        if not self._settle():
            return False
        number = self.progress.batch_number(step)
        self.pending = _Pending(step + 1, number, result.num_targets, measured, timing)
        self.progress = self.progress.advanced()
        self.stage.world.now_at(self.progress.step)
        self._report_pace()
        is_first = step == self.stage.progress.step  # a run that begins is heard of at once
        saves, validates = self.plan.saves_at(step + 1), self._validates_at(step + 1)
        if is_first or saves or validates:
            return self._settle(is_saved=saves, is_validated=validates)
        return True

    def _settle(self, *, is_saved: bool = False, is_validated: bool = False) -> bool:
        """Read the loss that is pending, and do what is due; False if training went back."""
        if self.pending is None:
            return True
        pending, self.pending = self.pending, None
        row = self._row(pending)
        if not self._is_healthy(pending, row):
            return False
        if is_saved:
            with self.clock.paused():
                self.stage.keeper.save(self.progress, row)
        if is_validated:
            self._validate(row)
        self.rows.append(row)
        self.stage.display.step(row)
        if self.stage.metrics_path is not None and self.stage.world.is_first:
            append_row(self.stage.metrics_path, row)
        return True

    def _row(self, pending: _Pending) -> dict[str, float]:
        loss, grad_norm, is_good = pending.measured.read()
        return {
            "step": pending.step,
            "loss": loss if is_good else math.nan,
            "grad_norm": grad_norm if is_good else math.nan,
            "lr": self.plan.schedule.lr_at(pending.step - 1),
            "num_targets": pending.num_targets,
            **self._sources(pending.batch),
            **pending.timing,
        }

    def _sources(self, batch: int) -> dict[str, float]:
        """Tokens of each source in a batch, where there are several."""
        stream = self.stage.stream
        if not isinstance(stream, SourcedStream):
            return {}
        tokens = stream.tokens_by_source(batch, self.plan.batch_rows)
        return {f"tokens/{name}": count for name, count in tokens.items()}

    # --------------------------------------------------------------------------------- health

    def _is_healthy(self, pending: _Pending, row: dict[str, float]) -> bool:
        """Whether training may go on from here; what is unusual is said."""
        if not row["num_targets"]:
            return True
        sigmas = self.guard.sigmas(row["loss"])
        verdict = self.guard.see(row["loss"], is_good=math.isfinite(row["loss"]))
        where = f"  step {pending.step} (batch {pending.batch}):"
        if verdict == "spike":
            self.stage.display.note(
                f"{where} loss {row['loss']:.4f} is {sigmas:.1f} standard deviations above the "
                "recent ones"
            )
        if verdict in ("discarded", "stuck"):
            self.progress = self.progress.without_update_of(pending.batch)
            loss, grad_norm, _ = pending.measured.read()
            self.stage.display.note(
                f"{where} loss {loss:g}, gradient norm {grad_norm:g}: its update is thrown away"
            )
        else:
            self.progress = self.progress.with_update()
        if verdict == "stuck":
            self._go_back(pending)
        return verdict != "stuck"

    def _go_back(self, pending: _Pending) -> None:
        """To the last checkpoint, passing over what was tried since; once.

        Raises: TrainingError the second time, or where there is no checkpoint.
        """
        stage, tried = self.stage, self.progress
        why = (
            f"{stage.max_skips} updates in a row were no finite numbers, up to step "
            f"{pending.step} (batch {pending.batch})"
        )
        remedy = "lower --lr-scale, use --dtype float32, or look at the text of these batches"
        if tried.num_returns:
            raise TrainingError(
                f"{why}, after training had gone back once and passed over batches "
                f"{_ranges(tried.skipped)}: {remedy}"
            )
        stage.keeper.finish()
        stage.world.wait()
        back = stage.keeper.go_back()
        if back is None:
            raise TrainingError(f"{why}, and there is no checkpoint to go back to: {remedy}")
        self.progress = tried.gone_back(back)
        self.rows = [row for row in self.rows if row["step"] <= back.step]
        self._write_rows()
        self.guard.forget()
        stage.display.note(
            f"  {why}: back to step {back.step}, and batches {_ranges(self.progress.skipped)} are "
            "passed over"
        )

    def _replan_if_halved(self) -> None:
        rows = self.stepper.device_rows
        if rows == self.plan.device_batch_rows:
            return
        reasons = self.plan.reasons | {"at once": "memory ran out with more"}
        self.plan = replace(self.plan, device_batch_rows=rows, reasons=reasons)
        self.stage.display.note(f"  out of memory: {rows} rows are computed at once from now on")
        self.stage.replanned(self.plan)

    def _report_pace(self) -> None:
        """Now and then: which rank do all others wait for?"""
        world = self.stage.world
        if world.size == 1 or self.progress.step % PACE_EVERY:
            return
        if told := self.stepper.pace.report(world):
            self.stage.display.note(f"  step {self.progress.step}: {told}")

    def _stop_if_asked(self, signals: StopSignals) -> bool:
        """Whether nobody asked; False if training went back, which the next step's checkpoint is to
        remember: a signal is obeyed after it.

        Raises: Stopped on all ranks, if any got a signal.
        """
        number = self.stage.world.largest(signals.received or 0)
        if not number:
            return True
        if not self._settle():
            return False
        step, num_steps = self.progress.step, self.plan.num_steps
        self.stage.keeper.save(self.progress, self.rows[-1] if self.rows else {})
        self.stage.keeper.finish()
        # Only the first rank writes, and launchers end all ranks soon after the first exit code
        # that is not 0 (torchrun and srun's --kill-on-bad-exit within 30 s): nobody goes before.
        self.stage.world.wait()
        raise Stopped(
            f"{self.stage.name} was stopped by {signal.Signals(number).name} after step {step} of "
            f"{num_steps}, and saved: "
            + ("the same command goes on" if step < num_steps else "it is finished"),
            128 + number,
        )

    # ----------------------------------------------------------------------------- validation

    def _validates_at(self, step: int) -> bool:
        stage = self.stage
        has_any = stage.validate is not None or stage.examine is not None
        return has_any and self.plan.validates_at(step)

    def _validate(self, row: dict[str, float]) -> None:
        stage, step = self.stage, int(row["step"])
        with self.clock.paused(), explained(stage.model, "validation"):
            stage.model.eval()
            if stage.validate is not None:
                told = stage.validate()
                row |= told if isinstance(told, Mapping) else {"val_bpb": told}
            if stage.examine is not None:
                row |= stage.examine(step)
            stage.model.train()
        if stage.validate is not None:
            stage.keeper.validated(step, row["val_bpb"])

    def _validate_what_was_saved(self) -> None:
        """An earlier part of the run may have ended between saving and validating."""
        is_due = self.rows and self._validates_at(self.progress.step)
        if is_due and not any(
            name == "val_bpb" or name.startswith("eval/") for name in self.rows[-1]
        ):
            self._validate(self.rows[-1])
            self._write_rows()

    def _write_rows(self) -> None:
        if self.stage.metrics_path is not None and self.stage.world.is_first:
            rewrite_rows(self.stage.metrics_path, self.rows)


def _loss_function(stage: Stage, device: torch.device) -> LossFunction:
    if stage.plan.is_compiled:
        return compile_loss_sum(device.type, is_padded=stage.is_padded)
    return loss_sum


def _ranges(numbers: Sequence[int]) -> str:
    """4 to 9, 12 for 4, 5, 6, 7, 8, 9 and 12."""
    ends = [n for n in numbers if n + 1 not in numbers]
    starts = [n for n in numbers if n - 1 not in numbers]
    pairs = zip(starts, ends, strict=True)
    return ", ".join(f"{first}" if first == last else f"{first} to {last}" for first, last in pairs)

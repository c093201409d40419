"""Checkpoints while training goes on.   in: a step, its Checkpoint   out: step_<n>/, best.json
who calls: train

Saving has two halves.  The step is held up only while tensors are copied into host memory; a thread
hashes, writes, flushes and renames, then removes what retention no longer keeps.  One write is in
flight at most: the next one waits for it.  What goes wrong there is raised by the next call here.
Read next: format.py (what is written), docs/operate.md (what survives what).
"""

import copy
import dataclasses
import math
import re
import shutil
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nanochat.checkpoint.format import (
    Checkpoint,
    checkpoints_in,
    is_steady,
    save_checkpoint,
    step_path,
    verify_checkpoint,
)
from nanochat.common.errors import CheckpointError, ConfigError, NanochatError
from nanochat.common.files import read_json, write_json_atomically

__all__ = ["Retention", "Saver"]

BEST = "best.json"
LEFT_BY_A_KILL = re.compile(r"\.step_\d+\.(writing|removing)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Retention:
    """Which of a stage's checkpoints stay, besides the best by validation.

    Raises: ConfigError for a number below 1.
    """

    keep_last: int = 2
    """The newest so many; two, so that a damaged newest one costs one interval and no more.
    One that was saved between updates that were thrown away does not count: it is what a killed run
    goes on from, but no place to go back to."""
    keep_every: int | None = None
    """Besides, every step that is a multiple of this. None: no others."""

    def __post_init__(self) -> None:
        for name in ("keep_last", "keep_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}, expected at least 1")

    def kept(self, steps: list[int], best: int | None, unsteady: Collection[int] = ()) -> set[int]:
        """Which of `steps` stay; `unsteady` ones alone only while they are the newest."""
        steady = sorted(set(steps) - set(unsteady))
        kept = {step for step in steps if step == best} | set(steady[-self.keep_last :])
        kept |= set(sorted(steps)[-1:])
        if self.keep_every is not None:
            kept |= {step for step in steps if step % self.keep_every == 0}
        return kept


class Saver:
    """Writes a stage's checkpoints and removes old ones.

    One process saves into a directory; others may read it meanwhile.
    """

    def __init__(
        self, directory: Path, retention: Retention = Retention(), *, is_background: bool = True
    ) -> None:
        self.directory, self.retention, self.is_background = directory, retention, is_background
        self._thread: threading.Thread | None = None
        self._step: int | None = None
        self._error: NanochatError | None = None
        self._memory = _HostMemory()
        self._val_bpb = _read_best(directory / BEST)
        self._has_swept = False

    def save(self, step: int, checkpoint: Checkpoint) -> None:
        """Have the checkpoint written; the tensors may change as soon as this returns.

        A valid one of the same step stays as it is; a damaged one is replaced.
        Raises: CheckpointError of the write before this one, or of this one if it is in the
                foreground.
        """
        if not self.begins(step):
            return
        self._step = step
        if not self.is_background:
            self._write(step, checkpoint, None)
            self.check()
            return
        copied, is_copied = self._memory.copy(checkpoint)
        # Not a daemon: at the end of the process the write in flight is waited for.
        self._thread = threading.Thread(
            target=self._write, args=(step, copied, is_copied), name=f"save step {step}"
        )
        self._thread.start()

    def begins(self, step: int) -> bool:
        """Whether `save` would write: what was handed over before is on the disk, and this step is
        not.

        Raises: CheckpointError of the write before.
        """
        self.finish()
        if not self._has_swept:  # not before: of several processes only one saves
            self._has_swept = True
            self._sweep()
        return not self._is_there(step)

    def validated(self, step: int, val_bpb: float) -> None:
        """Remember how good a step is; the best of those that have a checkpoint is kept.

        Raises: CheckpointError if the disk refuses.
        """
        there = {*checkpoints_in(self.directory), self._step}
        if step not in there or not math.isfinite(val_bpb):
            return
        known = {known: value for known, value in self._val_bpb.items() if known in there}
        self._val_bpb = known | {step: val_bpb}
        path = self.directory / BEST
        try:
            write_json_atomically(path, {"val_bpb": self._val_bpb})
        except OSError as error:
            raise CheckpointError(f"{path}: not written, {error}") from error

    def check(self) -> None:
        """Nothing, at once, if all is well.

        Raises: CheckpointError if the last write failed; once for each failure.
        """
        error, self._error = self._error, None
        if error is not None:
            raise error

    def drop_unsteady(self, after: int) -> None:
        """Remove what training has gone back from: what was saved after this step between updates
        that were thrown away.  Nobody may be reading it.

        Raises: CheckpointError if the disk refuses.
        """
        for step, path in checkpoints_in(self.directory).items():
            if step > after and not is_steady(path):
                _remove(path)

    def finish(self) -> None:
        """Wait until what was handed over is on the disk.

        Raises: CheckpointError as `check` does.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def _sweep(self) -> None:
        """Remove what a killed process left half written or half removed."""
        for path in self.directory.glob(".step_*"):
            if LEFT_BY_A_KILL.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)

    def _is_there(self, step: int) -> bool:
        path = step_path(self.directory, step)
        if not path.exists():
            return False
        try:
            verify_checkpoint(path)
        except CheckpointError:
            _remove(path)
            return False
        return True

    def _write(self, step: int, checkpoint: Checkpoint, is_copied: torch.cuda.Event | None) -> None:
        path = step_path(self.directory, step)
        try:
            if is_copied is not None:
                is_copied.synchronize()
            save_checkpoint(path, checkpoint)
            self._retain(step)
        except NanochatError as error:
            self._error = error
        except Exception as error:
            self._error = CheckpointError(f"{path}: not saved, {type(error).__name__}: {error}")
            self._error.__cause__ = error

    def _retain(self, newest: int) -> None:
        """Newer ones than the one just written are damaged, or somebody's: they are left alone."""
        found = checkpoints_in(self.directory)
        steps = [step for step in found if step <= newest]
        scored = {step: bpb for step, bpb in self._val_bpb.items() if step in found}
        best = min(scored, key=scored.__getitem__) if scored else None
        unsteady = [step for step in steps if not is_steady(found[step])]
        for step in set(steps) - self.retention.kept(steps, best, unsteady):
            _remove(found[step])


class _HostMemory:
    """Room for one checkpoint's tensors, taken at the first save and used again by all later ones:
    new memory has to be cleared by the kernel, which takes several times as long as the copy."""

    def __init__(self) -> None:
        self._room: dict[str, Tensor] = {}
        self._is_from_gpu = False

    def copy(self, checkpoint: Checkpoint) -> tuple[Checkpoint, torch.cuda.Event | None]:
        """A copy that training cannot change, and the event after which a GPU has delivered it.

        Every tensor is looked at once, in order: where ranks share them, that is what brings it.
        """
        self._is_from_gpu = False
        optimizer = checkpoint.optimizer
        copied = dataclasses.replace(
            checkpoint,
            weights=self._copies("weights", checkpoint.weights),
            optimizer=None if optimizer is None else self._copies("optimizer", optimizer),
            state=copy.deepcopy(dict(checkpoint.state)),
        )
        if not self._is_from_gpu:
            return copied, None
        is_copied = torch.cuda.Event()
        is_copied.record()
        return copied, is_copied

    def _copies(self, kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """On a GPU the copies queue behind the step on its own stream, and the next step behind
        them: nothing waits, and nothing is overtaken."""
        return {
            name: self._room_for(f"{kind}/{name}", tensor).copy_(
                tensor.detach(), non_blocking=tensor.is_cuda
            )
            for name, tensor in tensors.items()
        }

    def _room_for(self, key: str, tensor: Tensor) -> Tensor:
        self._is_from_gpu |= tensor.is_cuda
        room = self._room.get(key)
        if room is None or (room.shape, room.dtype) != (tensor.shape, tensor.dtype):
            room = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._room[key] = room
        return room


def _remove(path: Path) -> None:
    """Out of sight in one step, then off the disk: a kill in between leaves no half checkpoint."""
    aside = path.with_name(f".{path.name}.removing")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be removed, {error}") from error
    shutil.rmtree(aside, ignore_errors=True)


def _read_best(path: Path) -> dict[int, float]:
    """Validated steps; none where the file is absent or damaged: it only decides what is kept."""
    try:
        return {int(step): float(value) for step, value in read_json(path)["val_bpb"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}

"""A run <-> its checkpoints.   in: a run's parts   out: directories; the run as it was
who calls: stages.py (through it, loop.py)

Only the first rank writes; all ranks read.
Read next: checkpoint/saver.py (writing in the background), progress.py (what is remembered).
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nanochat.checkpoint.format import Checkpoint, load_checkpoint, newest_valid
from nanochat.checkpoint.lineage import is_import
from nanochat.checkpoint.saver import Saver
from nanochat.common.dist import World
from nanochat.common.errors import CheckpointError, ConfigError
from nanochat.model.gpt import GPT
from nanochat.tokenizer.tokenizer import Tokenizer
from nanochat.train.display import Display
from nanochat.train.optim import Optimizer
from nanochat.train.progress import Progress, to_plain

if TYPE_CHECKING:
    from nanochat.train.fsdp import ShardedOptimizer

__all__ = ["RunKeeper", "check_alike", "differences"]


@dataclass(frozen=True, kw_only=True)
class RunKeeper:
    """Keeps one stage of a run: a loop.Keeper."""

    directory: Path
    """The stage's."""
    model: GPT
    tokenizer: Tokenizer
    optimizer: "Optimizer | ShardedOptimizer"
    about: Mapping[str, Any]
    """What state.json says besides: stage, parent, batch_tokens."""
    identity: Mapping[str, Any]
    """What must be the same for a run to go on: plan, data, model, dtype."""
    saver: Saver
    world: World
    display: Display
    came_from: dict[str, Any] = field(default_factory=dict, init=False)
    """Of a run that began with an import, what state.json says of it."""

    def save(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        """The run as it is now, copied; written in the background by the first rank.

        What ranks share comes to it tensor by tensor: beside its copy there is room for one.
        """
        writes = self.world.is_first and self.saver.begins(progress.step)
        if not self.world.largest(writes):
            return
        masters, moments = self.optimizer.masters(), self.optimizer.state()
        if not self.world.is_first:
            for tensors in (masters, moments):
                for _ in tensors.values():  # looking at them is what sends them
                    pass
            return
        state = {
            **self.about,
            **self.came_from,
            "step": progress.step,
            "metrics": to_plain(metrics),
            "progress": replace(progress, last_row=metrics).to_json(),
            "identity": dict(self.identity),
            "is_finished": progress.step == self.identity["plan"]["num_steps"],
        }
        checkpoint = Checkpoint(
            config=self.model.config,
            weights=masters,
            tokenizer=self.tokenizer,
            optimizer=moments,
            state=state,
        )
        self.saver.save(progress.step, checkpoint)

    def validated(self, step: int, val_bpb: float) -> None:
        """The checkpoint of this step measured so much."""
        if self.world.is_first:
            self.saver.validated(step, val_bpb)

    def check(self) -> None:
        """Raise what went wrong in the background."""
        self.saver.check()

    def finish(self) -> None:
        """Wait until everything is on disk."""
        self.saver.finish()

    def go_back(self) -> Progress | None:
        """Weights and moments of the newest checkpoint, in place; None where there is none.

        One saved between updates that were thrown away is passed over, and removed.
        """
        found = newest_valid(self.directory, self._say_refused, is_to_be_steady=True)
        if found is None:
            return None
        step, path = found
        progress = self._take(path, allow_changed=True)
        self.world.wait()  # until all have read
        if self.world.is_first:
            self.saver.drop_unsteady(after=step)
        return progress

    def resume(self, *, allow_changed: bool) -> Progress | None:
        """The same, of any that is whole; refuses to go on where the run began with other settings.

        Raises: ConfigError naming what differs; of weights of another model, and where the run is
                past the plan's end, also with `allow_changed`.
        """
        found = newest_valid(self.directory, on_refused=self._say_refused)
        return None if found is None else self._take(found[1], allow_changed=allow_changed)

    def _take(self, path: Path, *, allow_changed: bool) -> Progress:
        """Weights and moments of a checkpoint, in place."""
        checkpoint = load_checkpoint(path, with_optimizer=True, with_hashes=False)  # just verified
        state = checkpoint.state
        if is_import(state):
            progress = Progress(step=int(state.get("step", 0)))
        else:
            progress = Progress.from_json(state.get("progress", {}))
        self._check(checkpoint, progress, allow_changed=allow_changed)
        self.optimizer.load_masters(checkpoint.weights)
        self.optimizer.load_state(self._moments(checkpoint, path))
        if "imported" in state:
            parent = str(path.absolute()) if is_import(state) else state.get("parent")
            self.came_from.update(imported=state["imported"], parent=parent)
        return progress

    def _check(self, checkpoint: Checkpoint, progress: Progress, *, allow_changed: bool) -> None:
        """Raises: ConfigError as `resume` does."""
        before, now = checkpoint.state.get("identity", {}), self.identity
        if is_import(checkpoint.state):  # another program's plan and data are not known
            before = {"model": _plain(checkpoint.config.to_json()), "parent": None}
            before["tokenizer"] = checkpoint.tokenizer.content_hash
            now = {name: self.identity.get(name) for name in before}
        differs = differences(before, now)
        again = "Give the same again, --overwrite to begin anew, or another --run"
        if not self._fits(checkpoint):
            named = [line for line in differs if line.startswith("model.")] or ["other tensors"]
            raise ConfigError(
                f"{self.directory} holds the weights of another model: {'; '.join(named)}. {again}"
            )
        num_steps = int(self.identity["plan"]["num_steps"])
        least = progress.step + is_import(checkpoint.state)
        if num_steps < least:
            raise ConfigError(
                f"{self.directory} has come to step {progress.step}, and the plan ends after "
                f"{num_steps}: expected --num-steps of at least {least}. {again}"
            )
        if differs and not allow_changed:
            raise ConfigError(
                f"{self.directory} was begun otherwise: {'; '.join(differs)}. Give the same again, "
                "or --allow-changed to go on all the same, --overwrite to begin anew, another --run"
            )

    def _fits(self, checkpoint: Checkpoint) -> bool:
        """Whether the weights have the names and shapes of the model's."""
        shapes = {name: tuple(weight.shape) for name, weight in self.model.named_parameters()}
        return shapes == {n: tuple(weight.shape) for n, weight in checkpoint.weights.items()}

    def _moments(self, checkpoint: Checkpoint, path: Path) -> Mapping[str, Tensor]:
        """Those of the checkpoint; none yet where an import brought none, with a line that says so.

        Raises: CheckpointError where the run itself saved none.
        """
        if checkpoint.optimizer is not None:
            return checkpoint.optimizer
        if not is_import(checkpoint.state):
            raise CheckpointError(f"{path}: has no moments to go on with")
        self.display.note(f"  {path.name} was imported without moments: its weights alone go on")
        return {"num_steps": torch.tensor(0)}

    def _say_refused(self, path: Path, error: CheckpointError) -> None:
        self.display.note(f"  {path.name} is passed over: {error}")


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`name was 1, is 2` for everything that differs, nested names with dots; long digests cut."""
    return [f"{name} was {_short(a)}, is {_short(b)}" for name, a, b in _differing(before, now)]


def check_alike(world: World, facts: Mapping[str, Any]) -> None:
    """Nothing, if all ranks have the same facts.

    Raises: ConfigError on all ranks, naming those that differ from the first, and in what.
    """
    if world.size == 1:
        return
    first, *others = (json.loads(text) for text in world.texts(json.dumps(facts)))
    told = []
    for rank, theirs in enumerate(others, start=1):
        differs = [
            f"{name} is {_short(b)} instead of {_short(a)}"
            for name, a, b in _differing(first, theirs)
        ]
        told += [f"on rank {rank} {', '.join(differs)}"] if differs else []
    if told:
        raise ConfigError(
            f"the ranks do not agree: {'; '.join(told)} (rank 0 is what the others are compared "
            "with): start all of them with the same command, files and versions"
        )


def _differing(
    one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    for name in sorted(one.keys() | other.keys()):
        a, b = one.get(name), other.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from _differing(a, b, f"{prefix}{name}.")
        elif a != b:
            yield f"{prefix}{name}", a, b


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """As it comes back from a file."""
    plain: dict[str, Any] = json.loads(json.dumps(value))
    return plain


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:12] + "..."

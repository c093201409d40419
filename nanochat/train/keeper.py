"""A run <-> its checkpoints.   in: a run's parts   out: directories; the run as it was
who calls: stages.py (through it, loop.py)

Only the first rank writes; all ranks read.
Read next: checkpoint/saver.py (writing in the background), progress.py (what is remembered).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nanochat.checkpoint.format import Checkpoint, load_checkpoint, newest_valid
from nanochat.checkpoint.saver import Saver
from nanochat.common.dist import World
from nanochat.common.errors import CheckpointError, ConfigError
from nanochat.model.gpt import GPT
from nanochat.tokenizer.tokenizer import Tokenizer
from nanochat.train.display import Display
from nanochat.train.optim import Optimizer
from nanochat.train.progress import Progress, to_plain

__all__ = ["RunKeeper", "differences"]


@dataclass(frozen=True, kw_only=True)
class RunKeeper:
    """Keeps one stage of a run: a loop.Keeper."""

    directory: Path
    """The stage's."""
    model: GPT
    tokenizer: Tokenizer
    optimizer: Optimizer
    about: Mapping[str, Any]
    """What state.json says besides: stage, parent, batch_tokens."""
    identity: Mapping[str, Any]
    """What must be the same for a run to go on: plan, data, model, dtype."""
    saver: Saver
    world: World
    display: Display

    def save(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        """The run as it is now, copied; written in the background."""
        if not self.world.is_first:
            return
        state = {
            **self.about,
            "step": progress.step,
            "metrics": to_plain(metrics),
            "progress": replace(progress, last_row=metrics).to_json(),
            "identity": dict(self.identity),
            "is_finished": progress.step == self.identity["plan"]["num_steps"],
        }
        checkpoint = Checkpoint(
            config=self.model.config,
            weights=self.optimizer.masters(),
            tokenizer=self.tokenizer,
            optimizer=self.optimizer.state(),
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
        """Weights and moments of the newest checkpoint, in place; None where there is none."""
        return self.resume(allow_changed=True)

    def resume(self, *, allow_changed: bool) -> Progress | None:
        """The same; refuses to go on where the run began with other settings.

        Raises: ConfigError naming what differs.
        """
        found = newest_valid(self.directory, on_refused=self._say_refused)
        if found is None:
            return None
        step, path = found
        checkpoint = load_checkpoint(path, with_optimizer=True, with_hashes=False)  # just verified
        if checkpoint.optimizer is None:
            raise CheckpointError(f"{path}: has no moments to go on with")
        differs = differences(checkpoint.state.get("identity", {}), self.identity)
        if differs and not allow_changed:
            raise ConfigError(
                f"{self.directory} was begun otherwise: {'; '.join(differs)}. Give the same again, "
                "or --allow-changed to go on all the same, --overwrite to begin anew, another --run"
            )
        self.optimizer.load_masters(checkpoint.weights)
        self.optimizer.load_state(checkpoint.optimizer)
        return Progress.from_json(checkpoint.state.get("progress", {}))

    def _say_refused(self, path: Path, error: CheckpointError) -> None:
        self.display.note(f"  {path.name} is passed over: {error}")


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`name was 1, is 2` for everything that differs, nested names with dots; long digests cut."""
    found = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{prefix}{name}.")
        elif old != new:
            found.append(f"{prefix}{name} was {_short(old)}, is {_short(new)}")
    return found


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:12] + "..."

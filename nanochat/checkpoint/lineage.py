"""A checkpoint -> the checkpoints it came from.   in: a directory   out: Ancestors, youngest first
who calls: cli/show.py, train

state.json names the checkpoint that a stage began from.  Where a home was moved, the name leads
nowhere, so the same run, stage and step are looked for in the home of the checkpoint at hand.
Read next: format.py (state.json), resolve.py (what runs are).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat.checkpoint.format import STATE, find_steps
from nanochat.checkpoint.manifest import read_object
from nanochat.common.errors import CheckpointError

__all__ = ["Ancestor", "import_in", "is_import", "lineage", "run_of"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ancestor:
    """One checkpoint of the line."""

    path: Path
    run: str | None
    """None for a directory outside of any run."""
    stage: str | None
    step: int | None
    is_there: bool
    """Whether it is still on this disk, readable."""

    @property
    def name(self) -> str:
        """What it is called on a command line: d12/sft@1500, or its path."""
        if self.run is None:
            return str(self.path)
        return f"{self.run}/{self.stage}@{self.step}"


def lineage(directory: Path) -> list[Ancestor]:
    """The checkpoint itself, the one its stage began from, and so on to the first."""
    line: list[Ancestor] = []
    seen: set[Path] = set()
    path: Path | None = directory
    while path is not None and path.absolute() not in seen:  # a file may claim anything
        seen.add(path.absolute())
        try:
            state = read_object(path / STATE)
        except CheckpointError:
            line.append(_ancestor(path, {}, is_there=path.is_dir()))
            break
        line.append(_ancestor(path, state, is_there=True))
        parent = state.get("parent")
        path = _found(Path(parent), directory) if isinstance(parent, str) and parent else None
    return line


def import_in(stage: Path) -> Path | None:
    """The newest checkpoint of a stage that began with an import; None of any other stage.

    One whose state cannot be read is passed over.
    """
    for path in reversed(find_steps(stage).values()):
        try:
            state = read_object(path / STATE)
        except CheckpointError:
            continue
        return path if "imported" in state else None
    return None


def is_import(state: Mapping[str, Any]) -> bool:
    """Whether a state.json is as `nanochat import` writes it: no training has gone on from it."""
    return "imported" in state and "progress" not in state


def run_of(path: Path) -> tuple[str, str] | None:
    """Run and stage of .../runs/<run>/<stage>/checkpoints/<step>; None for any other path."""
    parts = path.absolute().parts
    if len(parts) < 5 or parts[-2] != "checkpoints" or parts[-5] != "runs":
        return None
    return parts[-4], parts[-3]


def _ancestor(path: Path, state: dict[str, object], *, is_there: bool) -> Ancestor:
    run, stage = run_of(path) or (None, None)
    step, digits = state.get("step"), path.name.removeprefix("step_")
    if type(step) is not int:
        step = int(digits) if digits.isascii() and digits.isdigit() else None
    return Ancestor(
        path=path,
        run=run,
        stage=stage or (str(state["stage"]) if "stage" in state else None),
        step=step,
        is_there=is_there,
    )


def _found(parent: Path, child: Path) -> Path:
    if parent.is_dir() or run_of(parent) is None or run_of(child) is None:
        return parent
    moved = child.absolute().parents[3].joinpath(*parent.parts[-4:])
    return moved if moved.is_dir() else parent

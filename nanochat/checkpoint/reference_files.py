"""A directory of karpathy/nanochat's -> one step's files.   in: a path   out: ReferenceFiles
who calls: reference.py, reference_config.py, resolve.py, cli

    <base>/{base,mid,chatsft,chatrl}_checkpoints/d12/   model_000500.pt  meta_000500.json
                                                        optim_000500_rank0.pt, one a device
    <base>/tokenizer/tokenizer.pkl

Source: karpathy/nanochat nanochat/checkpoint_manager.py at 3a5e0bc and 92d63d4.
Read next: reference.py (what is in the files).
"""

import re
from dataclasses import dataclass
from pathlib import Path

from nanochat.common.errors import CheckpointError

__all__ = ["STAGES_BY_FOLDER", "ReferenceFiles", "find_files", "find_tokenizer", "locate"]

STAGES_BY_FOLDER = {
    "base_checkpoints": "pretrain",
    "mid_checkpoints": "midtrain",
    "chatsft_checkpoints": "sft",
    "sft_checkpoints": "sft",
    "chatrl_checkpoints": "rl",
    "rl_checkpoints": "rl",
}
"""Stages in the order in which they are trained, by the folder karpathy/nanochat and its forks
keep them in."""


@dataclass(frozen=True, slots=True)
class ReferenceFiles:
    """One step of a checkpoint directory."""

    model: Path
    meta: Path
    step: int
    optimizer: Path | None
    """The state of device 0; those of other devices lie beside it."""


def locate(
    path: Path, *, stage: str | None = None, tag: str | None = None, step: int | None = None
) -> ReferenceFiles | None:
    """The checkpoint that karpathy/nanochat would choose below a directory; None if there is none.

    `path` may be one model's directory, a folder of them such as base_checkpoints, or what holds
    these folders.  Unless told otherwise: the last stage that was trained, the deepest d<depth> (or
    the newest, where no name says a depth), the last step.
    Raises: CheckpointError for a stage, tag or step that is not there, naming those that are, and
            for a model without its meta file.
    """
    if stage is not None and stage not in STAGES_BY_FOLDER.values():
        known = ", ".join(dict.fromkeys(STAGES_BY_FOLDER.values()))
        raise CheckpointError(f"stage is {stage!r}, expected one of {known}")
    if files := find_files(path, step):
        if tag is not None and path.name != tag:
            raise CheckpointError(f"{path}: is one model's folder, {tag!r} is not in it")
        return files
    folders = [folder for name in STAGES_BY_FOLDER if (folder := path / name).is_dir()]
    if folders:
        stages = {folder.name: STAGES_BY_FOLDER[folder.name] for folder in folders}
        folders = [f for f in folders if stages[f.name] == (stage or stages[f.name]) and _tags(f)]
        if not folders:
            raise CheckpointError(
                f"{path}: no model of stage {stage or 'any'}, it has {', '.join(stages)}"
            )
        path = folders[-1]
    tags = _tags(path)
    if not tags:
        return None
    if tag is None:
        tag = max(tags, key=lambda name: (_depth(name), (path / name).stat().st_mtime, name))
    elif tag not in tags:
        raise CheckpointError(f"{path}: no model {tag!r}, it has {', '.join(tags)}")
    return find_files(path / tag, step)


def find_files(directory: Path, step: int | None = None) -> ReferenceFiles | None:
    """A step of a directory in karpathy/nanochat's format, the newest unless one is named; None if
    it holds no model_*.pt.

    Raises: CheckpointError if the step is not there or has no meta file, naming the others.
    """
    steps = {
        int(match[1]): path
        for path in sorted(directory.glob("model_*.pt"))
        if (match := re.fullmatch(r"model_(\d+)\.pt", path.name))
    }
    if not steps:
        return None
    have = ", ".join(map(str, sorted(steps)))
    if step is None:
        step = max(steps)
    elif step not in steps:
        raise CheckpointError(f"{directory} has no step {step}: it has {have}")
    model = steps[step]
    digits = model.stem.removeprefix("model_")
    meta = directory / f"meta_{digits}.json"
    if not meta.is_file():
        raise CheckpointError(
            f"{model}: its meta file {meta.name} is missing; both are needed (steps here: {have})"
        )
    optimizers = [directory / f"optim_{digits}_rank0.pt", directory / f"optim_{digits}.pt"]
    return ReferenceFiles(
        model, meta, step, next((path for path in optimizers if path.is_file()), None)
    )


def find_tokenizer(directory: Path) -> Path:
    """The tokenizer.pkl that belongs to a checkpoint directory.

    Raises: CheckpointError naming the places that were looked at.
    """
    folders = [directory.resolve().parent.parent, directory, directory.parent]
    candidates = [folder / "tokenizer" / "tokenizer.pkl" for folder in folders]
    candidates.append(directory / "tokenizer.pkl")
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise CheckpointError(
        f"{directory}: no tokenizer.pkl, looked for {', '.join(map(str, candidates))}"
    )


def _tags(folder: Path) -> list[str]:
    """The models of a folder such as base_checkpoints."""
    return sorted(
        path.name for path in folder.iterdir() if path.is_dir() and any(path.glob("model_*.pt"))
    )


def _depth(tag: str) -> int:
    match = re.match(r"d(\d+)", tag)
    return int(match[1]) if match else -1

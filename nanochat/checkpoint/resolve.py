"""A model reference -> a model.   in: `d12`, `d12/sft`, `d12/sft@1500`, `hf:org/name[@revision]`,
or a directory   out: Loaded
who calls: engine, train, evals, cli

A directory may be one of our checkpoints, one of our runs or stages, one for Hugging Face's
transformers, or karpathy/nanochat's `<kind>_checkpoints/<tag>` with its tokenizer in
../../tokenizer.
Read next: format.py, reference.py, huggingface.py, hub.py.
"""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from nanochat.checkpoint import reference as karpathy
from nanochat.checkpoint.fit import check_vocabulary, check_weights
from nanochat.checkpoint.format import (
    Checkpoint,
    find_steps,
    is_finished,
    load_checkpoint,
    verify_checkpoint,
)
from nanochat.checkpoint.hub import PREFIX, download
from nanochat.checkpoint.huggingface import is_huggingface, read_huggingface
from nanochat.common.config import nearest
from nanochat.common.errors import CheckpointError
from nanochat.common.files import home_dir
from nanochat.model.gpt import GPT
from nanochat.tokenizer.tokenizer import Tokenizer

__all__ = [
    "STAGES",
    "Loaded",
    "candidates",
    "load",
    "read",
    "read_newest",
    "resolve",
    "restore",
    "run_directory",
]

STAGES = ("pretrain", "midtrain", "sft")  # in the order they are run
READ_STAGES = (*STAGES, "rl")  # what is imported may have gone through one more
CHAT_STAGES = ("midtrain", "sft", "rl")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """A model ready to use."""

    model: GPT
    tokenizer: Tokenizer
    path: Path
    stage: str
    step: int

    @property
    def is_chat(self) -> bool:
        """Whether the model has seen conversations."""
        return self.stage in CHAT_STAGES


def run_directory(home: Path | None, run: str) -> Path:
    """Where a run lives.

    Raises: CheckpointError for a name that is no plain folder name.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", run):
        raise CheckpointError(
            f"run name {run!r}: expected letters, digits, dots, dashes and underscores"
        )
    return home_dir(home) / "runs" / run


def load(
    reference: str,
    *,
    home: Path | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    with_hashes: bool = True,
) -> Loaded:
    """The model and tokenizer that a reference names, verified, in `dtype` on `device`, ready to
    run.

    Raises: CheckpointError saying what was looked for, what there is, and what to do.
    """
    path, checkpoint = read_newest(reference, home, with_hashes=with_hashes)
    model = restore(checkpoint, str(path))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data = parameter.data.to(dtype)
    model.to(device or torch.device("cpu")).eval().requires_grad_(False)
    return Loaded(
        model=model,
        tokenizer=checkpoint.tokenizer,
        path=path,
        stage=str(checkpoint.state.get("stage", "pretrain")),
        step=int(checkpoint.state.get("step", 0)),
    )


def resolve(
    reference: str,
    home: Path | None = None,
    *,
    before: str | None = None,
    with_optimizer: bool = False,
) -> Path:
    """The checkpoint directory that a reference names: the newest that is whole, if no step is
    named.

    A run alone stands for its last finished stage; with `before`, for the last one before that.
    With `with_optimizer` a model on the Hub comes with its moments.
    Damaged ones are passed over, with a line about each on standard error.
    Raises: CheckpointError if there is none, with the nearest run name.
    """
    paths = candidates(reference, home, before=before, with_optimizer=with_optimizer)
    if len(paths) == 1:  # named, or alone: whoever reads it says what is wrong
        return paths[0]
    path, _ = _first_whole(paths, _verified)
    return path


def read_newest(
    reference: str,
    home: Path | None = None,
    *,
    before: str | None = None,
    with_optimizer: bool = False,
    with_hashes: bool = True,
) -> tuple[Path, Checkpoint]:
    """The directory that `resolve` would name, and what is in it; every byte is read once.

    Raises: CheckpointError as `resolve` and `read` do.
    """
    paths = candidates(reference, home, before=before, with_optimizer=with_optimizer)
    return _first_whole(
        paths, lambda path: read(path, with_optimizer=with_optimizer, with_hashes=with_hashes)
    )


def candidates(
    reference: str,
    home: Path | None = None,
    *,
    before: str | None = None,
    with_optimizer: bool = False,
) -> list[Path]:
    """The checkpoint directories that a reference may mean, newest first; one, if it names a step.

    Raises: CheckpointError if there is none, with the nearest run name.
    """
    if reference.startswith(PREFIX):
        return _checkpoints_in(download(reference, with_optimizer=with_optimizer))
    as_path = Path(reference).expanduser()
    if reference and as_path.is_dir():
        return _checkpoints_in(as_path)
    match = re.fullmatch(r"(?P<run>[^/@]+)(/(?P<stage>[^/@]+))?(@(?P<step>\d+))?", reference)
    runs = home_dir(home) / "runs"
    if match is None or not (runs / match["run"]).is_dir():
        known = (
            sorted(path.name for path in runs.glob("*") if path.is_dir()) if runs.is_dir() else []
        )
        there = (
            f"runs here: {', '.join(known)}"
            if known
            else "there are no runs yet; nanochat demo makes one"
        )
        raise CheckpointError(
            f"model {reference!r} is neither a directory nor a run in "
            f"{runs}{nearest(reference, known)}: {there}"
        )
    directory = runs / match["run"]
    stage = match["stage"] or _last_stage(directory, before)
    if not (directory / stage).is_dir():
        have = [name for name in READ_STAGES if (directory / name).is_dir()]
        raise CheckpointError(
            f"run {match['run']} has no stage {stage!r}: it has {', '.join(have) or 'none'}"
        )
    return _checkpoints_in(directory / stage, int(match["step"]) if match["step"] else None)


def restore(checkpoint: Checkpoint, where: str) -> GPT:
    """A GPT in float32 holding the checkpoint's weights.

    Raises: CheckpointError naming tensors that are missing, left over or of another shape, and a
            tokenizer that
            does not fit.
    """
    check_vocabulary(checkpoint.config, checkpoint.tokenizer.vocab_size, where)
    check_weights(checkpoint.config, checkpoint.weights, where)
    with torch.device("meta"):
        model = GPT(checkpoint.config)
    weights = {name: tensor.float() for name, tensor in checkpoint.weights.items()}
    model.load_state_dict(weights, assign=True)  # no second copy, no first weights made for nothing
    return model


def read(path: Path, *, with_optimizer: bool = False, with_hashes: bool = True) -> Checkpoint:
    """The checkpoint in a directory of any format; hashes only from our own.

    Raises: CheckpointError naming the file and the reason.
    """
    if is_huggingface(path):
        return read_huggingface(path)
    files = karpathy.find_files(path)
    if files is None:
        return load_checkpoint(path, with_optimizer=with_optimizer, with_hashes=with_hashes)
    return karpathy.read_reference(files, karpathy.ReadOptions(with_optimizer=with_optimizer))


def _verified(path: Path) -> None:
    if karpathy.find_files(path) is None and not is_huggingface(path):
        verify_checkpoint(path)


def _first_whole(paths: list[Path], look: Callable[[Path], T]) -> tuple[Path, T]:
    """The first path that `look` does not refuse, and what it returned; one line for each passed
    over.

    Raises: CheckpointError of the first if all are refused.
    """
    refused: list[tuple[Path, CheckpointError]] = []
    for path in paths:
        try:
            found = look(path)
        except CheckpointError as error:
            refused.append((path, error))
            continue
        for newer, reason in refused:
            print(
                f"nanochat: {newer.name} is passed over for {path.name}: {reason}", file=sys.stderr
            )
        return path, found
    _, first = refused[0]
    if len(refused) == 1:
        raise first
    raise CheckpointError(f"{first} (and {len(refused) - 1} older checkpoints are refused too)")


def _last_stage(directory: Path, before: str | None = None) -> str:
    stages = STAGES[: STAGES.index(before)] if before else READ_STAGES
    begun = [stage for stage in stages if find_steps(directory / stage)]
    if not begun:
        what = f"stage before {before}" if before else "stage"
        raise CheckpointError(f"run {directory.name} has no finished {what}: train it first")
    finished = [stage for stage in begun if is_finished(directory / stage)]
    return (finished or begun)[-1]


def _checkpoints_in(directory: Path, step: int | None = None) -> list[Path]:
    if is_huggingface(directory) or (directory / "manifest.json").is_file():
        return [directory]
    if karpathy.find_files(directory) is not None:
        return [directory]
    steps = find_steps(directory)
    if not steps and any(find_steps(directory / stage) for stage in READ_STAGES):
        return _checkpoints_in(directory / _last_stage(directory), step)
    if not steps:
        raise CheckpointError(
            f"{directory}: holds no checkpoint (no manifest.json, no model_*.pt, no checkpoints/)"
        )
    if step is None:
        return list(reversed(steps.values()))
    if step not in steps:
        raise CheckpointError(
            f"{directory} has no step {step}: it has {', '.join(map(str, steps))}"
        )
    return [steps[step]]

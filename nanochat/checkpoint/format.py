"""A checkpoint on disk.   in: weights, config, tokenizer   out: a directory that is whole or absent
who calls: saver.py, resolve.py, train

    step_000500/
      manifest.json           format version, every file's size and SHA-256, step; written last
      config.json             GPTConfig
      model.safetensors       float32 masters, by name
      optimizer.safetensors   moments by weight name; absent where nothing is to go on from it
      state.json              stage, step, metrics, lineage, what resuming needs
      tokenizer/tokenizer.json

Written to a temporary sibling, flushed, renamed: what has no valid manifest does not exist.
Read next: manifest.py (what is verified), saver.py (beside training), resolve.py (names).
"""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

import nanochat
from nanochat.checkpoint.fit import check_moments, check_vocabulary, check_weights
from nanochat.checkpoint.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    Manifest,
    describe_files,
    read_manifest,
    read_object,
    verify_files,
    write_manifest,
)
from nanochat.checkpoint.tensor_file import save_tensors
from nanochat.checkpoint.upgrades import Contents, upgraded
from nanochat.common.errors import CheckpointError, ConfigError, TokenizerError
from nanochat.common.files import write_json_atomically
from nanochat.model.config import GPTConfig
from nanochat.tokenizer.tokenizer import Tokenizer

__all__ = [
    "FORMAT_VERSION",
    "Checkpoint",
    "checkpoints_in",
    "find_steps",
    "is_finished",
    "is_steady",
    "load_checkpoint",
    "newest_valid",
    "save_checkpoint",
    "step_path",
    "verify_checkpoint",
]

CONFIG = "config.json"
MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
TOKENIZER = "tokenizer/tokenizer.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """What a checkpoint directory holds; tensors in float32."""

    config: GPTConfig
    weights: Mapping[str, Tensor]
    tokenizer: Tokenizer
    optimizer: Mapping[str, Tensor] | None = None
    state: Mapping[str, Any] = field(default_factory=dict)
    """Stage, step, metrics, and the directory this run started from."""


def save_checkpoint(directory: Path, checkpoint: Checkpoint) -> None:
    """Write the directory; it appears whole or not at all.

    Raises: CheckpointError if it exists already, or the disk refuses.
    """
    if directory.exists():
        raise CheckpointError(
            f"{directory} exists already: choose another --run, or pass --overwrite"
        )
    temporary = directory.with_name(f".{directory.name}.writing")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        _write_files(temporary, checkpoint)
        _flush(temporary)
        temporary.rename(directory)
        _flush_directory(directory.parent)
    except (OSError, SafetensorError, ValueError) as error:
        raise _not_saved(directory, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # once renamed, there is none


def load_checkpoint(
    directory: Path, *, with_optimizer: bool = False, with_hashes: bool = True
) -> Checkpoint:
    """The checkpoint of a directory: every file as the manifest says, weights as the config says,
    the tokenizer the model's own.

    Sizes are always compared; without `with_hashes` damage of the same size goes unseen.
    Raises: CheckpointError naming the file and the reason.
    """
    manifest = read_manifest(directory / MANIFEST)
    verify_files(directory, manifest, with_hashes=with_hashes)
    has_optimizer = with_optimizer and OPTIMIZER in manifest.files
    contents = upgraded(_read_contents(directory, has_optimizer), manifest.format_version)
    config = _config(contents, directory / CONFIG)
    check_weights(config, contents.weights, str(directory / MODEL), torch.float32)
    if contents.optimizer is not None:
        check_moments(contents.weights, contents.optimizer, str(directory / OPTIMIZER))
    tokenizer = _read_tokenizer(directory / TOKENIZER, manifest.tokenizer_hash)
    check_vocabulary(config, tokenizer.vocab_size, str(directory / TOKENIZER))
    return Checkpoint(
        config=config,
        weights=contents.weights,
        tokenizer=tokenizer,
        optimizer=contents.optimizer,
        state=_state(contents, directory / STATE, manifest.step),
    )


def verify_checkpoint(directory: Path) -> None:
    """Nothing, if manifest, sizes and hashes are in order; tensors are not read.

    Raises: CheckpointError naming the file and the reason.
    """
    verify_files(directory, read_manifest(directory / MANIFEST))


def find_steps(directory: Path) -> dict[int, Path]:
    """The finished checkpoints of a stage, by step, ascending; a directory without a manifest is
    none."""
    return checkpoints_in(directory / "checkpoints")


def is_finished(directory: Path) -> bool:
    """Whether a stage's newest checkpoint is the last one its run was to have; a damaged one is
    not."""
    steps = find_steps(directory)
    if not steps:
        return False
    try:
        state = read_object(steps[max(steps)] / STATE)
    except CheckpointError:
        return False
    return bool(state.get("is_finished", True))  # what other writers save is whole


def is_steady(directory: Path) -> bool:
    """Whether the last update before a checkpoint was applied: training may go back to it.

    What cannot be read is no reason to say otherwise.
    """
    try:
        progress = read_object(directory / STATE).get("progress")
    except CheckpointError:
        return True
    return not (isinstance(progress, dict) and progress.get("streak", 0))


def checkpoints_in(checkpoints: Path) -> dict[int, Path]:
    """The same for the folder `checkpoints` itself."""
    found = {
        int(match[1]): path
        for path in checkpoints.glob("step_*")
        if (match := re.fullmatch(r"step_(\d+)", path.name)) and (path / MANIFEST).is_file()
    }
    return dict(sorted(found.items()))


def step_path(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return checkpoints / f"step_{step:06d}"


def newest_valid(
    directory: Path,
    on_refused: Callable[[Path, CheckpointError], None] | None = None,
    *,
    is_to_be_steady: bool = False,
) -> tuple[int, Path] | None:
    """The newest checkpoint of a stage whose sizes and hashes are in order, and that is steady
    where that is asked for, and its step.

    `on_refused` is told of every newer one that was passed over, and why.
    """
    for step, path in reversed(find_steps(directory).items()):
        try:
            if is_to_be_steady and not is_steady(path):
                raise CheckpointError("saved between updates that were thrown away")
            verify_checkpoint(path)
        except CheckpointError as error:
            if on_refused is not None:
                on_refused(path, error)
        else:
            return step, path
    return None


def _write_files(directory: Path, checkpoint: Checkpoint) -> None:
    """All files, the manifest last."""
    (directory / TOKENIZER).parent.mkdir(parents=True)
    write_json_atomically(directory / CONFIG, checkpoint.config.to_json())
    save_tensors(checkpoint.weights, directory / MODEL)
    if checkpoint.optimizer is not None:
        save_tensors(checkpoint.optimizer, directory / OPTIMIZER)
    write_json_atomically(directory / STATE, dict(checkpoint.state))
    checkpoint.tokenizer.save(directory / TOKENIZER)
    write_manifest(
        directory,
        Manifest(
            format_version=FORMAT_VERSION,
            nanochat=nanochat.__version__,
            torch=torch.__version__,
            step=checkpoint.state.get("step"),
            tokenizer_hash=checkpoint.tokenizer.content_hash,
            files=describe_files(directory),
        ),
    )


def _not_saved(directory: Path, error: Exception) -> CheckpointError:
    remedy = ""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        remedy = ": free some space, or keep fewer (--keep-last), and go on with --resume"
    return CheckpointError(
        f"{directory}: not saved, {error}; earlier checkpoints are untouched{remedy}"
    )


def _read_contents(directory: Path, has_optimizer: bool) -> Contents:
    return Contents(
        config=read_object(directory / CONFIG),
        state=read_object(directory / STATE),
        weights=_read_tensors(directory / MODEL),
        optimizer=_read_tensors(directory / OPTIMIZER) if has_optimizer else None,
    )


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """Mapped into memory, not copied: pages come from the disk's cache when they are first used."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from error


def _config(contents: Contents, path: Path) -> GPTConfig:
    try:
        return GPTConfig.from_json(contents.config)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _state(contents: Contents, path: Path, step: int | None) -> dict[str, Any]:
    state = dict(contents.state)
    for name, kind in (("stage", str), ("step", int), ("batch_tokens", int)):
        if not isinstance(state.get(name, kind()), kind):
            raise CheckpointError(f"{path}: {name} is {state[name]!r}, expected {kind.__name__}")
    if state.get("step") != step:
        raise CheckpointError(f"{path}: step is {state.get('step')}, the manifest says {step}")
    return state


def _read_tokenizer(path: Path, expected_hash: str) -> Tokenizer:
    try:
        tokenizer = Tokenizer.load(path)
    except TokenizerError as error:
        raise CheckpointError(str(error)) from error  # it names the file
    if tokenizer.content_hash != expected_hash:
        raise CheckpointError(
            f"{path}: the tokenizer is another one ({tokenizer.content_hash[:12]}) than the "
            f"manifest's ({str(expected_hash)[:12]})"
        )
    return tokenizer


def _flush(directory: Path) -> None:
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    for path in (*(path for path in directory.rglob("*") if path.is_dir()), directory):
        _flush_directory(path)


def _flush_directory(directory: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems refuse to sync a directory
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

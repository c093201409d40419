"""A checkpoint on disk.   in: weights, config, tokenizer   out: a directory that is whole or absent
who calls: train (through the door), resolve.py

    step_000500/
      manifest.json           format version, every file's size and SHA-256, step, versions;
      written last
      config.json             GPTConfig
      model.safetensors       float32 masters, by name
      optimizer.safetensors   moments by weight name (absent where nothing is meant to go on from
      it)
      state.json              stage, step, metrics, lineage
      tokenizer/tokenizer.json

Written to a temporary sibling, flushed, renamed: what has no valid manifest does not exist.
Read next: resolve.py (names -> directories), reference.py (karpathy/nanochat's files).
"""

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import nanochat
from nanochat.common.errors import CheckpointError, ConfigError, TokenizerError
from nanochat.common.files import read_json, sha256_of_file, write_json_atomically
from nanochat.model.config import GPTConfig
from nanochat.tokenizer.tokenizer import Tokenizer

__all__ = [
    "FORMAT_VERSION",
    "Checkpoint",
    "checkpoints_in",
    "find_steps",
    "load_checkpoint",
    "newest_valid",
    "save_checkpoint",
    "step_path",
    "verify_checkpoint",
]

FORMAT_VERSION = 1
OPTIMIZER = "optimizer.safetensors"
REQUIRED = ("config.json", "model.safetensors", "state.json", "tokenizer/tokenizer.json")


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
        (temporary / "tokenizer").mkdir(parents=True)
        write_json_atomically(temporary / "config.json", checkpoint.config.to_json())
        _save_tensors(checkpoint.weights, temporary / "model.safetensors")
        if checkpoint.optimizer is not None:
            _save_tensors(checkpoint.optimizer, temporary / OPTIMIZER)
        write_json_atomically(temporary / "state.json", dict(checkpoint.state))
        checkpoint.tokenizer.save(temporary / "tokenizer" / "tokenizer.json")
        write_json_atomically(temporary / "manifest.json", _manifest(temporary, checkpoint))
        _flush(temporary)
        temporary.rename(directory)
        _flush_directory(directory.parent)
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{directory}: not saved, {error}; earlier checkpoints are untouched"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # once renamed, there is none


def load_checkpoint(directory: Path, *, with_optimizer: bool = False) -> Checkpoint:
    """The checkpoint of a directory, its sizes and hashes verified, its tensors compared with its
    config.

    Raises: CheckpointError naming the file and the reason.
    """
    manifest = _read_manifest(directory / "manifest.json")
    for name, entry in manifest["files"].items():
        _verify(directory / name, entry)
    has_optimizer = OPTIMIZER in manifest["files"]
    return Checkpoint(
        config=_read_config(directory / "config.json"),
        weights=_tensors(directory / "model.safetensors"),
        tokenizer=_read_tokenizer(directory / "tokenizer" / "tokenizer.json", manifest),
        optimizer=_tensors(directory / OPTIMIZER) if with_optimizer and has_optimizer else None,
        state=_read_state(directory / "state.json"),
    )


def verify_checkpoint(directory: Path) -> None:
    """Nothing, if manifest, sizes and hashes are in order; tensors are not read.

    Raises: CheckpointError naming the file and the reason.
    """
    for name, entry in _read_manifest(directory / "manifest.json")["files"].items():
        _verify(directory / name, entry)


def find_steps(directory: Path) -> dict[int, Path]:
    """The finished checkpoints of a stage, by step, ascending; a directory without a manifest is
    none."""
    return checkpoints_in(directory / "checkpoints")


def checkpoints_in(checkpoints: Path) -> dict[int, Path]:
    """The same for the folder `checkpoints` itself."""
    found = {
        int(match[1]): path
        for path in checkpoints.glob("step_*")
        if (match := re.fullmatch(r"step_(\d+)", path.name)) and (path / "manifest.json").is_file()
    }
    return dict(sorted(found.items()))


def step_path(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return checkpoints / f"step_{step:06d}"


def newest_valid(
    directory: Path, on_refused: Callable[[Path, CheckpointError], None] | None = None
) -> tuple[int, Path] | None:
    """The newest checkpoint of a stage whose sizes and hashes are in order, and its step.

    `on_refused` is told of every newer one that was passed over, and why.
    """
    for step, path in reversed(find_steps(directory).items()):
        try:
            verify_checkpoint(path)
        except CheckpointError as error:
            if on_refused is not None:
                on_refused(path, error)
        else:
            return step, path
    return None


def _manifest(directory: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {
        "format_version": FORMAT_VERSION,
        "nanochat": nanochat.__version__,
        "torch": torch.__version__,
        "step": checkpoint.state.get("step"),
        "tokenizer_hash": checkpoint.tokenizer.content_hash,
        "files": {
            str(path.relative_to(directory)): {
                "bytes": path.stat().st_size,
                "sha256": sha256_of_file(path),
            }
            for path in files
        },
    }


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file(_plain(tensors), path)
    shutil.copymode(path.parent / "config.json", path)  # safetensors makes its files private


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except (OSError, ValueError) as error:  # both name the file
        raise CheckpointError(str(error)) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is a {type(value).__name__}, expected a JSON object")
    return value


def _read_manifest(path: Path) -> dict[str, Any]:
    manifest = _read(path)
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format version {version!r}, this nanochat reads {FORMAT_VERSION}: the "
            "checkpoint was written by another version"
        )
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise CheckpointError(f"{path}: files is {files!r}, expected sizes and hashes by name")
    if missing := [name for name in REQUIRED if name not in files]:
        raise CheckpointError(f"{path}: lists no {missing[0]}, expected {', '.join(REQUIRED)}")
    return manifest


def _read_config(path: Path) -> GPTConfig:
    try:
        return GPTConfig.from_json(_read(path))
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _read_state(path: Path) -> dict[str, Any]:
    state = _read(path)
    for name, kind in (("stage", str), ("step", int), ("batch_tokens", int)):
        if not isinstance(state.get(name, kind()), kind):
            raise CheckpointError(f"{path}: {name} is {state[name]!r}, expected {kind.__name__}")
    return state


def _read_tokenizer(path: Path, manifest: Mapping[str, Any]) -> Tokenizer:
    try:
        tokenizer = Tokenizer.load(path)
    except TokenizerError as error:
        raise CheckpointError(str(error)) from error  # it names the file
    if tokenizer.content_hash != manifest.get("tokenizer_hash"):
        raise CheckpointError(
            f"{path}: the tokenizer is another one ({tokenizer.content_hash[:12]}) than the "
            f"manifest's ({str(manifest.get('tokenizer_hash'))[:12]})"
        )
    return tokenizer


def _verify(path: Path, entry: object) -> None:
    expected = entry if isinstance(entry, dict) else {}
    if not path.is_file():
        raise CheckpointError(f"{path}: missing, though the manifest lists it")
    if path.stat().st_size != expected.get("bytes"):
        raise CheckpointError(
            f"{path}: {path.stat().st_size} bytes, the manifest says {expected.get('bytes')}"
        )
    if sha256_of_file(path) != expected.get("sha256"):
        raise CheckpointError(
            f"{path}: its SHA-256 differs from the manifest: the file was changed or damaged"
        )


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

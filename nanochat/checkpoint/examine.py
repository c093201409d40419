"""A checkpoint -> what is in order and what is not.   in: a directory   out: a Finding per check
who calls: cli/verify.py

The same checks as loading makes, but all of them, so that every damaged file is named at once.
Read next: manifest.py, fit.py (the checks).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nanochat.checkpoint.format import CONFIG, MODEL, OPTIMIZER, STATE, TOKENIZER, Checkpoint
from nanochat.checkpoint.manifest import MANIFEST, Manifest, read_manifest, verify_file
from nanochat.checkpoint.resolve import read, restore
from nanochat.common.errors import CheckpointError

__all__ = ["Finding", "examine"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One check of one file."""

    file: str
    """Its name in the directory."""
    check: str
    num_bytes: int | None
    """None where the file is missing."""
    is_refused: bool = False
    detail: str = ""
    """What was found; for a refusal, the reason."""


def examine(directory: Path) -> list[Finding]:
    """Every check of every file; what is inside is looked at only once the files are in order."""
    if (directory / MANIFEST).is_file():
        findings = _check_files(directory)
    else:  # another program's, without hashes
        findings = [
            _finding(directory, name, "no hash in this format", "size only")
            for name in _names_in(directory)
        ]
    if any(finding.is_refused for finding in findings):
        return findings
    try:
        checkpoint = read(directory, with_optimizer=True, with_hashes=False)
        restore(checkpoint, str(directory))
    except CheckpointError as error:
        return [*findings, _refusal(directory, MODEL, "contents", error)]
    return [*findings, *_contents(directory, checkpoint)]


def _check_files(directory: Path) -> list[Finding]:
    try:
        manifest = read_manifest(directory / MANIFEST)
    except CheckpointError as error:
        return [_refusal(directory, MANIFEST, "SHA-256", error)]
    about = f"format version {manifest.format_version}, written by nanochat {manifest.nanochat}"
    return [_finding(directory, MANIFEST, "SHA-256", about), *_listed(directory, manifest)]


def _listed(directory: Path, manifest: Manifest) -> Iterator[Finding]:
    for name, entry in manifest.files.items():
        try:
            verify_file(directory / name, entry)
            yield _finding(directory, name, "size, SHA-256", "as in the manifest")
        except CheckpointError as error:
            yield _refusal(directory, name, "size, SHA-256", error)
    for name in sorted(set(_names_in(directory)) - {MANIFEST, *manifest.files}):
        yield _finding(directory, name, "none", "not in the manifest, not read")


def _contents(directory: Path, checkpoint: Checkpoint) -> Iterator[Finding]:
    config, state = checkpoint.config, checkpoint.state
    num_weights = sum(weight.numel() for weight in checkpoint.weights.values())
    rows = {
        CONFIG: ("config", f"{config.num_layers} layers of width {config.model_dim}"),
        MODEL: ("fits the config", f"{len(checkpoint.weights)} tensors, {num_weights:,} weights"),
        OPTIMIZER: ("fits the weights", f"{len(checkpoint.optimizer or ())} tensors"),
        TOKENIZER: ("fits the model", f"{checkpoint.tokenizer.vocab_size:,} tokens"),
        STATE: ("state", f"{state.get('stage', 'pretrain')}, step {state.get('step', 0)}"),
    }
    for name, (check, detail) in rows.items():
        if name != OPTIMIZER or checkpoint.optimizer is not None:
            yield _finding(directory, name, check, detail)


def _finding(directory: Path, name: str, check: str, detail: str) -> Finding:
    return Finding(file=name, check=check, num_bytes=_size(directory / name), detail=detail)


def _refusal(directory: Path, name: str, check: str, error: CheckpointError) -> Finding:
    """The message without the path it begins with: that stands in front of it already."""
    reason = str(error)
    for known in sorted(_names_in(directory), key=len, reverse=True):
        if reason.startswith(str(directory / known)):
            name = known
    return Finding(
        file=name,
        check=check,
        num_bytes=_size(directory / name),
        is_refused=True,
        detail=reason.removeprefix(str(directory / name)).lstrip(": "),
    )


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _names_in(directory: Path) -> list[str]:
    paths = (path for path in directory.rglob("*") if path.is_file())
    return sorted(path.relative_to(directory).as_posix() for path in paths)

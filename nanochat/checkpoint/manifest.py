"""A checkpoint's files <-> manifest.json.   in: a directory   out: Manifest, or what is wrong
who calls: format.py, examine.py

The manifest has the size and SHA-256 of every other file, and its own: taken over its bytes with
zeros where the digest stands, so that no byte of a checkpoint can change unseen.
Read next: format.py (what the files are).
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat.common.errors import CheckpointError
from nanochat.common.files import read_json, sha256_of_file, write_text_atomically

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST",
    "Manifest",
    "describe_files",
    "read_manifest",
    "read_object",
    "verify_file",
    "verify_files",
    "write_manifest",
]

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
OWN_DIGEST = "manifest_sha256"
REQUIRED_KEYS = {"format_version", "nanochat", "torch", "step", "tokenizer_hash", "files"}
REQUIRED_FILES = (
    "config.json",
    "model.safetensors",
    "state.json",
    "tokenizer/tokenizer.json",
)
HASH_THREADS = 4  # SHA-256 runs at 0.5 to 2 GB/s a core, disks at several


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What manifest.json says."""

    format_version: int
    nanochat: str
    """The version that wrote it."""
    torch: str
    step: int | None
    tokenizer_hash: str
    files: Mapping[str, Any]
    """By name: {"bytes": ..., "sha256": ...}."""


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write manifest.json, sealed with its own digest.

    Raises: OSError as the disk does.
    """
    raw = {key: getattr(manifest, key) for key in Manifest.__slots__}
    write_text_atomically(directory / MANIFEST, _sealed(raw))


def read_manifest(path: Path) -> Manifest:
    """What a manifest.json says, its own digest verified.

    One without a digest was written before there was any.
    Raises: CheckpointError naming the file: absent, no manifest, changed, of a later version.
    """
    raw = read_object(path)
    version = raw.get("format_version")
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format version {version!r}, this nanochat reads 1 to {FORMAT_VERSION}: the "
            "checkpoint was written by another version"
        )
    digest = raw.pop(OWN_DIGEST, None)
    if digest is not None and digest != _digest_without(path.read_bytes(), digest):
        raise CheckpointError(
            f"{path}: its SHA-256 is not the one in it: the file was changed or damaged"
        )
    files = raw.get("files")
    if not isinstance(files, dict):
        raise CheckpointError(f"{path}: files is {files!r}, expected sizes and hashes by name")
    if missing := [name for name in REQUIRED_FILES if name not in files]:
        raise CheckpointError(
            f"{path}: lists no {missing[0]}, expected {', '.join(REQUIRED_FILES)}"
        )
    if set(raw) != REQUIRED_KEYS:
        odd = sorted(set(raw) ^ REQUIRED_KEYS)
        raise CheckpointError(f"{path}: missing or unknown keys {', '.join(odd)}")
    if odd := [name for name in files if not _is_inside(name)]:
        raise CheckpointError(f"{path}: lists {odd[0]!r}, expected files of the checkpoint")
    return Manifest(**raw)


def describe_files(directory: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file there is, by its name relative to the directory."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    return {
        path.relative_to(directory).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": sha256_of_file(path),
        }
        for path in paths
    }


def verify_files(directory: Path, manifest: Manifest, *, with_hashes: bool = True) -> None:
    """Nothing, if every file is as the manifest says; without hashes, as large as it says.

    Raises: CheckpointError naming the first file that is not, and why.
    """
    for name, entry in manifest.files.items():  # what costs nothing comes first
        verify_file(directory / name, entry, with_hash=False)
    if not with_hashes:
        return
    threads = min(HASH_THREADS, os.cpu_count() or 1, len(manifest.files))
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(
            lambda item: verify_file(directory / item[0], item[1]), manifest.files.items()
        ):
            pass


def verify_file(path: Path, entry: object, *, with_hash: bool = True) -> None:
    """Nothing, if the file has the size and the SHA-256 of the manifest's entry.

    Raises: CheckpointError naming the file and what differs.
    """
    expected = entry if isinstance(entry, dict) else {}
    if not path.is_file():
        raise CheckpointError(f"{path}: missing, though the manifest lists it")
    try:
        num_bytes = path.stat().st_size
        if num_bytes != expected.get("bytes"):
            raise CheckpointError(
                f"{path}: {num_bytes} bytes, the manifest says {expected.get('bytes')}"
            )
        if with_hash and sha256_of_file(path) != expected.get("sha256"):
            raise CheckpointError(
                f"{path}: its SHA-256 differs from the manifest: the file was changed or damaged"
            )
    except OSError as error:  # a disk that cannot read it, a file that may not be read
        raise CheckpointError(f"{path}: cannot be read, {error}") from error


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises: CheckpointError naming the file and what is wrong with it.
    """
    try:
        value = read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        text = str(error)
        raise CheckpointError(text if str(path) in text else f"{path}: {text}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is a {type(value).__name__}, expected a JSON object")
    return value


def _sealed(raw: Mapping[str, Any]) -> str:
    """The text of a manifest with its own digest in it."""
    text = json.dumps(dict(raw) | {OWN_DIGEST: _ZEROS}, indent=2, allow_nan=False) + "\n"
    return text.replace(_ZEROS, hashlib.sha256(text.encode()).hexdigest())


def _digest_without(content: bytes, digest: object) -> str | None:
    """The digest of the content with zeros where its own stands; None if that is no digest."""
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
        return None
    return hashlib.sha256(content.replace(digest.encode(), _ZEROS.encode())).hexdigest()


def _is_inside(name: str) -> bool:
    parts = Path(name).parts
    return bool(parts) and not Path(name).is_absolute() and ".." not in parts


_ZEROS = "0" * 64

"""Paths -> bytes that are whole or absent.   in: paths   out: the home directory, text, JSON
who calls: every room that touches the disk

A file is written beside its place, flushed to the disk and renamed: a reader sees the old content
or the new one, never half of it, whatever stops the writer.
Read next: env.py (where the home comes from), config.py (settings on disk).
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from nanochat.common.env import home_from_env
from nanochat.common.errors import ConfigError, DataError

__all__ = [
    "home_dir",
    "open_atomically",
    "read_json",
    "sha256_of_file",
    "sync_directory",
    "write_json_atomically",
    "write_text_atomically",
]

HASH_CHUNK_BYTES = 1 << 20


def home_dir(override: Path | None = None) -> Path:
    """Where data and runs live: `override`, else $NANOCHAT_HOME, else ~/.cache/nanochat.

    The directory is not created here: a verb that only reads leaves no trace.
    Raises: ConfigError when the place is taken by something that is not a directory.
    """
    home = override.expanduser() if override is not None else home_from_env()
    if home is None:
        home = Path.home() / ".cache" / "nanochat"
    if home.exists() and not home.is_dir():
        raise ConfigError(
            f"home is {home}, which is not a directory: pass --home DIR or set NANOCHAT_HOME"
        )
    return home.absolute()


@contextlib.contextmanager
def open_atomically(path: Path) -> Iterator[IO[bytes]]:
    """A file for bytes; it appears at `path` only when the block ends without an exception.

    Missing parents are created.  It lasts through a power cut: file and directory are fsynced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fchmod(file.fileno(), 0o666 & ~_umask())  # mkstemp makes it private
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    sync_directory(path.parent)


def write_text_atomically(path: Path, text: str) -> None:
    """`text` as UTF-8 at `path`, whole or not at all."""
    with open_atomically(path) as file:
        file.write(text.encode())


def write_json_atomically(path: Path, value: Any) -> None:
    """`value` as indented JSON at `path`, whole or not at all.

    Raises: ValueError for NaN and infinity, which JSON does not have; nothing is written then.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    with open_atomically(path) as file:
        # What UTF-8 cannot hold is a lone surrogate in a string; this writes JSON's own \ud800.
        file.write(f"{text}\n".encode(errors="backslashreplace"))


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises: DataError when it is missing, a directory, not UTF-8 or not JSON (naming the line).
    """
    try:
        return json.loads(path.read_bytes().decode())
    except FileNotFoundError:
        raise DataError(f"{path} does not exist, expected a JSON file") from None
    except IsADirectoryError:
        raise DataError(f"{path} is a directory, expected a JSON file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 at byte {error.start}, expected JSON") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from None


def sha256_of_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, 64 hexadecimal digits; memory stays constant."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0o022)  # the only way to read it is to set it
    os.umask(mask)
    return mask


def sync_directory(path: Path) -> None:
    """The names in a directory outlast a power cut from here on, where the file system can."""
    with contextlib.suppress(OSError):  # some file systems refuse to sync a directory
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

"""Data files -> this machine.   in: the name of a file   out: where it is   who calls: data.py

The three places karpathy/nanochat loads from, and no other; a mirror stands for all of them:

    eval_bundle/...             one zip, unpacked whole
    mmlu/ arc/ gsm8k/ humaneval/  Parquet files of the Hugging Face Hub, rewritten as JSONL
    spellingbee/words_alpha.txt   a list of words

A load that broke off goes on where it was.  What arrives is compared with the length and the
SHA-256 that the server states, and files of the bundle with the SHA-256 they are known by.
Read next: data.py (who asks), checksums.py.
"""

import contextlib
import fcntl
import hashlib
import http.client
import json
import re
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from nanochat.common.errors import DataError
from nanochat.common.files import open_atomically, sha256_of_file, write_json_atomically
from nanochat.evals.checksums import KNOWN_SHA256

__all__ = ["BUNDLE_URL", "HUB_URL", "WORDS_URL", "Downloader", "load_file"]

BUNDLE_URL = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"
HUB_URL = "https://huggingface.co"
WORDS_URL = "https://raw.githubusercontent.com/dwyl/english-words/refs/heads/master/words_alpha.txt"
TIMEOUT_S = 20.0
CHUNK_BYTES = 1 << 20
MOST_TRIES = 5  # each goes on where the one before broke off

HUB_FILES = {
    "mmlu/test.jsonl": "cais/mmlu/parquet/all/test",
    "mmlu/dev.jsonl": "cais/mmlu/parquet/all/dev",
    "arc/ARC-Easy/test.jsonl": "allenai/ai2_arc/parquet/ARC-Easy/test",
    "arc/ARC-Easy/train.jsonl": "allenai/ai2_arc/parquet/ARC-Easy/train",
    "arc/ARC-Challenge/test.jsonl": "allenai/ai2_arc/parquet/ARC-Challenge/test",
    "arc/ARC-Challenge/train.jsonl": "allenai/ai2_arc/parquet/ARC-Challenge/train",
    "gsm8k/test.jsonl": "openai/gsm8k/parquet/main/test",
    "gsm8k/train.jsonl": "openai/gsm8k/parquet/main/train",
    "humaneval/HumanEval.jsonl": "openai/openai_humaneval/parquet/openai_humaneval/test",
}


@dataclass(slots=True)
class Downloader:
    """Loads what a task asks for into a folder; callable, as DataFiles wants it."""

    folder: Path
    mirror: str | None = None
    """An address that has eval_bundle.zip, api/datasets/... and words_alpha.txt.  None: the
    places named above."""
    _failed: dict[str, str] = field(default_factory=dict)
    """What could not be loaded, so that it is tried once a run."""

    def __call__(self, path: str) -> Path:
        """Where the file now is.

        Raises: DataError where it cannot be loaded, or is not what it should be.
        """
        source = self._source(path)
        if source in self._failed:
            raise DataError(self._failed[source])
        target = self.folder / path
        try:
            with _locked(self.folder):
                if not target.is_file():  # another process may have loaded it meanwhile
                    self._load(path, source, target)
        except (OSError, http.client.HTTPException, zipfile.BadZipFile, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            self._failed[source] = (
                f"{path} cannot be loaded from {source} ({reason}): pass --data-dir DIR, a folder "
                f"that holds {path.split('/')[0]}/"
            )
            raise DataError(self._failed[source]) from error
        if not target.is_file():
            raise DataError(f"{source} does not have {path}")
        return target

    def _source(self, path: str) -> str:
        base = None if self.mirror is None else self.mirror.rstrip("/")
        if path.startswith("eval_bundle/"):
            return BUNDLE_URL if base is None else f"{base}/eval_bundle.zip"
        if path in HUB_FILES:
            return f"{base or HUB_URL}/api/datasets/{HUB_FILES[path]}"
        if path == "spellingbee/words_alpha.txt":
            return WORDS_URL if base is None else f"{base}/words_alpha.txt"
        raise DataError(
            f"{path} is not among the files that can be loaded: pass --data-dir DIR, a folder that "
            f"holds {path.split('/')[0]}/"
        )

    def _load(self, path: str, source: str, target: Path) -> None:
        if path.startswith("eval_bundle/"):
            archive = self.folder / "eval_bundle.zip"
            load_file(source, archive)
            _unpack(archive, self.folder)
            archive.unlink()
        elif path in HUB_FILES:
            self._load_rows(source, target)
        else:
            load_file(source, target)
        told = self.folder / "downloads" / f"{path.replace('/', '--')}.json"
        if target.is_file():
            write_json_atomically(told, {"from": source, "sha256": sha256_of_file(target)})

    def _load_rows(self, source: str, target: Path) -> None:
        """All rows of a dataset's Parquet files, in their order."""
        import pyarrow.parquet as parquet

        with urllib.request.urlopen(source, timeout=TIMEOUT_S) as answer:
            urls = json.loads(answer.read())
        if not isinstance(urls, list) or not urls:
            raise ValueError(f"{source} lists no files")
        with open_atomically(target) as file:
            for number, url in enumerate(urls):
                part = target.with_name(f"{target.name}.{number}.parquet")
                load_file(str(url), part)
                for row in parquet.read_table(part).to_pylist():
                    file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                part.unlink()


def load_file(url: str, target: Path) -> None:
    """One file, whole; what an earlier try left is continued.

    Raises: OSError or HTTPException where the server cannot be reached or breaks off too often;
            ValueError where length or SHA-256 are not what it states.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.part")
    for left in reversed(range(MOST_TRIES)):
        try:
            stated = _go_on(url, partial)
            break
        except urllib.error.HTTPError:
            raise
        except (OSError, http.client.HTTPException):
            if not left or not partial.exists():
                raise
    if stated is not None and sha256_of_file(partial) != stated:
        partial.unlink()
        raise ValueError(f"its SHA-256 is not {stated}, as the server states")
    partial.replace(target)


def _go_on(url: str, partial: Path) -> str | None:
    """Load what is missing of a file; the SHA-256 it should have, where the server says."""
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "nanochat"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    hashes = _LinkedHash()
    try:
        answer = urllib.request.build_opener(hashes).open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # all of it is there, or it has become shorter
            partial.unlink()
            return _go_on(url, partial)
        raise
    with answer:
        is_continued = answer.status == 206
        hashes.note(answer.headers)
        expected = answer.headers.get("Content-Length")
        with partial.open("ab" if is_continued else "wb") as file:
            num_bytes = _copy(answer, file)
    if expected is not None and num_bytes < int(expected):
        raise ConnectionError(f"the server sent {num_bytes:,} of {int(expected):,} bytes")
    return hashes.sha256


def _copy(source: Any, target: IO[bytes]) -> int:
    num_bytes = 0
    while chunk := source.read(CHUNK_BYTES):
        target.write(chunk)
        num_bytes += len(chunk)
    return num_bytes


class _LinkedHash(urllib.request.HTTPRedirectHandler):
    """The Hub states a file's SHA-256 in the answer that sends one on to where it lies."""

    def __init__(self) -> None:
        self.sha256: str | None = None

    def note(self, headers: Any) -> None:
        stated = (headers.get("X-Linked-ETag") or "").strip('W/"')
        if re.fullmatch(r"[0-9a-f]{64}", stated):
            self.sha256 = stated

    def redirect_request(self, *arguments: Any) -> urllib.request.Request | None:
        self.note(arguments[4])
        return super().redirect_request(*arguments)


def _unpack(archive: Path, folder: Path) -> None:
    """The files of the bundle, each compared with its checksum in the zip and with its own."""
    with zipfile.ZipFile(archive) as packed:
        for member in packed.infolist():
            name = member.filename
            parts = Path(name).parts
            if member.is_dir() or not name.startswith("eval_bundle/") or ".." in parts:
                continue
            with packed.open(member) as source, open_atomically(folder / name) as target:
                digest = hashlib.sha256()
                while chunk := source.read(CHUNK_BYTES):
                    digest.update(chunk)
                    target.write(chunk)
                known = KNOWN_SHA256.get(Path(name).name)
                if known and digest.hexdigest() != known:
                    raise ValueError(f"{name} in the bundle is not the file it is known as")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process of this machine at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

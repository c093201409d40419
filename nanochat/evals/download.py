"""Data files -> this machine.   in: the name of a file   out: where it is   who calls: data.py

The three places karpathy/nanochat loads from, and no other; a mirror stands for all of them:

    eval_bundle/...             one zip, unpacked whole
    mmlu/ arc/ gsm8k/ humaneval/  Parquet files of the Hugging Face Hub, rewritten as JSONL
    spellingbee/words_alpha.txt   a list of words

Files of the bundle and the words are compared with the sums they are known by, beside what the
house's downloader compares.  How far a download is, and every try that fails, is seen on standard
error as with `nanochat data download`.
Read next: data.py (who asks), checksums.py, common/download.py (how).
"""

import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from nanochat.common.download import (
    DownloadOptions,
    RemoteFile,
    Watcher,
    download_file,
)
from nanochat.common.download_bars import shown
from nanochat.common.env import hub_url
from nanochat.common.errors import DataError
from nanochat.common.files import (
    open_atomically,
    read_json,
    sha256_of_file,
    write_json_atomically,
)
from nanochat.common.lock import locked
from nanochat.corpus.catalog import BUNDLE_URL
from nanochat.evals.checksums import FileSum

__all__ = ["WORDS_URL", "Downloader"]

# The newest commit in November 2026; karpathy/nanochat takes whatever the branch holds on that day.
WORDS_COMMIT = "20f5cc9b3f0ccc8ce45d814c532b7c2031bba31c"
WORDS_URL = f"https://raw.githubusercontent.com/dwyl/english-words/{WORDS_COMMIT}/words_alpha.txt"
CHUNK_BYTES = 1 << 20

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
    options: DownloadOptions = DownloadOptions()
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
            with locked(self.folder / ".lock", f"loads {path}"):
                if not target.is_file():  # another process may have loaded it meanwhile
                    self._load(path, source, target)
        except (OSError, zipfile.BadZipFile, ValueError) as error:
            self._failed[source] = (
                f"{path} cannot be loaded from {source} ({error}): pass --data-dir DIR, a folder "
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
            return f"{base or hub_url()}/api/datasets/{HUB_FILES[path]}"
        if path == "spellingbee/words_alpha.txt":
            return WORDS_URL if base is None else f"{base}/words_alpha.txt"
        raise DataError(
            f"{path} is not among the files that can be loaded: pass --data-dir DIR, a folder that "
            f"holds {path.split('/')[0]}/"
        )

    def _load(self, path: str, source: str, target: Path) -> None:
        if path.startswith("eval_bundle/"):
            with shown(1, None) as watcher:
                archive = self._file(source, self.folder / "eval_bundle.zip", watcher)
            _unpack(archive, self.folder)
            archive.unlink()
        elif path in HUB_FILES:
            self._load_rows(source, target)
        else:
            with shown(1, None) as watcher:
                self._file(source, target, watcher)
            _check(target)
        told = self.folder / "downloads" / f"{path.replace('/', '--')}.json"
        if target.is_file():
            write_json_atomically(told, {"from": source, "sha256": sha256_of_file(target)})

    def _load_rows(self, source: str, target: Path) -> None:
        """All rows of a dataset's Parquet files, in their order."""
        import pyarrow.parquet as parquet

        with shown(1, None) as watcher:
            listing = self._file(source, target.with_name(f"{target.name}.listing"), watcher)
        urls = read_json(listing)
        listing.unlink()
        if not isinstance(urls, list) or not urls:
            raise ValueError(f"{source} lists no files")
        with open_atomically(target) as file, shown(len(urls), None) as watcher:
            for number, url in enumerate(urls):
                part = self._file(url, target.with_name(f"{target.name}.{number}.parquet"), watcher)
                for row in parquet.read_table(part).to_pylist():
                    file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                part.unlink()

    def _file(self, url: str, target: Path, watcher: Watcher) -> Path:
        remote = RemoteFile(url=url, name=target.relative_to(self.folder).as_posix())
        return download_file(remote, self.folder, self.options, watcher)


def _unpack(archive: Path, folder: Path) -> None:
    """The files of the bundle, each compared with its checksum in the zip and with its own."""
    with zipfile.ZipFile(archive) as packed:
        for member in packed.infolist():
            name = member.filename
            parts = Path(name).parts
            if member.is_dir() or not name.startswith("eval_bundle/") or ".." in parts:
                continue
            with packed.open(member) as source, open_atomically(folder / name) as target:
                found = FileSum(Path(name).name, member.file_size)
                while chunk := source.read(CHUNK_BYTES):
                    found.update(chunk)
                    target.write(chunk)
                if found.is_other:
                    raise ValueError(f"{name} in the bundle is not the file it is known as")


def _check(path: Path) -> None:
    """Nothing, where a file is the one it is known as; another one is removed.

    Raises: ValueError.
    """
    content = path.read_bytes()
    found = FileSum(path.name, len(content))
    found.update(content)
    if found.is_other:
        path.unlink()
        raise ValueError(f"{path.name} is not the file it is known as")

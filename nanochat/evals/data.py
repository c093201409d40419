"""Names of data files -> their rows.   in: --data-dir, the home   out: rows, words, hashes
who calls: runner.py (through Selection.source), custom.py

A file is looked for, plain, .gz or .zst, in

    --data-dir                   a folder that holds eval_bundle/, arc/, mmlu/, gsm8k/, humaneval/,
                                 spellingbee/, text/
    $NANOCHAT_HOME/data/eval     the same, where downloads are kept
    the network                  download.py, unless --offline; text/ is nowhere to be had
The order of rows is decided by their number and a seed, so that of a limited run only the rows that
are asked are parsed: 200,000 rows of CORE cost a second that way, not eight.
Read next: download.py, task.py (Source).
"""

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from nanochat.common.errors import DataError
from nanochat.common.files import sha256_of_file
from nanochat.corpus.files import read_chunks

__all__ = ["DataFiles", "Order", "Row", "checked_row", "permuted", "shuffled"]

COMPRESSIONS = ("", ".gz", ".zst")

Order = Callable[[int], Sequence[int]]
"""How many rows there are -> their indices, in the order they are asked in."""


@dataclass(frozen=True, slots=True)
class Row:
    """One object of a JSONL file, and where it stands."""

    value: dict[str, Any]
    where: str
    number: int
    """Its line, from 1: the same in every order."""


@dataclass(slots=True)
class DataFiles:
    """Where the files of the tasks are; remembers what was read."""

    folders: Sequence[Path]
    """In the order they are looked through."""
    fetch: Callable[[str], Path] | None = None
    """Gets a file that is in none of them, and says where it is; None: nothing is fetched."""
    sha256: dict[str, str] = field(default_factory=dict)
    """Of what has been read, unpacked, by its name."""
    _hashed: dict[str, str] = field(default_factory=dict)
    """The same of all that share these files' lines: hashed once."""
    _lines: dict[str, list[tuple[int, bytes]]] = field(default_factory=dict)
    """(number, line), without empty ones."""

    def apart(self) -> "DataFiles":
        """The same files, read once for all; what is read of them from here is noted apart."""
        return replace(self, sha256={})

    def find(self, path: str) -> Path:
        """Where a file is.

        Raises: DataError naming the places that were looked at.
        """
        for folder in self.folders:
            for suffix in COMPRESSIONS:
                candidate = folder / f"{path}{suffix}"
                if candidate.is_file():
                    return candidate
        if self.fetch is not None:
            return self.fetch(path)
        places = " and ".join(str(folder) for folder in self.folders)
        raise DataError(
            f"{path} is not in {places} (nor with .gz or .zst): pass --data-dir DIR, a folder that "
            f"holds {path.split('/')[0]}/"
        )

    def rows(self, path: str, *, limit: int | None = None, order: Order | None = None) -> list[Row]:
        """The first `limit` rows of a JSONL file, in this order (None: the file's own).

        Raises: DataError naming file and line of what is no JSON object.
        """
        lines = self._content(path)
        indices = range(len(lines)) if order is None else order(len(lines))
        where = str(self.find(path))
        return [_row(*lines[index], where) for index in indices[:limit]]

    def words(self, path: str) -> list[str]:
        """The lines of a text file, stripped; what is empty is left out.

        Raises: DataError where it cannot be read.
        """
        try:
            stripped = (line.decode().strip() for _, line in self._content(path))
            return [word for word in stripped if word]
        except UnicodeDecodeError as error:
            raise DataError(f"{self.find(path)} is not UTF-8 ({error.reason})") from None

    def folder(self, path: str) -> Path:
        """The first of the places that has this folder.

        Raises: DataError naming the places.
        """
        for folder in self.folders:
            if (folder / path).is_dir():
                return folder / path
        places = " and ".join(str(folder) for folder in self.folders)
        raise DataError(f"there is no folder {path}/ in {places}: pass --data-dir DIR")

    def note(self, name: str, path: Path) -> None:
        """Remember that a task has read a file by itself, as it lies there.

        Raises: DataError where it cannot be read.
        """
        if name not in self._hashed:
            try:
                self._hashed[name] = sha256_of_file(path)
            except OSError as error:
                raise DataError(f"{path} cannot be read ({error})") from None
        self.sha256[name] = self._hashed[name]

    def _content(self, path: str) -> list[tuple[int, bytes]]:
        if path not in self._lines:
            content = b"".join(read_chunks(self.find(path)))
            self._hashed[path] = hashlib.sha256(content).hexdigest()
            numbered = enumerate(content.split(b"\n"), 1)
            self._lines[path] = [(number, line) for number, line in numbered if line.strip()]
            if not self._lines[path]:
                raise DataError(f"{self.find(path)} is empty, expected at least one line")
        self.sha256[path] = self._hashed[path]
        return self._lines[path]


def checked_row(row: Row, **kinds: type | tuple[type, ...]) -> dict[str, Any]:
    """The row's object, once every field named is there and of its kind.

    Raises: DataError naming file, line and field.
    """
    for name, kind in kinds.items():
        value = row.value.get(name)
        if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
            raise DataError(
                f"{row.where}: {name} is {value!r:.60}, expected {getattr(kind, '__name__', kind)}"
            )
    return row.value


def shuffled(seed: int) -> Order:
    """The order of `random.Random(seed).shuffle`."""

    def order(count: int) -> Sequence[int]:
        indices = list(range(count))
        random.Random(seed).shuffle(indices)
        return indices

    return order


def permuted(seed: int) -> Order:
    """The order of Hugging Face's `Dataset.shuffle(seed)`."""

    def order(count: int) -> Sequence[int]:
        indices: list[int] = np.random.default_rng(seed).permutation(count).tolist()
        return indices

    return order


def _row(number: int, line: bytes, path: str) -> Row:
    where = f"{path}, line {number}"
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:  # the second: a thousand brackets in one another
        raise DataError(f"{where}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise DataError(f"{where}: {str(value)[:40]!r}, expected a JSON object")
    return Row(value, where, number)

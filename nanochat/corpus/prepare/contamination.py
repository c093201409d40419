"""Evaluation sets -> where a corpus has their words.   in: files of questions, Words   out: hits
who calls: batches/prepare.py (builds), batches/prepare_piece.py (asks)

Every string of eight words or more in every record is an entry: a question, a passage, a choice.
A text has an entry's words if it has 13 of them in a row (as in GPT-3's check), or all of an entry
of 8 to 12; words are those of words.py, so case, punctuation and line breaks do not matter.
Files with `train` in their names are left out: they are there to be learnt from.
Source: Brown et al., arXiv:2005.14165, appendix C (N of 8 to 13 words).
Read next: words.py, docs/data.md (what is reported, what is removed).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nanochat.common.errors import DataError
from nanochat.common.files import read_json, write_json_atomically
from nanochat.corpus.files import find_files_with, read_records
from nanochat.corpus.prepare.words import Hashes, Words, words_of

__all__ = ["LEAST_WORDS", "RUN_WORDS", "EvaluationSets", "Hits"]

LEAST_WORDS = 8
LEAST_CHARS = 2 * LEAST_WORDS - 1  # of ASCII
RUN_WORDS = 13
FORMATS = ("lines", "json", "csv", "parquet", "arrow")
TEXTS_AT_ONCE = 1024
NPY_HEADER_BYTES = 128  # of an array without numbers, which cannot be mapped

Numbers = npt.NDArray[np.int64]
_SIEVE_BITS = range(10, 23)  # 2 ** bits words: at most 32 MB
_NAMES = ("runs", "run_entries", "firsts", "first_entries", "first_lengths", "lasts", "entry_files")


@dataclass(frozen=True, slots=True)
class Hits:
    """Which texts have words of which entries; sorted, each pair once."""

    texts: Numbers
    entries: Numbers


class EvaluationSets:
    """All entries of some files, ready to be asked."""

    def __init__(self, files: Sequence[str], arrays: dict[str, npt.NDArray[Any]]) -> None:
        self.files = tuple(files)
        """The files' names, below the folder that was given."""
        self._arrays = arrays
        self._runs, self._firsts = arrays["runs"], arrays["firsts"]
        self._run_sieve, self._first_sieve = _Sieve(self._runs), _Sieve(self._firsts)

    @classmethod
    def read(cls, folders: Sequence[Path]) -> "EvaluationSets":
        """The entries of all files below these folders (or of these files).

        Raises: DataError for a folder without such a file, and for what cannot be read.
        """
        builder = _Builder()
        files: list[str] = []
        for folder in folders:
            for path in find_files_with(FORMATS, folder):
                name = str(path.relative_to(folder)) if folder.is_dir() else path.name
                if "train" not in path.name:
                    builder.add(len(files), path)
                    files.append(name)
        if not builder.num_entries:
            places = ", ".join(map(str, folders))
            raise DataError(
                f"{places}: no entry of {LEAST_WORDS} words or more, expected files of questions"
            )
        return cls(files, builder.arrays())

    @classmethod
    def load(cls, directory: Path) -> "EvaluationSets":
        """What `save` wrote; the arrays are mapped, so that processes share them."""
        arrays = {name: _mapped(directory / f"{name}.npy") for name in _NAMES}
        return cls(read_json(directory / "files.json"), arrays)

    def save(self, directory: Path) -> None:
        """Write the arrays and the files' names."""
        directory.mkdir(parents=True, exist_ok=True)
        for name, array in self._arrays.items():
            np.save(directory / f"{name}.npy", array)
        write_json_atomically(directory / "files.json", list(self.files))

    @property
    def num_entries(self) -> int:
        """Strings that are looked for."""
        return len(self._arrays["entry_files"])

    def file_of(self, entries: Numbers) -> Numbers:
        """The number of the file each of these entries is from."""
        return np.asarray(self._arrays["entry_files"])[entries].astype(np.int64)

    def hits(self, words: Words) -> Hits:
        """Which of these texts have words of which entries; of several entries that have the same
        13 words, the first is named."""
        runs = words.runs(RUN_WORDS)
        places = self._run_sieve.places(runs)
        found = np.searchsorted(self._runs, runs[places])
        is_hit = found < len(self._runs)
        is_hit[is_hit] = self._runs[found[is_hit]] == runs[places[is_hit]]
        texts = words.owners(places[is_hit], RUN_WORDS)
        entries = self._arrays["run_entries"][found[is_hit]].astype(np.int64)
        long = np.stack([texts, entries], axis=1)[texts >= 0]
        pairs = np.unique(np.concatenate([long, self._short_hits(words)]), axis=0)
        return Hits(pairs[:, 0], pairs[:, 1])

    def _short_hits(self, words: Words) -> Numbers:
        """Entries of 8 to 12 words: the first eight, and the last eight where they would be."""
        runs = words.runs(LEAST_WORDS)
        places = self._first_sieve.places(runs)
        low = np.searchsorted(self._firsts, runs[places], side="left")
        high = np.searchsorted(self._firsts, runs[places], side="right")
        pairs = []
        for place, start, stop in zip(places.tolist(), low.tolist(), high.tolist(), strict=True):
            for candidate in range(start, stop):
                length = int(self._arrays["first_lengths"][candidate])
                (text,) = words.owners(np.array([place]), length)
                last = place + length - LEAST_WORDS
                if text >= 0 and runs[last] == self._arrays["lasts"][candidate]:
                    pairs.append((int(text), int(self._arrays["first_entries"][candidate])))
        return np.array(pairs, np.int64).reshape(-1, 2)


class _Sieve:
    """Which of many hashes may be in a set; of those that are not, fewer than one in 100 pass.

    A word of 64 bits for each two hashes of the set, in which each sets three: one look in memory,
    which is what it costs.
    Source: blocked Bloom filters, Putze et al., 2007.
    """

    def __init__(self, hashes: Hashes) -> None:
        bits = min(max((len(hashes) // 2).bit_length(), _SIEVE_BITS.start), _SIEVE_BITS.stop - 1)
        self._shift = np.uint64(64 - bits)
        self._table = np.zeros(1 << bits, np.uint64)
        hashes = np.asarray(hashes)
        places = (hashes >> self._shift).astype(np.int64)
        np.bitwise_or.at(self._table, places, _marks(hashes))

    def places(self, hashes: Hashes) -> Numbers:
        found = self._table[(hashes >> self._shift).astype(np.int64)]
        marks = _marks(hashes)
        return np.flatnonzero(found & marks == marks)


def _marks(hashes: Hashes) -> Hashes:
    one, most = np.uint64(1), np.uint64(63)
    marks = one << (hashes & most)
    marks |= one << ((hashes >> np.uint64(6)) & most)
    marks |= one << ((hashes >> np.uint64(12)) & most)
    return marks


class _Builder:
    """Entries while files are read."""

    def __init__(self) -> None:
        self.num_entries = 0
        self._files: list[int] = []
        self._long: list[tuple[Hashes, Numbers]] = []
        self._short: list[tuple[int, int, int, int]] = []  # first, length, last, entry

    def add(self, file: int, path: Path) -> None:
        waiting: list[bytes] = []
        for record in read_records(path):
            waiting += _strings(record.value)
            if len(waiting) >= TEXTS_AT_ONCE:
                self._take(file, waiting)
                waiting = []
        self._take(file, waiting)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        runs = np.concatenate([hashes for hashes, _ in self._long] or [np.zeros(0, np.uint64)])
        owners = np.concatenate([entries for _, entries in self._long] or [np.zeros(0, np.int64)])
        runs, first = np.unique(runs, return_index=True)
        short = sorted(self._short)
        columns = list(zip(*short, strict=True)) if short else [(), (), (), ()]
        return {
            "runs": runs,
            "run_entries": owners[first].astype(np.int32),
            "firsts": np.array(columns[0], np.uint64),
            "first_lengths": np.array(columns[1], np.int32),
            "lasts": np.array(columns[2], np.uint64),
            "first_entries": np.array(columns[3], np.int32),
            "entry_files": np.array(self._files, np.int32),
        }

    def _take(self, file: int, texts: Sequence[bytes]) -> None:
        if not texts:
            return
        words = words_of(texts)
        counts = words.ends - words.starts
        kept = np.flatnonzero(counts >= LEAST_WORDS)
        numbers = np.full(len(texts), -1)
        numbers[kept] = self.num_entries + np.arange(len(kept))
        runs = words.runs(RUN_WORDS)
        rows = words.rows(RUN_WORDS)[: len(runs)]
        self._long.append((runs[rows >= 0], numbers[rows[rows >= 0]]))
        eights = words.runs(LEAST_WORDS)
        for text in np.flatnonzero((counts >= LEAST_WORDS) & (counts < RUN_WORDS)):
            start, end = int(words.starts[text]), int(words.ends[text])
            first, last = int(eights[start]), int(eights[end - LEAST_WORDS])
            self._short.append((first, end - start, last, int(numbers[text])))
        self._files += [file] * len(kept)
        self.num_entries += len(kept)


def _mapped(path: Path) -> npt.NDArray[Any]:
    array = np.load(path, mmap_mode="r" if path.stat().st_size > NPY_HEADER_BYTES else None)
    return np.asarray(array)  # slicing the map itself costs ten times as much


def _strings(value: Any) -> list[bytes]:
    """All strings inside, in their order, but those too short for eight words."""
    found = []
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, str):
            if len(each) >= LEAST_CHARS or (len(each) >= LEAST_WORDS and not each.isascii()):
                found.append(each.encode("utf-8", "replace"))
        elif isinstance(each, dict):
            waiting.extend(reversed(each.values()))
        elif isinstance(each, list | tuple):
            waiting.extend(reversed(each))
    return found

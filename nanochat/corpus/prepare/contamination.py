"""Evaluation sets -> where a corpus has their words.   in: files of questions, Words   out: hits
who calls: batches/prepare.py (builds), batches/prepare_piece.py (asks)

Every string of eight words or more in every record is an entry: a question, a passage, a choice.
A text has an entry's words if it has 13 of them in a row (as in GPT-3's check), or all of an entry
of 8 to 12; words are those of words.py, so case, punctuation and line breaks do not matter.
Source: Brown et al., arXiv:2005.14165, appendix C (N of 8 to 13 words).
Read next: entry_files.py (which files), words.py, docs/data.md (what is reported, what is removed).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nanochat.common.errors import DataError
from nanochat.common.files import read_json, write_json_atomically
from nanochat.corpus.files import read_records
from nanochat.corpus.prepare.entry_files import entry_files
from nanochat.corpus.prepare.words import Hashes, Words, words_of

__all__ = [
    "LEAST_WORDS",
    "RUN_WORDS",
    "EvaluationSets",
    "FileEntries",
    "Hits",
    "entries_of_file",
]

LEAST_WORDS = 8
LEAST_CHARS = 2 * LEAST_WORDS - 1  # of ASCII
RUN_WORDS = 13
TEXTS_AT_ONCE = 1024
NPY_HEADER_BYTES = 128  # of an array without numbers, which cannot be mapped

Numbers = npt.NDArray[np.int64]
Over = Callable[[Callable[[Path], "FileEntries"], Sequence[Path]], Iterable["FileEntries"]]
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
    def read(cls, folders: Sequence[Path], over: Over = map) -> "EvaluationSets":
        """The entries of all files below these folders (or of these files).

        `over` reads the files: `map`, or that of a `common.pool.Executor`.
        Raises: DataError for a folder without such a file, and for what cannot be read.
        """
        files = entry_files(folders)
        found = list(over(entries_of_file, files.paths))
        if not any(each.num_entries for each in found):
            places = ", ".join(map(str, folders))
            raise DataError(
                f"{places}: no entry of {LEAST_WORDS} words or more, expected files of questions"
            )
        return cls(files.names, _merged(found))

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


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntries:
    """The entries of one file, numbered from 0."""

    num_entries: int
    runs: Hashes
    """Of all 13 words in a row."""
    owners: npt.NDArray[np.int32]
    """The entry each run is of."""
    short: npt.NDArray[np.uint64]
    """(entries of 8 to 12 words, 4): the first eight, the length, the last eight, the entry."""


def entries_of_file(path: Path) -> FileEntries:
    """What is looked for because of this file.

    Raises: DataError for what cannot be read.
    """
    num_entries = 0
    runs, owners = [np.zeros(0, np.uint64)], [np.zeros(0, np.int32)]
    short = [np.zeros((0, 4), np.uint64)]
    for texts in _texts_of(path):
        words = words_of(texts)
        counts = words.ends - words.starts
        kept = np.flatnonzero(counts >= LEAST_WORDS)
        numbers = np.full(len(texts), -1)
        numbers[kept] = num_entries + np.arange(len(kept))
        num_entries += len(kept)
        hashes = words.runs(RUN_WORDS)
        rows = words.rows(RUN_WORDS)[: len(hashes)]
        runs.append(hashes[rows >= 0])
        owners.append(numbers[rows[rows >= 0]].astype(np.int32))
        few = np.flatnonzero((counts >= LEAST_WORDS) & (counts < RUN_WORDS))
        if few.size:
            eights = words.runs(LEAST_WORDS)
            firsts, lasts = eights[words.starts[few]], eights[words.ends[few] - LEAST_WORDS]
            columns = (firsts, counts[few], lasts, numbers[few])
            short.append(np.stack([np.asarray(each, np.uint64) for each in columns], axis=1))
    return FileEntries(
        num_entries=num_entries,
        runs=np.concatenate(runs),
        owners=np.concatenate(owners),
        short=np.concatenate(short),
    )


def _texts_of(path: Path) -> Iterator[list[bytes]]:
    waiting: list[bytes] = []
    for record in read_records(path):
        waiting += _strings(record.value)
        if len(waiting) >= TEXTS_AT_ONCE:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def _merged(found: Sequence[FileEntries]) -> dict[str, npt.NDArray[Any]]:
    """The arrays of all files; of equal runs the first is kept."""
    counts = np.array([each.num_entries for each in found])
    before = np.cumsum(counts) - counts
    runs = np.concatenate([each.runs for each in found])
    owners = np.concatenate(
        [each.owners + np.int32(start) for each, start in zip(found, before, strict=True)]
    )
    order = _order(runs)
    runs = runs[order]
    groups = np.flatnonzero(np.concatenate([[True], runs[1:] != runs[:-1]])[: len(runs)])
    short = np.concatenate(
        [
            each.short + np.array([0, 0, 0, start], np.uint64)
            for each, start in zip(found, before, strict=True)
        ]
    )
    short = short[np.lexsort(short.T[::-1])]
    return {
        "runs": runs[groups],
        "run_entries": owners[order[groups]],
        "firsts": short[:, 0],
        "first_lengths": short[:, 1].astype(np.int32),
        "lasts": short[:, 2],
        "first_entries": short[:, 3].astype(np.int32),
        "entry_files": np.repeat(np.arange(len(found), dtype=np.int32), counts),
    }


def _order(hashes: Hashes) -> Numbers:
    """As np.argsort, equal ones in their order, in a third of its time.

    Numbers are sorted eight times as fast as their places: so the place takes the lowest bits of
    each number, and the few that differ in those alone are put in order afterwards.
    """
    bits = np.uint64(max(len(hashes) - 1, 1).bit_length())
    keys = hashes >> bits << bits
    keys |= np.arange(len(hashes), dtype=np.uint64)
    keys.sort()
    order = (keys & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)
    keys >>= bits
    found = hashes[order]
    for place in np.flatnonzero(found[1:] < found[:-1]).tolist():
        alike = slice(*(np.searchsorted(keys, keys[place], side) for side in ("left", "right")))
        group = np.sort(order[alike])
        order[alike] = group[np.argsort(hashes[group], kind="stable")]
    return order


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

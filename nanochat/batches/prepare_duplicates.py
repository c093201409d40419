"""All pieces -> which documents stay.   in: pieces' directories   out: kept-*.npy, removed.json
who calls: batches/prepare.py   (imports no torch)

Documents have numbers over all pieces, in the order of the corpus.  One after another: what holds
words of an evaluation set goes, if that is asked for; of equal documents the first stays; of
documents that are alike, found band by band (a task each, in any process), the first stays.  Every
result is a file that is whole or absent.
Memory: a task about 100 bytes a document, whatever the length of the documents: 1 GB for ten
million of them, some 50 GB of text.
Read next: corpus/prepare/duplicates.py (the pairs), prepare_shards.py (who reads kept-*.npy).
"""

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nanochat.batches.prepare_piece import piece_directory
from nanochat.common.files import open_atomically, read_json, write_json_atomically
from nanochat.common.pool import Executor
from nanochat.corpus.prepare.duplicates import alike_pairs, equal_pairs, joined
from nanochat.corpus.prepare.near import NUM_BINS, Signatures

__all__ = ["DuplicateTask", "Pieces", "Removal", "find_pairs", "save_array", "settle"]

NUM_PAIRS_TOLD = 5

Numbers = npt.NDArray[np.int64]


class Pieces:
    """Arrays over the documents of all pieces, read from where they lie."""

    def __init__(self, work: Path, counts: Sequence[int]) -> None:
        self.work = work
        self.counts = tuple(counts)
        """Documents of each piece."""
        self.ends = np.cumsum(self.counts, dtype=np.int64)

    @property
    def num_documents(self) -> int:
        """Of all pieces."""
        return int(self.ends[-1])

    def array(self, piece: int, name: str) -> npt.NDArray[Any]:
        """An array of one piece, mapped."""
        path = piece_directory(self.work, piece) / f"{name}.npy"
        return np.asarray(np.load(path, mmap_mode="r"))

    def arrays(self, name: str) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """The number of each piece that has documents, and its array."""
        for piece, count in enumerate(self.counts):
            if count:
                yield piece, self.array(piece, name)

    def whole(self, name: str) -> npt.NDArray[Any]:
        """The arrays of all pieces together."""
        return np.concatenate([array for _, array in self.arrays(name)])

    def located(self, documents: Numbers) -> tuple[Numbers, Numbers]:
        """The piece of each of these documents, and its number there."""
        pieces = np.searchsorted(self.ends, documents, side="right")
        return pieces, documents - self.ends[pieces] + np.array(self.counts)[pieces]

    def place(self, document: int) -> tuple[int, int]:
        """The piece of a document, and its number there."""
        piece = bisect.bisect_right(self.ends, document)
        return piece, document - int(self.ends[piece]) + self.counts[piece]

    def signatures(self, documents: Numbers) -> Signatures:
        """The signatures of these documents."""
        found = np.empty((len(documents), NUM_BINS), np.uint16)
        pieces, numbers = self.located(documents)
        for piece in np.unique(pieces).tolist():
            mine = pieces == piece
            found[mine] = self.array(piece, "signatures")[numbers[mine]]
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class DuplicateTask:
    """One search for pairs."""

    work: Path
    counts: tuple[int, ...]
    threshold: float
    band: int | None
    """Which band; None: equal documents."""

    @property
    def path(self) -> Path:
        """Where its pairs go."""
        name = "equal" if self.band is None else f"band-{self.band:03d}"
        return self.work / "duplicates" / f"{name}.npy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """What was removed, in numbers and examples."""

    num_contaminated: int
    num_equal: int
    num_alike: int
    equal_pairs: list[tuple[int, int]]
    """Some of them: (removed, kept)."""
    alike_pairs: list[tuple[int, int, float]]
    """(removed, found to be like it, how alike by estimate)."""


def find_pairs(task: DuplicateTask) -> None:
    """Write the pairs of one search, if they are not there."""
    if task.path.is_file():
        return
    pieces = Pieces(task.work, task.counts)
    directory = task.path.parent
    if task.band is None:
        numbers = np.flatnonzero(np.load(directory / "candidates.npy"))
        hashes = np.concatenate([array for _, array in pieces.arrays("hashes")])
        save_array(task.path, equal_pairs(hashes[numbers], numbers))
        return
    numbers = np.flatnonzero(np.load(directory / "unequal.npy"))
    keys = np.concatenate([array[task.band] for _, array in pieces.arrays("bands")])[numbers]
    pairs, alike = alike_pairs(keys, numbers, pieces.signatures, task.threshold)
    found = np.zeros(len(pairs), [("pair", np.int64, 2), ("alike", np.float64)])
    found["pair"], found["alike"] = pairs, alike
    save_array(task.path, found)


def settle(
    pieces: Pieces,
    executor: Executor,
    *,
    removes_contaminated: bool,
    removes_equal: bool,
    threshold: float,
    num_bands: int,
) -> Removal:
    """Write kept-train.npy and kept-validation.npy: the numbers of the documents that stay."""
    directory = pieces.work / "duplicates"
    told = directory / "removed.json"
    if told.is_file():
        return _removal(read_json(told))
    is_clean = ~_is_contaminated(pieces)
    candidates = is_clean if removes_contaminated else np.ones_like(is_clean)
    _save_once(directory / "candidates.npy", candidates)
    first = np.arange(pieces.num_documents)

    def task(band: int | None) -> DuplicateTask:
        return DuplicateTask(work=pieces.work, counts=pieces.counts, threshold=threshold, band=band)

    equal = np.zeros((0, 2), np.int64)
    if removes_equal:
        list(executor.map(find_pairs, [task(None)]))
        equal = np.load(task(None).path)
        joined(first, equal)
    is_unequal = candidates & (first == np.arange(len(first)))
    num_equal = int(candidates.sum() - is_unequal.sum())
    told_alike: list[tuple[int, int, float]] = []
    if num_bands:
        _save_once(directory / "unequal.npy", is_unequal & pieces.whole("has_words"))
        tasks = [task(band) for band in range(num_bands)]
        list(executor.map(find_pairs, [each for each in tasks if not each.path.is_file()]))
        for each in tasks:
            found = np.load(each.path)
            joined(first, found["pair"])
            told_alike = _some(told_alike, found)
    stays = is_unequal & (first == np.arange(len(first)))
    is_held_out = pieces.whole("is_held_out")
    save_array(directory / "kept-train.npy", np.flatnonzero(stays & ~is_held_out))
    save_array(directory / "kept-validation.npy", np.flatnonzero(stays & is_held_out))
    removal = Removal(
        num_contaminated=int((~is_clean).sum()),
        num_equal=num_equal,
        num_alike=int(is_unequal.sum() - stays.sum()),
        equal_pairs=[(later, earlier) for later, earlier in equal[:NUM_PAIRS_TOLD].tolist()],
        alike_pairs=told_alike,
    )
    write_json_atomically(
        told,
        {
            "num_contaminated": removal.num_contaminated,
            "num_equal": removal.num_equal,
            "num_alike": removal.num_alike,
            "equal_pairs": removal.equal_pairs,
            "alike_pairs": removal.alike_pairs,
        },
    )
    return removal


def save_array(path: Path, array: npt.NDArray[Any]) -> None:
    """An array in a .npy file that is whole or absent."""
    with open_atomically(path) as file:
        np.save(file, array)


def _save_once(path: Path, array: npt.NDArray[Any]) -> None:
    if not path.is_file():
        save_array(path, array)


def _is_contaminated(pieces: Pieces) -> npt.NDArray[np.bool_]:
    found = np.zeros(pieces.num_documents, bool)
    for piece, count in enumerate(pieces.counts):
        path = piece_directory(pieces.work, piece) / "hits.npy"
        if count and path.is_file():
            start = int(pieces.ends[piece]) - count
            found[start + np.load(path)[:, 0]] = True
    return found


def _some(
    told: Sequence[tuple[int, int, float]], found: npt.NDArray[Any]
) -> list[tuple[int, int, float]]:
    """The pairs to tell of: those that come first in the corpus, whatever band found them."""
    some = found[:NUM_PAIRS_TOLD]
    pairs = zip(some["pair"].tolist(), some["alike"].tolist(), strict=True)
    new = [(later, earlier, alike) for (later, earlier), alike in pairs]
    return sorted({*told, *new})[:NUM_PAIRS_TOLD]


def _removal(value: dict[str, Any]) -> Removal:
    return Removal(
        num_contaminated=value["num_contaminated"],
        num_equal=value["num_equal"],
        num_alike=value["num_alike"],
        equal_pairs=[(later, earlier) for later, earlier in value["equal_pairs"]],
        alike_pairs=[(later, earlier, alike) for later, earlier, alike in value["alike_pairs"]],
    )

"""All pieces -> which documents stay.   in: pieces' directories   out: kept-*.npy, removed.json
who calls: batches/prepare.py   (imports no torch)

Documents have numbers over all pieces, in the order of the corpus.  One after another: what holds
words of an evaluation set goes, if that is asked for; of equal documents the first stays; of
documents that are alike, found band by band (a task each, in any process), the first stays.  Every
result is a file that is whole or absent.
Memory: a task takes the documents apart by their hashes, and holds 100 bytes for each of
PART_DOCUMENTS and 24 for each pair it finds; who puts all together holds 30 bytes for each document
of the corpus, and 33 for each pair of a band.
Read next: corpus/prepare/duplicates.py (the pairs), prepare_shards.py (who reads kept-*.npy).
"""

import bisect
import contextlib
import tempfile
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
from nanochat.corpus.prepare.words import Hashes

__all__ = ["DuplicateTask", "Pieces", "Removal", "find_pairs", "save_array", "settle"]

NUM_PAIRS_TOLD = 5
PART_DOCUMENTS = 8_000_000  # 0.8 GB; 600 million documents are 75 files of 0.2 GB

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
    if task.band is None:
        equal = [
            equal_pairs(hashes, numbers) for numbers, hashes in _parts(task, pieces, "candidates")
        ]
        save_array(task.path, np.concatenate(equal))
        return
    found = []
    for numbers, keys in _parts(task, pieces, "unequal"):
        pairs, alike = alike_pairs(keys[:, 0], numbers, pieces.signatures, task.threshold)
        part = np.zeros(len(pairs), [("pair", np.int64, 2), ("alike", np.float64)])
        part["pair"], part["alike"] = pairs, alike
        found.append(part)
    together = np.concatenate(found)
    order = np.lexsort((together["pair"][:, 1], together["pair"][:, 0]))
    save_array(task.path, together[order])


def _parts(task: DuplicateTask, pieces: Pieces, among: str) -> Iterator[tuple[Numbers, Hashes]]:
    """The numbers of the documents among which is searched, ascending, and their hashes or keys, a
    range of these at a time: what is equal is in one part, and the parts are in their order.

    Shapes: (documents,), (documents, 2) for hashes, (documents, 1) for the keys of a band.
    """
    num_parts = -(-pieces.num_documents // PART_DOCUMENTS)
    if num_parts == 1:
        each = list(_read(task, pieces, among))
        yield np.concatenate([n for n, _ in each]), np.concatenate([values for _, values in each])
        return
    with tempfile.TemporaryDirectory(dir=task.path.parent, prefix=f".{task.path.stem}.") as folder:
        width = 2 if task.band is None else 1
        with contextlib.ExitStack() as stack:
            files = [
                stack.enter_context((Path(folder) / f"{part}").open("wb"))
                for part in range(num_parts)
            ]
            for numbers, values in _read(task, pieces, among):
                rows = np.column_stack([numbers.astype(np.uint64), values])
                owners = ((values[:, 0] >> np.uint64(32)) * np.uint64(num_parts)) >> np.uint64(32)
                for part in np.unique(owners).tolist():
                    rows[owners == part].tofile(files[part])
        for part in range(num_parts):
            rows = np.fromfile(Path(folder) / f"{part}", np.uint64).reshape(-1, 1 + width)
            yield rows[:, 0].astype(np.int64), np.ascontiguousarray(rows[:, 1:])


def _read(task: DuplicateTask, pieces: Pieces, among: str) -> Iterator[tuple[Numbers, Hashes]]:
    """Of each piece: the numbers of the documents among which is searched, and their values."""
    is_among = np.load(task.path.parent / f"{among}.npy", mmap_mode="r")
    name = "hashes" if task.band is None else "bands"
    for piece, array in pieces.arrays(name):
        start = int(pieces.ends[piece]) - pieces.counts[piece]
        mine = np.flatnonzero(is_among[start : start + pieces.counts[piece]])
        values = array if task.band is None else array[task.band].reshape(-1, 1)
        yield start + mine, values[mine]


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

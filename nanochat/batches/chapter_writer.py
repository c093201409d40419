"""Documents -> chapters on the disk.   in: documents from any place on   out: token stores
who calls: on_the_fly.py (the first chapter), background.py (the others)

    00000/  00000.json   a token store of CHAPTER_CHARS characters, and what comes after it: the
    00001/  00001.json   place in the files where the next chapter begins, or the end of the text

A writer goes on wherever another one stopped, from that place: files before it are not opened.
Read next: chapters.py (who reads them), store.py (what a token store is).
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from nanochat.batches.store import TokenStore
from nanochat.batches.store_cache import kept_store
from nanochat.batches.store_writer import Encoder, HasText, tokenize_corpus
from nanochat.common.files import read_json, write_json_atomically

__all__ = [
    "BEGINNING",
    "ChapterWriter",
    "Ending",
    "Left",
    "Onward",
    "Place",
    "beginning",
    "chapter_name",
    "ending_of",
    "is_written",
]

D = TypeVar("D", bound=HasText)


class Place(NamedTuple):
    """Where a document is in a text."""

    file: int
    """Which of the files."""
    position: int
    """Which of the file's documents, those that are held out among them."""


BEGINNING = Place(0, 0)


class Ending(NamedTuple):
    """What comes after a chapter."""

    next: Place | None
    """None: it was the last."""
    left_out: Mapping[str, int]
    """What reading left out of it, by reason."""
    num_bytes: int
    """Of its texts in UTF-8."""


class Left(Protocol):
    """What reading has left out so far; `corpus.files.ReadReport` is one."""

    counts: Counter[str]


Onward = Callable[[Place], tuple[Iterator[tuple[Place, HasText]], Left]]
"""The documents from a place on, and what is left out while they are read."""


class ChapterWriter:
    """Writes the chapters of one text, best one after another: it goes on reading where it was."""

    def __init__(
        self, directory: Path, onward: Onward, tokenizer: Encoder, chapter_chars: int
    ) -> None:
        self._directory = directory
        self._onward = onward
        self._tokenizer = tokenizer
        self._chapter_chars = chapter_chars
        self._reader: _Reader | None = None

    def write(self, number: int) -> TokenStore | None:
        """The chapter, written if it is not there; None behind the last one.  Those before it are
        there.

        Raises: DataError for what cannot be read.
        """
        start: Place | None = BEGINNING
        if number:
            start = ending_of(self._directory, number - 1).next
        if start is None:
            return None
        place = start  # for the closure: never None
        return kept_store(
            self._directory / chapter_name(number),
            self._tokenizer,
            lambda directory: self._write(number, place, directory),
        )

    def _write(self, number: int, start: Place, directory: Path) -> TokenStore:
        reader, self._reader = self._reader, None  # whose reading fails is not read on
        if reader is None or reader.next != start:
            reader = _Reader(start, self._onward)
        texts = self._texts(reader, number)
        store = tokenize_corpus(texts, self._tokenizer, directory)
        self._reader = reader
        return store

    def _texts(self, reader: "_Reader", number: int) -> Iterator[HasText]:
        """The chapter's documents; where it ends is written down before its store is there."""
        num_bytes = 0
        for document in reader.read(self._chapter_chars):
            num_bytes += _num_bytes(document.text)
            yield document
        ending = Ending(next=reader.next, left_out=reader.left_out(), num_bytes=num_bytes)
        write_json_atomically(self._directory / f"{chapter_name(number)}.json", ending._asdict())


class _Reader:
    """Documents, with a look at the one that comes next."""

    def __init__(self, start: Place, onward: Onward) -> None:
        self._documents, self._left = onward(start)
        self._told: Counter[str] = Counter()
        self._held = next(self._documents, None)
        if start != BEGINNING:  # what was passed over belongs to the chapters before
            self._told.update(self._left.counts)

    @property
    def next(self) -> Place | None:
        return self._held[0] if self._held is not None else None

    def read(self, num_chars: int) -> Iterator[HasText]:
        """Whole documents of at most `num_chars` characters together, but at least one."""
        total = 0
        while self._held is not None:
            document = self._held[1]
            total += len(document.text)
            if total > num_chars and total > len(document.text):
                return
            self._held = next(self._documents, None)
            yield document

    def left_out(self) -> dict[str, int]:
        """What has been left out since this was asked last."""
        new = self._left.counts - self._told
        self._told = Counter(self._left.counts)
        return dict(new)


def beginning(documents: Iterator[D], num_chars: int) -> Iterator[D]:
    """The first documents, of at most `num_chars` characters together, but at least one."""
    total = 0
    for document in documents:
        total += len(document.text)
        if total > num_chars and total > len(document.text):
            return
        yield document


def is_written(directory: Path, number: int) -> bool:
    """Whether a chapter is there, whole."""
    return (directory / chapter_name(number) / "index.json").is_file()


def ending_of(directory: Path, number: int) -> Ending:
    """What comes after a chapter that is there.

    Raises: DataError if that is not known.
    """
    told = read_json(directory / f"{chapter_name(number)}.json")
    return Ending(**told | {"next": Place(*told["next"]) if told["next"] else None})


def chapter_name(number: int) -> str:
    """Of its directory."""
    return f"{number:05}"


def _num_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))

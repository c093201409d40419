"""A text of any size -> chapters.   in: the directory they are in   out: Chapters, a store each
who calls: on_the_fly.py (opens them), stream.py (reads them)

A text that is too long to be tokenized before training begins is cut into chapters of CHAPTER_CHARS
characters.  What is in a chapter follows from the text, the tokenizer and that size, and so does
the fingerprint, which is known before anything is tokenized: whether chapters are found or are
being written makes no difference to any batch.

    epoch 0      takes the chapters in the order of the text, as they are written
    later ones   shuffle them, and so all have to be there by then
Read next: chapter_writer.py (what is on the disk), rows.py (the documents of a chapter are
shuffled).
"""

import hashlib
import json
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

from nanochat.batches.chapter_writer import chapter_name, ending_of, is_written
from nanochat.batches.order import shuffled
from nanochat.batches.store import Indices, Mask, Store, Tokens, TokenStore
from nanochat.batches.store_writer import Encoder

__all__ = [
    "AHEAD",
    "CHAPTER_CHARS",
    "Chapters",
    "Helper",
    "Section",
    "StoreToCome",
    "chapters_fingerprint",
    "wait_until",
]

# Some 14 million tokens, 28 MB on the disk: written in 10 s by two cores, and enough documents
# (20,000 of 3,000 characters) that shuffling within it is shuffling.
CHAPTER_CHARS = 64_000_000
AHEAD = 2  # chapters that are written before they are needed; 600 GB are not tokenized for 10 steps
VERSION = 1  # raised when the same text would be cut otherwise
NUM_OPEN = 4
POLL_S = 0.02, 0.5  # how often is looked for a chapter: at first, and after a while


class Section(NamedTuple):
    """What a stream reads without a break: a store in one order."""

    epoch: int
    store: Store
    key: tuple[object, ...]
    """What the order is chosen by."""


class Helper(Protocol):
    """Who writes chapters while others read."""

    def want(self, number: int) -> None:
        """Chapters up to this one will be read soon."""

    def check(self) -> None:
        """Raises: what ended the writing."""


class Chapters:
    """The chapters of a text, some of which may still have to be written.

    Without a helper somebody else writes them: another rank of this machine.
    For one thread at a time.
    """

    def __init__(
        self, directory: Path, tokenizer: Encoder, *, fingerprint: str, num_bytes: int,
        helper: Helper | None = None,
    ) -> None:  # fmt: skip
        self._directory = directory
        self._tokenizer = tokenizer
        self._fingerprint = fingerprint
        self._num_bytes = num_bytes
        self._helper = helper
        self._open: OrderedDict[int, TokenStore] = OrderedDict()
        self._num_chapters: int | None = None

    @property
    def fingerprint(self) -> str:
        """What decides every token and its place."""
        return self._fingerprint

    @property
    def bos(self) -> int:
        """The token every document begins with."""
        return self._tokenizer.bos

    @property
    def num_tokens(self) -> int:
        """About so many, by the size of the files and the tokens of the first chapter; of packed
        files it is too few.  Equal on every machine and at all times."""
        first = self.chapter(0)
        assert first is not None, "a text has a first chapter"
        num_bytes = ending_of(self._directory, 0).num_bytes
        return round(self._num_bytes * first.num_tokens / num_bytes)

    @property
    def num_written(self) -> int:
        """Chapters that are there from the first one on."""
        number = 0
        while is_written(self._directory, number):
            number += 1
        return number

    def left_out(self) -> Counter[str]:
        """What was left out of the chapters that are there, by reason."""
        total: Counter[str] = Counter()
        for number in range(self.num_written):
            total.update(ending_of(self._directory, number).left_out)
        return total

    def chapter(self, number: int) -> TokenStore | None:
        """A chapter, waited for where it has to be written; None behind the last one.

        Raises: what ended the writing; DataError where it is damaged.
        """
        if not self._exists(number):
            return None
        if number not in self._open:
            self._wait(number)
            directory = self._directory / chapter_name(number)
            self._open[number] = TokenStore.open(directory, self._tokenizer)
            while len(self._open) > NUM_OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        return self._open[number]

    def section(self, part: int, seed: int) -> Section:
        """What is read in the part of this number: all chapters again and again."""
        if self._num_chapters is None and (store := self.chapter(part)) is not None:
            return Section(0, store, (seed, 0, part))
        assert self._num_chapters is not None, "the end of the text has just been seen"
        epoch, place = divmod(part, self._num_chapters)
        number = place
        if epoch:
            key = ("chapters", seed, epoch)
            number = int(shuffled([place], self._num_chapters, key)[0])
        found = self.chapter(number)
        assert found is not None, f"chapter {number} of {self._num_chapters}"
        return Section(epoch, found, (seed, epoch, number))

    def _exists(self, number: int) -> bool:
        if self._num_chapters is None and number:
            self._wait(number - 1)
            if ending_of(self._directory, number - 1).next is None:
                self._num_chapters = number
        return self._num_chapters is None or number < self._num_chapters

    def _wait(self, number: int) -> None:
        if self._helper is not None and not self._is_ahead_of(number):
            self._helper.want(number + AHEAD)
        wait_until(lambda: is_written(self._directory, number), self._helper)

    def _is_ahead_of(self, number: int) -> bool:
        """Whether the chapters behind this one are there, as far as anybody writes ahead."""
        for each in range(number, number + AHEAD + 1):
            if not is_written(self._directory, each):
                return False
            if ending_of(self._directory, each).next is None:
                return True
        return True


class StoreToCome:
    """A store that is being written; whoever asks it first waits for it."""

    def __init__(self, directory: Path, tokenizer: Encoder, helper: Helper | None = None) -> None:
        self._directory = directory
        self._tokenizer = tokenizer
        self._helper = helper

    @property
    def num_documents(self) -> int:
        """All there are."""
        return self._store.num_documents

    @property
    def num_tokens(self) -> int:
        """Of all documents."""
        return self._store.num_tokens

    @property
    def bos(self) -> int:
        """The token every document begins with."""
        return self._tokenizer.bos

    @property
    def fingerprint(self) -> str:
        """Of its tokens."""
        return self._store.fingerprint

    @property
    def identity(self) -> str:
        """Of the text and the tokenizer that decide its tokens; known before they are there."""
        return self._directory.name

    def lengths(self, documents: Indices) -> Indices:
        """How many tokens each of these documents has."""
        return self._store.lengths(documents)

    def tokens(self, document: int, start: int, stop: int) -> Tokens:
        """Tokens start to stop of a document; a view of the file."""
        return self._store.tokens(document, start, stop)

    def mask(self, document: int, start: int, stop: int) -> Mask | None:
        """Which of those tokens are trained; None where all are."""
        return self._store.mask(document, start, stop)

    @cached_property
    def _store(self) -> TokenStore:
        wait_until((self._directory / "index.json").is_file, self._helper)
        return TokenStore.open(self._directory, self._tokenizer)


def wait_until(is_there: Callable[[], bool], helper: Helper | None) -> None:
    """Until it is there.

    Raises: what ended the helper's writing.
    """
    wait_s, longest_s = POLL_S
    while not is_there():
        if helper is not None:
            helper.check()
        time.sleep(wait_s)
        wait_s = min(1.5 * wait_s, longest_s)


def chapters_fingerprint(identity: str, tokenizer: Encoder, chapter_chars: int) -> str:
    """SHA-256 over what decides the chapters of a text."""
    parts = ["chapters", VERSION, chapter_chars, identity, tokenizer.content_hash]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

"""Files -> what is trained on and what is held out.   in: files, a rule   out: Split
who calls: documents, conversations

Three rules, each a pure function of the files: validation files that are named, the last of
several files, or by hash: an item is held out if the hash of its text is small.  By hash, equal
texts are on the same side, and more text does not move what was there before.
Read next: documents.py, conversations.py (who read the two sides).
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

from nanochat.common.errors import ConfigError, DataError
from nanochat.common.files import sha256_of_file
from nanochat.corpus.files import ReadReport, corpus_fingerprint

__all__ = ["Reader", "Split", "SplitRule", "split_files", "text_hash"]

T = TypeVar("T")
Part = Literal["train", "validation"]
READER_VERSION = 1  # raised when the same files would be read as other items

MAX_HASH = 1 << 64


@dataclass(frozen=True, kw_only=True)
class Reader(Generic[T]):
    """How files become items, and what of an item its hash is taken of."""

    name: str
    """What decides the items beside the files, such as the column's name."""
    read: Callable[[Sequence[Path], ReadReport | None], Iterator[T]]
    text_of: Callable[[T], str]


@dataclass(frozen=True, kw_only=True)
class SplitRule:
    """How to choose what is held out; by default a hundredth of the items, by hash.

    Raises: ConfigError when the fraction is not between 0 and 1, or two rules are asked for.
    """

    validation_files: tuple[Path, ...] = ()
    """These files, whole."""
    is_last_file: bool = False
    """The last of several files."""
    fraction: float = 0.01
    """About so many of the items, by hash; at least one."""

    def __post_init__(self) -> None:
        if not 0.0 < self.fraction < 1.0:
            raise ConfigError(f"fraction is {self.fraction}, expected more than 0 and less than 1")
        if self.validation_files and self.is_last_file:
            raise ConfigError(
                "validation files are named and the last file is asked for: choose one"
            )


@dataclass(frozen=True, kw_only=True)
class Split(Generic[T]):
    """The two sides of a corpus."""

    reader: Reader[T]
    train_files: tuple[Path, ...]
    validation_files: tuple[Path, ...]
    limit: int | None
    """Held out is what has a hash below this; None where whole files are."""
    rule: str
    """A line for the plan."""

    def train(self, report: ReadReport | None = None) -> Iterator[T]:
        """What is trained on."""
        items = self.reader.read(self.train_files, report)
        if self.limit is None:
            return items
        limit = self.limit
        return (item for item in items if text_hash(self.reader.text_of(item)) >= limit)

    def validation(self, report: ReadReport | None = None) -> Iterator[T]:
        """What is held out."""
        items = self.reader.read(self.validation_files, report)
        if self.limit is None:
            return items
        limit = self.limit
        return (item for item in items if text_hash(self.reader.text_of(item)) < limit)

    def identity(self, part: Part, sum_of: Callable[[Path], str] = sha256_of_file) -> str:
        """What decides the items of this part: equal identities mean equal items in equal order.

        `sum_of` may know the sums of the files already (sums.py).
        """
        files = self.train_files if part == "train" else self.validation_files
        side = None if self.limit is None else [part, self.limit]
        named = corpus_fingerprint(files, sum_of)
        return json.dumps([READER_VERSION, self.reader.name, named, side])


def split_files(reader: Reader[T], files: Sequence[Path], rule: SplitRule) -> Split[T]:
    """The files' items on two sides, neither of them empty.

    Raises: DataError when one side would be empty.
    """
    if rule.validation_files:
        held_out = {path.resolve() for path in rule.validation_files}
        rest = [path for path in files if path.resolve() not in held_out]
        names = f"{len(rule.validation_files)} named files are held out"
        return _by_files(reader, rest, rule.validation_files, names)
    if rule.is_last_file:
        return _by_files(reader, files[:-1], files[-1:], f"the last file, {files[-1]}, is held out")
    limit = _limit(reader, files, rule.fraction)
    is_moved = limit != int(rule.fraction * MAX_HASH)
    return Split(
        reader=reader,
        train_files=tuple(files),
        validation_files=tuple(files),
        limit=limit,
        rule=f"{'at least one' if is_moved else f'{rule.fraction:.2%}'} held out by hash of text",
    )


def _by_files(
    reader: Reader[T], train: Sequence[Path], validation: Sequence[Path], rule: str
) -> Split[T]:
    if not train:
        raise DataError(
            f"{', '.join(map(str, validation))} would be held out and nothing be left to train on: "
            "give another file, or let a fraction be held out"
        )
    return Split(
        reader=reader,
        train_files=tuple(train),
        validation_files=tuple(validation),
        limit=None,
        rule=rule,
    )


def _limit(reader: Reader[T], files: Sequence[Path], fraction: float) -> int:
    """The fraction as a hash, moved just as far as it takes to have an item on both sides.

    Reads only until there is one on each: about 1 / fraction items.
    """
    limit = int(fraction * MAX_HASH)
    lowest, highest = MAX_HASH, -1
    for item in reader.read(files, None):
        value = text_hash(reader.text_of(item))
        lowest, highest = min(lowest, value), max(highest, value)
        if lowest < limit <= highest:
            return limit
    if lowest >= highest:
        raise DataError(
            f"{files[0]}: one text only, expected two to hold one out: add text, or name "
            "files for validation"
        )
    return lowest + 1 if lowest >= limit else highest


def text_hash(text: str) -> int:
    """What decides by hash whether a text is held out: where it is below the split's limit."""
    data = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")

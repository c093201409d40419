"""A prepared directory -> stores.   in: what `nanochat data prepare` wrote   out: PreparedStore
who calls: sources.py, cli/data_show.py, batches/prepare.py   (imports no torch)

    index.json      counts, fingerprints, settings, every shard's name and hash; written last
    report.json     what was removed and why
    tokenizer.json  what the tokens are of
    train/00000/    token stores (store.py); so validation/00000/
A part of it reads like one store: documents are numbered through all shards.  Shards are opened as
they are asked for, and not all stay open.
Read next: store.py (a shard), prepare.py (who writes), stream.py (who reads).
"""

import bisect
import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nanochat.batches.store import Indices, Mask, Tokens, TokenStore
from nanochat.common.errors import DataError
from nanochat.common.files import read_json

__all__ = [
    "PREPARED_FORMAT",
    "PreparedStore",
    "Shard",
    "TokenizerFacts",
    "fingerprint_of",
    "is_prepared",
    "part_index",
    "shard_directory",
]

PREPARED_FORMAT = "nanochat-prepared-1"
NUM_OPEN = 200  # two files each, of the thousand a process may have open as a rule


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFacts:
    """What a store says of the tokenizer its tokens are from."""

    vocab_size: int
    bos: int
    content_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """What the index says of a shard."""

    num_documents: int
    num_tokens: int
    num_characters: int
    fingerprint: str
    """SHA-256 over the hashes of its files."""

    @classmethod
    def of(cls, store: TokenStore) -> "Shard":
        """What there is to say of a store."""
        return cls(
            num_documents=store.num_documents,
            num_tokens=store.num_tokens,
            num_characters=store.num_characters,
            fingerprint=store.fingerprint,
        )


def shard_directory(directory: Path, part: str, number: int) -> Path:
    """Where a shard lies."""
    return directory / part / f"{number:05d}"


def fingerprint_of(shards: Sequence[Shard], tokenizer_hash: str) -> str:
    """SHA-256 over what decides the tokens of a part, and their order."""
    parts = [PREPARED_FORMAT, tokenizer_hash, *(shard.fingerprint for shard in shards)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def is_prepared(directory: Path) -> bool:
    """Whether this is what `nanochat data prepare` wrote, complete."""
    path = directory / "index.json"
    if not path.is_file():
        return False
    index = read_json(path)
    return isinstance(index, dict) and index.get("format") == PREPARED_FORMAT


class PreparedStore:
    """One part of a prepared directory, read like a store.  For one thread at a time."""

    def __init__(
        self, directory: Path, part: str, vocabulary: TokenizerFacts, shards: Sequence[Shard]
    ) -> None:
        self._directory = directory
        self._part = part
        self._vocabulary = vocabulary
        self._shards = tuple(shards)
        self._ends = np.cumsum([shard.num_documents for shard in shards])
        self._ends_list = self._ends.tolist()
        self._open: OrderedDict[int, TokenStore] = OrderedDict()

    @classmethod
    def open(
        cls, directory: Path, part: str = "train", tokenizer_hash: str | None = None
    ) -> "PreparedStore":
        """A part of what was prepared there: train or validation.

        Raises: DataError where it is not complete, or of another tokenizer than the one named.
        """
        if not is_prepared(directory):
            raise DataError(
                f"{directory} is no prepared corpus, or not complete: nanochat data prepare writes "
                "one, and goes on with what it has begun"
            )
        index = read_json(directory / "index.json")
        vocabulary = TokenizerFacts(**index["tokenizer"])
        if tokenizer_hash not in (None, vocabulary.content_hash):
            raise DataError(
                f"{directory} was prepared with tokenizer {vocabulary.content_hash[:12]}, but this "
                f"one is {str(tokenizer_hash)[:12]}: take {directory / 'tokenizer.json'}, or "
                "prepare it again"
            )
        shards = [Shard(**shard) for shard in index["parts"][part]["shards"]]
        store = cls(directory, part, vocabulary, shards)
        if store.fingerprint != index["parts"][part]["fingerprint"]:
            raise DataError(f"{directory}/index.json was changed: its fingerprint does not fit")
        return store

    @property
    def num_documents(self) -> int:
        """Of all shards."""
        return int(self._ends[-1])

    @property
    def num_tokens(self) -> int:
        """Of all shards."""
        return sum(shard.num_tokens for shard in self._shards)

    @property
    def num_characters(self) -> int:
        """Of the text they are of."""
        return sum(shard.num_characters for shard in self._shards)

    @property
    def bos(self) -> int:
        """The token every document begins with."""
        return self._vocabulary.bos

    @property
    def tokenizer_hash(self) -> str:
        """What made the tokens."""
        return self._vocabulary.content_hash

    @property
    def fingerprint(self) -> str:
        """What decides every token and its place."""
        return fingerprint_of(self._shards, self.tokenizer_hash)

    @property
    def shards(self) -> tuple[Shard, ...]:
        """What the index says of each."""
        return self._shards

    def lengths(self, documents: Indices) -> Indices:
        """How many tokens each of these documents has."""
        found = np.empty(len(documents), np.int64)
        owners = np.searchsorted(self._ends, documents, side="right")
        for shard in np.unique(owners).tolist():
            mine = owners == shard
            found[mine] = self._store(shard).lengths(documents[mine] - self._start(shard))
        return found

    def tokens(self, document: int, start: int, stop: int) -> Tokens:
        """Tokens start to stop of a document; a view of the file."""
        shard = bisect.bisect_right(self._ends_list, document)
        return self._store(shard).tokens(document - self._start(shard), start, stop)

    def mask(self, document: int, start: int, stop: int) -> Mask | None:
        """None: all are trained."""
        return None

    def verify(self) -> None:
        """Read everything once and compare it with the hashes in the index.

        Raises: DataError naming the shard, or its file, that is not what was written.
        """
        for number, shard in enumerate(self._shards):
            store = self._store(number)
            if Shard.of(store) != shard:
                raise DataError(f"{store.directory} is not the shard that was written there")
            store.verify()

    def _start(self, shard: int) -> int:
        return self._ends_list[shard] - self._shards[shard].num_documents

    def _store(self, number: int) -> TokenStore:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        directory = shard_directory(self._directory, self._part, number)
        store = TokenStore.open(directory)
        shard = self._shards[number]
        if (store.fingerprint, store.num_documents) != (shard.fingerprint, shard.num_documents):
            raise DataError(
                f"{directory} is not the shard that was written there: prepare it again"
            )
        self._open[number] = store
        while len(self._open) > NUM_OPEN:
            self._open.popitem(last=False)
        return store


def part_index(shards: Sequence[Shard], tokenizer_hash: str) -> Mapping[str, Any]:
    """What the index says of a part."""
    return {
        "num_documents": sum(shard.num_documents for shard in shards),
        "num_tokens": sum(shard.num_tokens for shard in shards),
        "num_characters": sum(shard.num_characters for shard in shards),
        "fingerprint": fingerprint_of(shards, tokenizer_hash),
        "shards": [asdict(shard) for shard in shards],
    }

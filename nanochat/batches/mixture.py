"""Several stores -> one.   in: Source(name, store, epochs)   out: Mixture, which reads like a store
who calls: sources.py, prepared.py, cli/chat_stage.py, stream.py

A mixture numbers the documents of its sources one source after another, each as often as its
epochs say: 3 is every document three times, 0.25 every fourth document.  A stream shuffles these
numbers like those of any store, so that the order is as pure a function of (seed, n) as elsewhere.
Read next: stream.py (who reads it), train/midtrain.py (what is mixed).
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from nanochat.batches.store import Indices, Mask, Store, Tokens
from nanochat.common.errors import ConfigError, DataError

__all__ = ["Mixture", "Share", "Source", "TokenizedStore"]


class TokenizedStore(Store, Protocol):
    """A store that says what made its tokens."""

    @property
    def tokenizer_hash(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Source:
    """One part of a mixture.

    Raises: ConfigError when epochs is not a number above 0.
    """

    name: str
    store: TokenizedStore
    epochs: float = 1.0
    """How often its documents occur in one epoch of the mixture; below 1, a part of them does."""

    def __post_init__(self) -> None:
        if not 0.0 < self.epochs < float("inf"):
            raise ConfigError(f"{self.name}: epochs is {self.epochs}, expected a number above 0")

    @property
    def num_documents(self) -> int:
        """Documents it contributes, repeated ones counted again; at least one."""
        return max(1, round(self.store.num_documents * self.epochs))


class Share(NamedTuple):
    """What a source contributes, for the plan."""

    name: str
    epochs: float
    num_documents: int
    num_tokens: int
    fraction: float
    """Of the mixture's tokens."""

    def __str__(self) -> str:
        times = "" if self.epochs == 1 else f" ({self.epochs:.3g} times all there are)"
        return (
            f"{self.name}: {self.num_documents:,}{times}, {self.num_tokens:,} tokens, "
            f"{self.fraction:.1%}"
        )


class Mixture:
    """A store made of others.

    Example: Mixture([Source(name="chats", store=a), Source(name="spelling", store=b, epochs=0.5)])
    Raises:  ConfigError without sources, or with two of one name; DataError when they were made by
             different tokenizers.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        if not sources:
            raise ConfigError("the mixture has no sources: expected at least one")
        names = Counter(source.name for source in sources)
        if max(names.values()) > 1:
            name = names.most_common(1)[0][0]
            raise ConfigError(f"{name} occurs twice in the mixture: name it once, with more epochs")
        hashes = {source.store.tokenizer_hash: source.name for source in sources}
        if len(hashes) > 1:
            raise DataError(
                f"the sources {' and '.join(hashes.values())} were made by different tokenizers: "
                "tokenize them with one"
            )
        self._sources = tuple(sources)
        self._ends = np.cumsum([source.num_documents for source in sources])

    @property
    def sources(self) -> tuple[Source, ...]:
        """What it is made of."""
        return self._sources

    @property
    def num_documents(self) -> int:
        """Documents in one epoch of the mixture."""
        return int(self._ends[-1])

    @property
    def num_tokens(self) -> int:
        """Tokens in one epoch of the mixture."""
        return sum(_num_tokens(source) for source in self._sources)

    @property
    def bos(self) -> int:
        """The token every document begins with."""
        return self._sources[0].store.bos

    @property
    def tokenizer_hash(self) -> str:
        """What made the tokens of all sources."""
        return self._sources[0].store.tokenizer_hash

    @property
    def fingerprint(self) -> str:
        """SHA-256 over what decides its tokens: the sources' fingerprints and their epochs."""
        parts = [[source.store.fingerprint, source.num_documents] for source in self._sources]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def shares(self) -> list[Share]:
        """What each source contributes."""
        tokens = [_num_tokens(source) for source in self._sources]
        return [
            Share(source.name, source.epochs, source.num_documents, count, count / sum(tokens))
            for source, count in zip(self._sources, tokens, strict=True)
        ]

    def tokens_by_source(self, documents: Indices, num_tokens: Indices) -> dict[str, int]:
        """So many tokens of each of these documents, added up by source; all sources are named."""
        owners = np.searchsorted(self._ends, documents, side="right")
        counts = np.bincount(owners, weights=num_tokens, minlength=len(self._sources))
        names = [source.name for source in self._sources]
        return {name: int(count) for name, count in zip(names, counts.tolist(), strict=True)}

    def lengths(self, documents: Indices) -> Indices:
        """How many tokens each of these documents has."""
        found = np.zeros(len(documents), np.int64)
        owners = np.searchsorted(self._ends, documents, side="right")
        for index, source in enumerate(self._sources):
            mine = owners == index
            places = documents[mine] - (self._ends[index] - source.num_documents)
            found[mine] = source.store.lengths(_original(source, places))
        return found

    def tokens(self, document: int, start: int, stop: int) -> Tokens:
        """Tokens start to stop of a document; a view of its source's file."""
        index, original = self._located(document)
        return self._sources[index].store.tokens(original, start, stop)

    def mask(self, document: int, start: int, stop: int) -> Mask | None:
        """Which of those tokens are trained; None where all are."""
        index, original = self._located(document)
        return self._sources[index].store.mask(original, start, stop)

    def _located(self, document: int) -> tuple[int, int]:
        """The index of its source, and its number there."""
        index = int(np.searchsorted(self._ends, document, side="right"))
        source = self._sources[index]
        place = document - int(self._ends[index]) + source.num_documents
        return index, int(_original(source, np.array([place]))[0])


def _original(source: Source, places: Indices) -> Indices:
    """Whole passes through the source, then documents at even distances for what is left."""
    size = source.store.num_documents
    rest = source.num_documents % size
    spread = (places % size) * size // max(rest, 1)
    return np.where(places < source.num_documents - rest, places % size, spread)


def _num_tokens(source: Source) -> int:
    """Exact for whole passes; the part of a pass is counted document by document."""
    size = source.store.num_documents
    whole, rest = divmod(source.num_documents, size)
    places = np.arange(whole * size, whole * size + rest)
    part = source.store.lengths(_original(source, places))
    return whole * source.store.num_tokens + int(part.sum())

"""What is held out -> bits per byte.   in: HeldOut, a model   out: numbers for metrics.jsonl
who calls: texts.py (texts), continuation.py (conversations beside a text)

    val_bpb        the text's; of several sources their mean by weight
    val_bpb/NAME   each source's

Read next: batches/stream.py (validation_batches), loss.py (bits_per_byte).
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from nanochat.batches.batch import IGNORE, Batch
from nanochat.batches.chapters import StoreToCome
from nanochat.batches.mixture import Mixture
from nanochat.batches.store import Store
from nanochat.batches.stream import validation_batches
from nanochat.common.errors import DataError
from nanochat.model.gpt import GPT
from nanochat.train.loss import bits_per_byte

__all__ = ["HeldOut", "Meter", "identity_of", "mean_of", "named", "parts_of"]

VALIDATION_ROWS = 8


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """What is held out of one source."""

    name: str
    store: Store
    weight: float = 1.0
    """Its share of the mean, compared with the others'."""


@dataclass(frozen=True, kw_only=True)
class Meter:
    """What measures a model on a store."""

    model: GPT
    context_len: int
    token_bytes: Sequence[int]

    def bits_per_byte(self, store: Store, num_tokens: int) -> float:
        """Of the first so many inputs, of conversations what the mask says."""
        return bits_per_byte(self.model, self._batches(store, num_tokens), self.token_bytes)

    def each(self, sources: Sequence[HeldOut], num_tokens: int) -> dict[str, float]:
        """Every source's, by name; all of them together have `num_tokens` inputs, or a batch
        each."""
        share = num_tokens // max(1, len(sources))
        return {source.name: self.bits_per_byte(source.store, share) for source in sources}

    def can_measure(self, source: HeldOut, num_tokens: int) -> bool:
        """Whether there is anything to predict: a conversation may be too long for the context."""
        if not source.store.num_documents:
            return False
        try:
            return any(map(self._num_bytes, self._batches(source.store, num_tokens)))
        except DataError:
            return False

    def _batches(self, store: Store, num_tokens: int) -> Iterator[Batch]:
        return validation_batches(store, self.context_len, num_tokens, VALIDATION_ROWS)

    def _num_bytes(self, batch: Batch) -> int:
        targets = batch.targets_BT[batch.targets_BT != IGNORE]
        return sum(self.token_bytes[token] for token in targets.tolist())


def parts_of(store: Store) -> list[HeldOut]:
    """The sources of a mixture; none of any other store."""
    if not isinstance(store, Mixture):
        return []
    return [HeldOut(name=source.name, store=source.store) for source in store.sources]


def mean_of(sources: Sequence[HeldOut], each: Mapping[str, float]) -> float:
    """The sources' mean by weight."""
    total = sum(source.weight for source in sources)
    return sum(source.weight / total * each[source.name] for source in sources)


def named(each: Mapping[str, float]) -> dict[str, float]:
    """As the rows of metrics.jsonl have them."""
    return {f"val_bpb/{name}": bpb for name, bpb in each.items()}


def identity_of(stores: Sequence[Store]) -> str:
    """SHA-256 over what decides their tokens; nothing that is still being written is waited for."""
    parts = [
        store.identity if isinstance(store, StoreToCome) else store.fingerprint for store in stores
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

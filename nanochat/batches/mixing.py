"""Several streams -> one, by weight.   in: Ingredient(name, stream, weight)   out: MixedStream
who calls: train/pretrain.py

Every stream is read in its own order and as often as it takes; the weights say which share of the
rows each of them has, in every block of BLOCK_ROWS rows to one row in that many.  Where a row is
from follows from its number and the seed alone, so the n-th batch stays a function of them.
A mixture of stores by epochs, for texts and conversations that are read whole, is mixture.py.
Read next: stream.py (what is mixed).
"""

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nanochat.batches.batch import Batch
from nanochat.batches.order import shuffled
from nanochat.batches.stream import PackedStream, batch_of, rank_rows
from nanochat.common.errors import ConfigError

__all__ = ["Ingredient", "MixedStream"]

BLOCK_ROWS = 4096
NUM_CACHED_BLOCKS = 2

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Ingredient:
    """One part of a mixture.

    Raises: ConfigError when the weight is not a number above 0.
    """

    name: str
    stream: PackedStream
    weight: float = 1.0
    """Its share of the rows, compared with the others'."""

    def __post_init__(self) -> None:
        if not 0.0 < self.weight < float("inf"):
            raise ConfigError(f"{self.name}: weight is {self.weight}, expected a number above 0")


class MixedStream:
    """Rows of several streams.

    Example: MixedStream([Ingredient(name="web", stream=a, weight=3), Ingredient(name="books",
             stream=b)], seed=1)
    Raises:  ConfigError for a name that occurs twice, rows of different lengths, or a weight so
             small that it has no row in BLOCK_ROWS.
    """

    def __init__(self, ingredients: Sequence[Ingredient], *, seed: int = 0) -> None:
        self._ingredients = tuple(ingredients)
        self._seed = seed
        self._block = functools.lru_cache(NUM_CACHED_BLOCKS)(self._planned)  # two threads ask
        names = Counter(each.name for each in ingredients)
        widths = {each.stream.context_len for each in ingredients}
        if len(widths) != 1 or max(names.values()) > 1:
            raise ConfigError(
                f"sources {', '.join(names)} with rows of {sorted(widths)} tokens: expected at "
                "least one, each with another name, and rows of one length"
            )
        (self._context_len,) = widths
        ends = np.cumsum([each.weight for each in ingredients])
        middles = (np.arange(BLOCK_ROWS) + 0.5) / BLOCK_ROWS
        self._owners = np.searchsorted(ends[:-1] / ends[-1], middles, side="right")
        self._counts = np.bincount(self._owners, minlength=len(ingredients))
        if not self._counts.all():
            name = ingredients[int(np.argmin(self._counts))].name
            raise ConfigError(
                f"{name}: its weight gives it not one row in {BLOCK_ROWS:,}: leave it out, or give "
                "it more"
            )

    @property
    def fingerprint(self) -> str:
        """What decides every batch but its number."""
        parts = [[each.stream.fingerprint, float(each.weight)] for each in self._ingredients]
        settings = ["mixed", BLOCK_ROWS, self._seed, parts]
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()

    def batch(self, index: int, num_rows: int, rank: int = 0, world_size: int = 1) -> Batch:
        """The rank's rows of the batch with this number.

        Shapes: ceil((num_rows - rank) / world_size), context_len.
        """
        rows = []
        for row in rank_rows(index, num_rows, rank, world_size):
            owner, number = self._place(row)
            rows.append(self._ingredients[owner].stream.row(number))
        return batch_of(rows, self._context_len, self._ingredients[0].stream.bos)

    def tokens_by_source(self, index: int, num_rows: int) -> dict[str, int]:
        """What a batch has of each source; nothing is read for it."""
        rows = range(index * num_rows, (index + 1) * num_rows)
        count = Counter(self._place(row)[0] for row in rows)
        return {
            each.name: count[owner] * self._context_len
            for owner, each in enumerate(self._ingredients)
        }

    def _place(self, row: int) -> tuple[int, int]:
        """Whose a row is, and which of that stream's rows."""
        block, place = divmod(row, BLOCK_ROWS)
        owners, numbers = self._block(block)
        return int(owners[place]), int(numbers[place])

    def _planned(self, block: int) -> tuple[Numbers, Numbers]:
        places = shuffled(np.arange(BLOCK_ROWS), BLOCK_ROWS, ("sources", self._seed, block))
        owners = self._owners[places]
        numbers = np.empty(BLOCK_ROWS, np.int64)
        for owner, count in enumerate(self._counts):
            numbers[owners == owner] = block * count + np.arange(count)
        return owners, numbers

"""Documents that stay -> shards.   in: pieces, kept-*.npy   out: token stores, shuffled
who calls: batches/prepare.py, in any process   (imports no torch)

The document at place p of a part is the one at `shuffled([p], size, key)` of those that stay, so
that any shard can be written by itself: it gathers its documents from wherever they lie in the
pieces' token files, reading each piece in the order of the disk.  A shard is a token store like any
other (store.py), whole or absent.
Read next: order.py (the shuffle), shards.py (who reads shards).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nanochat.batches.order import shuffled
from nanochat.batches.prepare_duplicates import Pieces
from nanochat.batches.prepare_piece import piece_directory
from nanochat.batches.shards import Shard, TokenizerFacts, shard_directory
from nanochat.batches.store import Indices, Tokens, TokenStore, token_dtype
from nanochat.batches.store_writer import write_tokens

__all__ = ["ShardTask", "shard_tasks", "write_shard"]

CHUNK_TOKENS = 1 << 22  # copied on the way to the disk


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTask:
    """One shard to write."""

    work: Path
    counts: tuple[int, ...]
    """Documents of each piece."""
    target: Path
    part: str
    number: int
    num_shards: int
    seed: int
    vocabulary: TokenizerFacts


def shard_tasks(
    pieces: Pieces,
    target: Path,
    part: str,
    shard_tokens: int,
    seed: int,
    vocabulary: TokenizerFacts,
) -> list[ShardTask]:
    """The shards of one part, of about so many tokens each, and equally many documents."""
    kept = _kept(pieces.work, part)
    num_tokens = sum(
        int(np.diff(offsets)[_of_piece(pieces, kept, piece)].sum())
        for piece, offsets in pieces.arrays("offsets")
    )
    num_shards = min(max(1, -(-num_tokens // shard_tokens)), len(kept))
    return [
        ShardTask(
            work=pieces.work,
            counts=pieces.counts,
            target=target,
            part=part,
            number=number,
            num_shards=num_shards,
            seed=seed,
            vocabulary=vocabulary,
        )
        for number in range(num_shards)
    ]


def write_shard(task: ShardTask) -> Shard:
    """Write a shard, if it is not there.

    Memory: its tokens once, and some 60 bytes for each of its documents.
    """
    directory = shard_directory(task.target, task.part, task.number)
    if (directory / "index.json").is_file():
        return Shard.of(TokenStore.open(directory))
    directory.parent.mkdir(parents=True, exist_ok=True)
    pieces = Pieces(task.work, task.counts)
    kept = _kept(task.work, task.part)
    size = len(kept)
    start = size * task.number // task.num_shards
    stop = size * (task.number + 1) // task.num_shards
    places = shuffled(np.arange(start, stop), size, ("prepare", task.part, task.seed))
    tokens, lengths, num_characters = _gathered(pieces, kept[places], task.vocabulary.vocab_size)
    store = write_tokens(
        _chunks(tokens, lengths), task.vocabulary, directory, num_characters=num_characters
    )
    return Shard.of(store)


def _gathered(pieces: Pieces, documents: Indices, vocab_size: int) -> tuple[Tokens, Indices, int]:
    """The documents' tokens one after another, their lengths, their characters together."""
    owners, numbers = pieces.located(documents)
    starts, lengths = np.empty(len(documents), np.int64), np.empty(len(documents), np.int64)
    num_characters = 0
    present = np.unique(owners).tolist()
    for piece in present:
        mine, offsets = np.flatnonzero(owners == piece), pieces.array(piece, "offsets")
        starts[mine] = offsets[numbers[mine]]
        lengths[mine] = offsets[numbers[mine] + 1] - starts[mine]
        characters = pieces.array(piece, "characters")[numbers[mine]]
        num_characters += int(characters.sum(dtype=np.int64))
    dtype = token_dtype(vocab_size)
    ends = np.cumsum(lengths)
    tokens = np.empty(int(ends[-1]), dtype)
    for piece in present:
        path = piece_directory(pieces.work, piece) / "tokens.bin"
        source = np.asarray(np.memmap(path, dtype=dtype, mode="r"))
        mine = np.flatnonzero(owners == piece)
        mine = mine[np.argsort(starts[mine])]
        where = zip(starts[mine].tolist(), lengths[mine].tolist(), ends[mine].tolist(), strict=True)
        for start, length, end in where:
            tokens[end - length : end] = source[start : start + length]
    return tokens, lengths, num_characters


def _chunks(tokens: Tokens, lengths: Indices) -> Iterator[tuple[Tokens, Indices]]:
    ends = np.cumsum(lengths)
    first, done = 0, 0
    while first < len(lengths):
        last = max(int(np.searchsorted(ends, done + CHUNK_TOKENS, side="right")), first + 1)
        yield tokens[done : int(ends[last - 1])], lengths[first:last]
        first, done = last, int(ends[last - 1])


def _kept(work: Path, part: str) -> npt.NDArray[np.int64]:
    path = work / "duplicates" / f"kept-{part}.npy"
    return np.asarray(np.load(path, mmap_mode="r"))


def _of_piece(pieces: Pieces, kept: Indices, piece: int) -> Indices:
    """Which documents of a piece stay; kept is ascending."""
    stop = int(pieces.ends[piece])
    start = stop - pieces.counts[piece]
    low, high = np.searchsorted(kept, [start, stop])
    return kept[low:high] - start

"""Keys and values of what has been read, in blocks.   in: k, v of new tokens, block tables
out: stretches of slots that attention reads in place   who calls: forward.py, engine.py

Layers with the same window form a group: they share block numbers, and each layer has memory of its
own behind them.  A slot is a place for one token: block * BLOCK_TOKENS + offset.  Heads come first,
so that the keys of a head lie side by side and blocks with consecutive numbers are one matrix:
attention then needs no copy.
Read next: forward.py; blocks.py (who owns the numbers).
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from nanochat.common.errors import EngineError
from nanochat.engine.blocks import BLOCK_TOKENS
from nanochat.model.config import GPTConfig

__all__ = ["KVMemory", "Run", "Table", "Window", "blocks_that_fit", "bytes_per_block", "runs_of"]

Window = int | None
"""The window of a group of layers, which is the group's name; None: all tokens."""
Table = Sequence[int | None]
"""The blocks of a sequence in order; None: given back, because no query sees it any more."""
Run = tuple[int, int]
"""Slots first, ..., stop - 1, side by side."""


class KVMemory:
    """Memory for `num_blocks` blocks of every group of layers.

    Raises: EngineError if a group of the model is missing.
    Units:  num_blocks by window, one entry for each window of the model.
    """

    def __init__(
        self,
        config: GPTConfig,
        num_blocks: Mapping[Window, int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        missing = set(config.windows) - set(num_blocks)
        if missing or any(count < 1 for count in num_blocks.values()):
            raise EngineError(
                f"blocks by window are {dict(num_blocks)}, expected at least 1 for each of "
                f"{sorted(set(config.windows), key=str)}"
            )
        self.config, self.num_blocks, self.dtype = config, dict(num_blocks), dtype
        self.layers: list[Tensor] = []
        """For every layer (2 * K, slots, E): the heads of keys, then those of values."""
        heads = config.num_kv_heads
        for window in config.windows:
            shape = (2 * heads, num_blocks[window] * BLOCK_TOKENS, config.head_dim)
            # Zeros are not touched until they are used: memory grows as blocks fill.
            self.layers.append(torch.zeros(shape, dtype=dtype, device=device))
        self.paired = [layer.unflatten(0, (2, heads)) for layer in self.layers]
        """For every layer (2, K, slots, E), keys and values, a view."""
        self.keys = [layer[:heads] for layer in self.layers]
        """For every layer (K, slots, E), a view."""
        self.values = [layer[heads:] for layer in self.layers]

    @property
    def num_bytes(self) -> int:
        """Memory reserved."""
        return sum(layer.numel() * layer.element_size() for layer in self.layers)

    def write(self, layer: int, slots_N: Tensor, k_NKE: Tensor, v_NKE: Tensor) -> None:
        """Put new keys and values into their slots, which must be different ones.

        Shapes: slots_N, k_NKE, v_NKE -> nothing.
        """
        for memory, new_NKE in ((self.keys[layer], k_NKE), (self.values[layer], v_NKE)):
            memory.index_copy_(1, slots_N, new_NKE.transpose(0, 1).to(memory.dtype))

    def read(self, layer: int, table: Table, length: int, first: int = 0) -> tuple[Tensor, Tensor]:
        """Keys and values of the tokens first, ..., length - 1 of a sequence.

        Shapes: -> k_SKE, v_SKE; views where the blocks are consecutive, copies elsewhere.
        """
        k_KSE, v_KSE = self.gather(layer, runs_of(table, first, length))
        return k_KSE.transpose(0, 1), v_KSE.transpose(0, 1)

    def gather(self, layer: int, runs: Sequence[Run]) -> tuple[Tensor, Tensor]:
        """Keys and values of these slots.   Shapes: -> k_KSE, v_KSE; a view if it is one run."""
        keys, values = self.keys[layer], self.values[layer]
        if len(runs) == 1:
            first, stop = runs[0]
            return keys[:, first:stop], values[:, first:stop]
        return (
            torch.cat([keys[:, first:stop] for first, stop in runs], dim=1),
            torch.cat([values[:, first:stop] for first, stop in runs], dim=1),
        )

    def gather_row(self, layer: int, runs: Sequence[Run]) -> tuple[Tensor, Tensor]:
        """The same as a batch of one row, in fewer calls.   Shapes: -> (1, K, S, E) each."""
        if len(runs) == 1:
            first, stop = runs[0]
            k, v = self.paired[layer].narrow(2, first, stop - first).split(1)
            return k, v
        k_KSE, v_KSE = self.gather(layer, runs)
        return k_KSE[None], v_KSE[None]

    def copy_blocks(self, window: Window, pairs: Iterable[tuple[int, int]]) -> None:
        """Copy whole blocks (from, to) of one group, in every layer of it."""
        copies = list(pairs)
        if not copies:
            return
        device = self.layers[0].device
        source, target = (
            torch.tensor([pair[end] for pair in copies], device=device) for end in (0, 1)
        )
        for layer, other in enumerate(self.config.windows):
            if other == window:
                blocks = self.layers[layer].unflatten(1, (-1, BLOCK_TOKENS))
                blocks.index_copy_(1, target, blocks.index_select(1, source))


def runs_of(table: Table, first: int, stop: int) -> list[Run]:
    """The slots of the tokens first, ..., stop - 1 as few runs as their blocks allow."""
    start_block, stop_block = first // BLOCK_TOKENS, -(-stop // BLOCK_TOKENS)
    numbers = table[start_block:stop_block]
    assert len(numbers) == stop_block - start_block, f"{len(table)} blocks for {stop} tokens"
    head = numbers[0]
    assert head is not None, f"block {start_block} was given back, but token {first} is read"
    offset = first - start_block * BLOCK_TOKENS
    if list(numbers) == list(range(head, head + len(numbers))):  # 1 us for 128 blocks
        begin = head * BLOCK_TOKENS + offset
        return [(begin, begin + stop - first)]
    runs: list[Run] = []
    for index, number in enumerate(numbers, start_block):
        assert number is not None, f"block {index} was given back, but tokens of it are read"
        slot = number * BLOCK_TOKENS
        begin = slot + (offset if index == start_block else 0)
        end = slot + min(BLOCK_TOKENS, stop - index * BLOCK_TOKENS)
        if runs and runs[-1][1] == begin:
            runs[-1] = (runs[-1][0], end)
        else:
            runs.append((begin, end))
    return runs


def bytes_per_block(config: GPTConfig, dtype: torch.dtype) -> dict[Window, int]:
    """Memory of one block of each group, over all its layers."""
    one = 2 * BLOCK_TOKENS * config.num_kv_heads * config.head_dim * dtype.itemsize
    return {window: one * config.windows.count(window) for window in set(config.windows)}


def blocks_that_fit(
    config: GPTConfig, dtype: torch.dtype, memory_bytes: int, *, step_tokens: int = 0
) -> dict[Window, int]:
    """Blocks for each group so that all of them are full together and `memory_bytes` are not
    passed.

    A group with a window keeps that many tokens of a sequence, and those of a step, so it needs
    fewer blocks than one that keeps the whole context.
    Raises: EngineError if not even one sequence of a block's length fits.
    """
    sizes = bytes_per_block(config, dtype)
    share = {
        window: -(-min(config.context_len, _kept(window, step_tokens, config)) // BLOCK_TOKENS) + 1
        for window in sizes
    }
    one_sequence = sum(share[window] * sizes[window] for window in sizes)
    blocks = {window: int(memory_bytes / one_sequence * share[window]) for window in sizes}
    if min(blocks.values()) < 1:
        raise EngineError(
            f"{memory_bytes} bytes hold no block of every group of layers, expected at least "
            f"{one_sequence} for one sequence of {config.context_len} tokens: raise --kv-memory"
        )
    return blocks


def _kept(window: Window, step_tokens: int, config: GPTConfig) -> int:
    return config.context_len if window is None else window + 1 + step_tokens

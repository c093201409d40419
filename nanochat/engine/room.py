"""Memory -> blocks for keys and values.   in: a model, a device, how many rows   out: blocks
who calls: engine.py, load.py

Read next: kvmemory.py (what a block holds), blocks.py (who gets them).
"""

import os

import torch

from nanochat.engine.admission import MAX_SLIDE_CONTEXTS
from nanochat.engine.blocks import BLOCK_TOKENS
from nanochat.engine.kvmemory import Window, blocks_that_fit
from nanochat.model.config import GPTConfig

__all__ = ["MEMORY_SHARE", "blocks_for_rows", "free_bytes"]

MEMORY_SHARE = 0.25  # of the machine's memory, or of what a GPU has left, for keys and values


def blocks_for_rows(
    config: GPTConfig,
    dtype: torch.dtype,
    memory_bytes: int,
    *,
    max_rows: int,
    step_tokens: int,
) -> dict[Window, int]:
    """Blocks of every window: as many as all rows can need, if memory allows.

    Raises: EngineError if the memory holds nothing.
    """
    fitting = blocks_that_fit(config, dtype, memory_bytes, step_tokens=step_tokens)
    most = max_rows * (-(-config.context_len // BLOCK_TOKENS) + 1)
    least = MAX_SLIDE_CONTEXTS * config.context_len // BLOCK_TOKENS + 1  # one that slides
    return {window: min(count, max(most, least)) for window, count in fitting.items()}


def free_bytes(device: torch.device) -> int:
    """What a GPU has left; of a CPU, the machine's whole memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

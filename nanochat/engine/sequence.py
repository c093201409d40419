"""What a scheduler plans with.   in: tokens   out: Sequence, StepPlan
who calls: scheduler.py (which changes them), engine.py and forward.py (which read them)

Read next: scheduler.py.
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from nanochat.engine.blocks import BLOCK_TOKENS, block_hash
from nanochat.engine.request import NO_TOKEN

__all__ = ["Chunk", "Copies", "Fork", "Sequence", "StepPlan"]

Copies = dict[int | None, list[tuple[int, int]]]
"""Blocks to copy, from and to, in the memory of each window."""


@dataclass(eq=False, slots=True)
class Sequence:
    """One answer on its way."""

    request_id: str
    tokens: list[int]
    """The prompt, and what has been generated; NO_TOKEN where the device knows it and we do not."""
    limit: int
    """Most tokens this list may ever have."""
    sample: int = 0
    max_shared: int | None = None
    """Tokens that need not be computed if their keys are in memory: those whose logits nobody
    asks for.  None: all but the last."""
    state: Literal["waiting", "running", "finished"] = "waiting"
    num_cached: int = 0
    """Tokens whose keys are in memory."""
    tables: dict[int | None, list[int | None]] = field(default_factory=dict)
    """Block numbers by window; None for a block that was given back, being out of the window."""
    order: tuple[int, int] = (0, 0)
    """Arrival and sample: the smaller is served first."""
    hashes: list[bytes] = field(default_factory=list)
    """Names of its full blocks, as far as they have been computed."""
    num_published: int = 0
    """Full blocks that others can find."""

    @property
    def num_new(self) -> int:
        """Tokens that have to be fed."""
        return len(self.tokens) - self.num_cached

    def name_blocks(self) -> int:
        """Name the full blocks, up to the first with a token not known yet; how many have names."""
        names, tokens = self.hashes, self.tokens
        for start in range(len(names) * BLOCK_TOKENS, len(tokens) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
            block = tokens[start : start + BLOCK_TOKENS]
            if NO_TOKEN in block:
                break
            names.append(block_hash(names[-1] if names else b"", block))
        return len(names)


class Chunk(NamedTuple):
    """Feed tokens[start:stop]; the logits after the last choose a token where stop is the end."""

    sequence: Sequence
    start: int
    stop: int


class StepPlan(NamedTuple):
    """One step: pieces of prompts, and sequences whose last token is fed alone."""

    prefill: list[Chunk]
    decode: list[Sequence]

    @property
    def num_tokens(self) -> int:
        """Tokens the step feeds."""
        return len(self.decode) + sum(chunk.stop - chunk.start for chunk in self.prefill)


class Fork(NamedTuple):
    """The further answers to one prompt, and what must be copied before anything else runs."""

    children: list[Sequence]
    copies: Copies

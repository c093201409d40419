"""Which rank is slow.   in: when a rank computes, and how much   out: one line, where others wait
who calls: step.py (times), loop.py (asks)

All steps of all ranks end together, because each waits for the slowest; what tells them apart is
the time until a rank has its own gradients.  Ranks that share a model wait for each other within
it, between its blocks: of those the forward pass of one block is timed, from where its weights are
together to where they are let go.
Ranks have different rows, and some may have none: compared is the time for a thousand tokens.
Read next: clock.py (the time of whole steps).
"""

import socket
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from nanochat.common.dist import World

__all__ = ["Pace"]

SLOW = 1.2  # times the others' median

Mark = float | torch.cuda.Event


class Pace:
    """How long one rank takes for what it computes alone."""

    def __init__(self, device: torch.device, block: nn.Module | None = None) -> None:
        """`block`: of a model that ranks share, the one that is timed instead of all."""
        self._is_cuda = device.type == "cuda"
        self._times: list[tuple[Mark, Mark]] = []
        self._num_tokens = 0
        self._num_computed = 0
        self._is_block = block is not None
        if block is not None:
            self._begun: Mark = 0.0
            # Ours is the last one before the block and the first one after it: FSDP's, which wait
            # for other ranks, are outside.
            block.register_forward_pre_hook(self._block_begins)
            block.register_forward_hook(self._block_ends, prepend=True)

    @contextmanager
    def own_part(self) -> Iterator[None]:
        """A step's part that waits for nobody; on a GPU it is timed there."""
        self._num_computed = 0
        start = self._now()
        yield
        if not self._is_block:
            self._times.append((start, self._now()))
            self._num_tokens += self._num_computed

    def computed(self, num_tokens: int) -> None:
        """So many tokens, in the part that is going on."""
        self._num_computed += num_tokens

    def report(self, world: World) -> str | None:
        """Who was slow since the last report; None if nobody was, or only one had something to do.
        All ranks call it together."""
        own_s = self._seconds() / self._num_tokens * 1000 if self._num_tokens else 0.0
        self._times, self._num_tokens = [], 0
        said = [text.split("|") for text in world.texts(f"{own_s}|{socket.gethostname()}")]
        seconds = {rank: s for rank, each in enumerate(said) if (s := float(each[0]))}
        if len(seconds) < 2:
            return None
        slowest = max(seconds, key=seconds.__getitem__)
        others_s = statistics.median(s for rank, s in seconds.items() if rank != slowest)
        if seconds[slowest] <= SLOW * others_s:
            return None
        what = "in a block" if self._is_block else "for its own part"
        return (
            f"rank {slowest} ({said[slowest][1]}) is slow: {seconds[slowest]:.3g} s a thousand "
            f"tokens {what}, {seconds[slowest] / others_s:.1f} times the others' {others_s:.3g} s, "
            "who wait for it"
        )

    def _now(self) -> Mark:
        if not self._is_cuda:
            return time.monotonic()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self) -> float:
        if self._is_cuda and self._times:
            torch.cuda.synchronize()
        return sum(_between(start, end) for start, end in self._times)

    def _block_begins(self, block: nn.Module, arguments: tuple[Any, ...]) -> None:
        self._begun = self._now()

    def _block_ends(self, block: nn.Module, arguments: tuple[Any, ...], x_BTD: Any) -> None:
        if block.training:
            self._times.append((self._begun, self._now()))
            self._num_tokens += x_BTD.shape[0] * x_BTD.shape[1]


def _between(start: Mark, end: Mark) -> float:
    if isinstance(start, float) or isinstance(end, float):
        assert isinstance(start, float) and isinstance(end, float), "both are of one clock"
        return end - start
    return float(start.elapsed_time(end)) / 1000

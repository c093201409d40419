"""Which rank is slow.   in: when a rank computes, how much, its waits for batches   out: one line,
where others wait
who calls: step.py (times), loop.py (says what was waited for, asks)

All steps of all ranks end together, because each waits for the slowest; what tells them apart is
the time until a rank has its own gradients.  Ranks that share a model wait for each other within
it, between its blocks: of those the forward pass of one block is timed, from where its weights are
together to where they are let go.
Ranks have different rows, and some may have none: compared is the time for a thousand tokens.
Before that a rank may wait for its batches, of a slow disk say, while the others, who have theirs,
wait for it in the sums: that is compared by itself.
Read next: clock.py (the time of whole steps).
"""

import socket
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from nanochat.common.dist import World

__all__ = ["Pace"]

SLOW = 1.2  # times the others' median
LATE = 0.05  # of the time, waited for batches while the others had theirs
LEAST_LATE_S = 1.0  # a pause of the machine is not worth a line

Mark = float | torch.cuda.Event


class Pace:
    """How long one rank takes for what it computes alone."""

    def __init__(self, device: torch.device, block: nn.Module | None = None) -> None:
        """`block`: of a model that ranks share, the one that is timed instead of all."""
        self._is_cuda = device.type == "cuda"
        self._times: list[tuple[Mark, Mark]] = []
        self._num_tokens = 0
        self._num_computed = 0
        self._waited_s, self._start_s = 0.0, time.monotonic()
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

    def waited(self, seconds: float) -> None:
        """So long, for the batch of a step."""
        self._waited_s += seconds

    def report(self, world: World) -> str | None:
        """Who was slow since the last report, and who had no batches; None if nobody.
        All ranks call it together."""
        own_s = self._seconds() / self._num_tokens * 1000 if self._num_tokens else 0.0
        waited_s, whole_s = self._waited_s, time.monotonic() - self._start_s
        self._times, self._num_tokens = [], 0
        self._waited_s, self._start_s = 0.0, time.monotonic()
        said = [
            text.split("|")
            for text in world.texts(f"{own_s}|{socket.gethostname()}|{waited_s}|{whole_s}")
        ]
        names = [f"rank {rank} ({each[1]})" for rank, each in enumerate(said)]
        told = [
            self._slowest(names, [float(each[0]) for each in said]),
            # The first rank's time for all of them: every rank is to say the same.
            _latest(names, [float(each[2]) for each in said], float(said[0][3])),
        ]
        return "; ".join(line for line in told if line) or None

    def _slowest(self, names: Sequence[str], own_s: Sequence[float]) -> str | None:
        """None if only one had something to do."""
        seconds = {rank: s for rank, s in enumerate(own_s) if s}
        if len(seconds) < 2:
            return None
        slowest = max(seconds, key=seconds.__getitem__)
        others_s = statistics.median(s for rank, s in seconds.items() if rank != slowest)
        if seconds[slowest] <= SLOW * others_s:
            return None
        what = "in a block" if self._is_block else "for its own part"
        return (
            f"{names[slowest]} is slow: {seconds[slowest]:.3g} s a thousand tokens {what}, "
            f"{seconds[slowest] / others_s:.1f} times the others' {others_s:.3g} s, who wait for it"
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


def _latest(names: Sequence[str], waited_s: Sequence[float], whole_s: float) -> str | None:
    """Who waits for batches that the others have."""
    latest = max(range(len(names)), key=waited_s.__getitem__)
    others_s = statistics.median(s for rank, s in enumerate(waited_s) if rank != latest)
    if waited_s[latest] - others_s <= max(LEAST_LATE_S, LATE * whole_s):
        return None
    return (
        f"{names[latest]} waits for its batches: {waited_s[latest]:.1f} s of the last "
        f"{whole_s:.0f} s, the others {others_s:.1f} s, who wait for it"
    )


def _between(start: Mark, end: Mark) -> float:
    if isinstance(start, float) or isinstance(end, float):
        assert isinstance(start, float) and isinstance(end, float), "both are of one clock"
        return end - start
    return float(start.elapsed_time(end)) / 1000

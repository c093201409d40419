"""Which rank is slow.   in: when a rank computes   out: one line, where others wait for somebody
who calls: step.py (times), loop.py (asks)

All steps of all ranks end together, because each waits for the slowest; what tells them apart is
the time until a rank has its own gradients.
Read next: clock.py (the time of whole steps).
"""

import socket
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from nanochat.common.dist import World

__all__ = ["Pace"]

SLOW = 1.2  # times the others' median


class Pace:
    """How long one rank's own forward and backward passes take."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._seconds: list[float] = []
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def own_part(self) -> Iterator[None]:
        """A step's part that waits for nobody; on a GPU it is timed there."""
        if not self._is_cuda:
            start_s = time.monotonic()
            yield
            self._seconds.append(time.monotonic() - start_s)
            return
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        yield
        end.record()
        self._events.append((start, end))

    def report(self, world: World) -> str | None:
        """Who was slow since the last report; None if nobody was.   All ranks call it together."""
        own_s = statistics.fmean(self._times_s() or [0.0])
        self._seconds, self._events = [], []
        said = [text.split("|") for text in world.texts(f"{own_s}|{socket.gethostname()}")]
        seconds = [float(each[0]) for each in said]
        slowest = max(range(world.size), key=seconds.__getitem__)
        others_s = statistics.median(s for rank, s in enumerate(seconds) if rank != slowest)
        if seconds[slowest] <= SLOW * others_s:
            return None
        return (
            f"rank {slowest} ({said[slowest][1]}) is slow: {seconds[slowest]:.3f} s a step for its "
            f"own part, {seconds[slowest] / max(others_s, 1e-9):.1f} times the others' "
            f"{others_s:.3f} s, who wait for it"
        )

    def _times_s(self) -> list[float]:
        if self._events:
            torch.cuda.synchronize()
        return [*self._seconds, *(a.elapsed_time(b) / 1000 for a, b in self._events)]

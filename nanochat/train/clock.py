"""When steps end -> throughput, utilisation, time left.   in: step ends, pauses   out: metrics
who calls: loop.py

Validation and saving stand outside the clock: what is measured is training.
Read next: loop.py.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from nanochat.common.device import peak_memory_bytes
from nanochat.train.plan import Plan

__all__ = ["Clock", "Waiting"]

MOST_WAITING = 0.05  # of the time, before it is said that training waits for its batches
LEAST_WAIT_S = 5.0


class Clock:
    """Times the steps of one run; `elapsed_s` is what an earlier part of it took."""

    def __init__(
        self, plan: Plan, device: torch.device, peak_flops: float, elapsed_s: float = 0.0
    ) -> None:
        self._plan, self._device, self._peak = plan, device, peak_flops
        self._last_s = time.monotonic()
        self._elapsed_s = elapsed_s
        self._smooth_s: float | None = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens meanwhile is not training."""
        start_s = time.monotonic()
        yield
        self._last_s += time.monotonic() - start_s

    def metrics(self, step: int, num_targets: int) -> dict[str, float]:
        """Of the step that has just ended.

        Units: tokens_per_s and mfu count the targets; mfu by the dense formula over the peak of
               this machine.
        """
        now_s = time.monotonic()
        step_s = now_s - self._last_s
        self._last_s = now_s
        self._elapsed_s += step_s
        if self._smooth_s is None or step <= 2:
            self._smooth_s = step_s
        self._smooth_s = 0.9 * self._smooth_s + 0.1 * step_s
        tokens_per_s = num_targets / max(step_s, 1e-9)
        return {
            "tokens_per_s": tokens_per_s,
            "mfu": tokens_per_s * self._plan.flops_per_token / self._peak,
            "memory_bytes": peak_memory_bytes(self._device),
            "eta_s": self._smooth_s * (self._plan.num_steps - step),
            "elapsed_s": self._elapsed_s,
        }


class Waiting:
    """How long training has stood still for want of batches."""

    def __init__(self) -> None:
        self._start_s, self._waited_s, self._has_told = time.monotonic(), 0.0, False

    def see(self, wait_s: float) -> str | None:
        """A line to show, once, where it is more than a twentieth of the time."""
        self._waited_s += wait_s
        whole_s = time.monotonic() - self._start_s
        if self._has_told or self._waited_s <= max(LEAST_WAIT_S, MOST_WAITING * whole_s):
            return None
        self._has_told = True
        return (
            f"{self._waited_s:.1f} s of the last {whole_s:.0f} s were spent waiting for batches: "
            "more processors help, or a text that `nanochat data prepare` has tokenized before"
        )

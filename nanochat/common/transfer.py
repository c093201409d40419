"""Numbers between host and device, without waiting.   in: numbers   out: tensors
who calls: engine (forward.py, sampling.py, late.py), train (loop.py)

A plain copy makes the host wait for everything the device has still to do.
Read next: engine/late.py and train/loop.py (what is read a step late).
"""

from array import array
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Arrival", "send"]


class Arrival:
    """Tensors of a device on their way to the host."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self._parts = list(parts)
        self._event: torch.cuda.Event | None = None
        if parts and parts[0].is_cuda:
            self._parts = [_pinned(part) for part in parts]
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def read(self) -> list[Any]:
        """Their numbers, lists or of a tensor without dimensions one; waits for what made them, and
        for nothing that was asked for later."""
        if self._event is not None:
            self._event.synchronize()
        return [part.tolist() for part in self._parts]


def send(numbers: Sequence[int], device: torch.device) -> Tensor:
    """Whole numbers on the device.   Shapes: -> (N,) int64."""
    if not numbers:
        return torch.empty(0, dtype=torch.long, device=device)
    # A fifth of torch.tensor's time, half for a few; the tensor keeps the array.  From pageable
    # memory they are copied aside before this returns.
    return torch.frombuffer(array("q", numbers), dtype=torch.long).to(device, non_blocking=True)


def _pinned(part: Tensor) -> Tensor:
    """A copy in pinned memory; one in other memory would be waited for."""
    host = torch.empty(part.shape, dtype=part.dtype, pin_memory=True)
    return host.copy_(part, non_blocking=True)

"""The processes that train one model.   in: torchrun's environment   out: World
who calls: train, cli   (imports torch)

Started by `torchrun`, every process is a rank; started plainly there is one, and nothing here
communicates.  Tensors are summed where they are (NCCL or gloo); small integers travel over the CPU,
so that agreeing on them never waits for a GPU.
Read next: train/step.py (what is summed).
"""

import datetime
import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as torch_dist
from torch import Tensor

__all__ = ["World", "current_world"]

TIMEOUT = datetime.timedelta(hours=12)  # the first rank may tokenize a large corpus meanwhile


@dataclass(frozen=True, slots=True)
class World:
    """This process among all."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Among those of this machine: which of its devices is ours."""

    @property
    def is_first(self) -> bool:
        """The one rank that prints and saves."""
        return self.rank == 0

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Every tensor becomes the sum of all ranks' tensors in its place."""
        if self.size > 1:
            for tensor in tensors:
                torch_dist.all_reduce(tensor)

    def total(self, number: int) -> int:
        """The sum of all ranks' numbers."""
        if self.size == 1:
            return number
        tensor = torch.tensor(number)
        torch_dist.all_reduce(tensor)
        return int(tensor)

    def largest(self, number: int) -> int:
        """The largest of all ranks' numbers."""
        if self.size == 1:
            return number
        tensor = torch.tensor(number)
        torch_dist.all_reduce(tensor, op=torch_dist.ReduceOp.MAX)
        return int(tensor)

    def wait(self) -> None:
        """Until all ranks are here."""
        self.total(0)

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first rank goes through the block before the others: what it leaves on disk, they
        find."""
        if not self.is_first:
            self.wait()
        try:
            yield
        finally:
            if self.is_first:
                self.wait()


@functools.cache
def current_world() -> World:
    """The world torchrun made; a world of one without it."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return World()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    torch_dist.init_process_group(backend, timeout=TIMEOUT)
    return World(torch_dist.get_rank(), torch_dist.get_world_size(), local_rank)

"""The processes that train one model.   in: torchrun's environment   out: World
who calls: train, cli   (imports torch)

Started by `torchrun`, every process is a rank; started plainly there is one, and nothing here
communicates.  Tensors are summed where they are (NCCL or gloo); small integers travel over the CPU,
so that agreeing on them never waits for a GPU.
Read next: meeting.py (who belongs together), watch.py (who died), train/step.py (what is summed).
"""

import atexit
import datetime
import functools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as torch_dist
from torch import Tensor

from nanochat.common.errors import NanochatError, Stopped, TrainingError
from nanochat.common.meeting import LIMIT_S, Start, meet
from nanochat.common.watch import Watch

__all__ = ["Work", "World", "current_world"]

Work = Any  # of torch.distributed, which has no public name for it: it has wait()

TIMEOUT = datetime.timedelta(hours=12)  # the first rank may tokenize a large corpus meanwhile
STORE_TIMEOUT = datetime.timedelta(seconds=20)
# What collectives say when another rank, or the way to it, is gone.
FROM_ELSEWHERE = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe", re.I)


@dataclass(frozen=True, slots=True)
class World:
    """This process among all."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Among those of this machine: which of its devices is ours."""
    num_local: int = 1
    """How many ranks this machine has."""
    num_restarts: int = 0
    """How often all ranks of this job have been started anew."""
    watch: Watch | None = field(default=None, compare=False, repr=False)
    """Who looks whether all ranks are alive; None where there is one."""
    memory: Any = field(default=None, compare=False, repr=False)
    """The store that outlives a restart; None where nothing does."""

    @property
    def is_first(self) -> bool:
        """The one rank that prints and saves."""
        return self.rank == 0

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Every tensor becomes the sum of all ranks' tensors in its place."""
        if self.size > 1:
            for tensor in tensors:
                torch_dist.all_reduce(tensor)

    def start_sum_at(self, owner: int, tensor: Tensor) -> Work:
        """Begin to add up all ranks' tensors at the owner; what the others have is lost.

        The tensor is contiguous and is not touched before the returned work's `wait`.  On a GPU it
        is the stream that waits, not the process.
        """
        return torch_dist.reduce(tensor, dst=owner, async_op=True)

    def start_copy_from(self, owner: int, tensor: Tensor) -> Work:
        """Begin to overwrite all ranks' tensors with the owner's; the rest as above."""
        return torch_dist.broadcast(tensor, src=owner, async_op=True)

    def texts(self, text: str) -> list[str]:
        """What every rank said, by rank."""
        if self.size == 1:
            return [text]
        said = torch.tensor(list(text.encode()), dtype=torch.uint8)
        longest = self.largest(said.numel())
        padded = torch.zeros(longest + 8, dtype=torch.uint8)
        padded[:8] = torch.tensor([said.numel()]).view(torch.uint8)
        padded[8 : 8 + said.numel()] = said
        all_said = [torch.empty_like(padded) for _ in range(self.size)]
        torch_dist.all_gather(all_said, padded)
        lengths = [int(each[:8].view(torch.int64)) for each in all_said]
        return [
            bytes(each[8 : 8 + length].tolist()).decode()
            for each, length in zip(all_said, lengths, strict=True)
        ]

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
    def together(self, on_fault: Callable[[str], None] | None = None) -> Iterator[None]:
        """What ends one rank in the block ends all: it says why to the others, and they say so.

        `on_fault` is told before the process is ended from outside, where it waits for a dead rank.
        Raises: TrainingError naming the rank and its last words, on those that failed because it
                did; what was raised otherwise.
        """
        if self.watch is None:
            yield
            return
        before, self.watch.on_fault = self.watch.on_fault, on_fault or self.watch.on_fault
        try:
            yield
        except Stopped:
            raise
        except BaseException as error:
            if _is_from_elsewhere(error) and (fault := self.watch.explain()):
                raise TrainingError(fault) from error
            self.watch.tell(f"{type(error).__name__}: {error}")
            raise
        finally:
            self.watch.on_fault = before

    def now_at(self, step: int) -> None:
        """For a rank's last words: so many updates are done."""
        if self.watch is not None:
            self.watch.step = step

    def has_done(self, what: str) -> bool:
        """Whether this job did that before all ranks were started anew.

        Where nothing remembers, whatever was started anew has done it.
        """
        if not self.num_restarts:
            return False
        return self.memory is None or bool(self.memory.check([f"nanochat/done/{what}"]))

    def remember(self, what: str) -> None:
        """It is done, whatever becomes of the ranks."""
        if self.memory is not None:
            self.memory.set(f"nanochat/done/{what}", "")

    @property
    def name(self) -> str:
        """This rank, its machine and its process."""
        return self.watch.name if self.watch is not None else f"rank {self.rank}"

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
    """The world torchrun made; a world of one without it.

    Raises: TrainingError if not all ranks come within ten minutes, naming who is missing.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return World()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store, rank, size = _store_of_all()
    memory = store if _is_launchers_store() else _store_of_rendezvous()
    counted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    start = meet(store, rank, size, counted, memory)
    # From here on a rank that dies is missed, in the middle of making connections too.
    watch = _start_watch(rank, size, start) if size > 1 else None
    store.set_timeout(TIMEOUT)
    own = torch_dist.PrefixStore(start.word, store)  # type: ignore[attr-defined]
    torch_dist.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=TIMEOUT)
    num_local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return World(rank, size, local_rank, num_local, start.number, watch, memory)


def _store_of_all() -> tuple[Any, int, int]:
    """The store, our rank, and how many there are."""
    limit = datetime.timedelta(seconds=LIMIT_S)
    try:
        store, rank, size = next(torch_dist.rendezvous("env://", timeout=limit))  # type: ignore[attr-defined]
    except RuntimeError as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise TrainingError(
            f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} does not find the others at "
            f"{place} ({error}): look whether the first one runs, and that address is its own"
        ) from error
    return store, rank, size


def _is_launchers_store() -> bool:
    """Whether torchrun holds the store, which outlives the ranks; else the first rank does."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _store_of_rendezvous() -> Any:
    """Where torchrun's launchers meet, if their own variables say where that is: it lasts as long
    as the job, whichever machine comes and goes.  None where nobody says."""
    host, _, port = os.environ.get("PET_RDZV_ENDPOINT", "").rpartition(":")
    if not host or os.environ.get("PET_RDZV_BACKEND") != "c10d":
        return None
    return torch_dist.TCPStore(host, int(port), is_master=False, timeout=STORE_TIMEOUT)  # type: ignore[attr-defined]


def _start_watch(rank: int, size: int, start: Start) -> Watch:
    """On a connection of its own: a collective's wait must not hold it up."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = torch_dist.TCPStore(address, port, is_master=False, timeout=STORE_TIMEOUT)  # type: ignore[attr-defined]
    prefixed = torch_dist.PrefixStore(f"nanochat/{start.word}", store)  # type: ignore[attr-defined]
    holder = f"torchrun on {address}" if _is_launchers_store() else None
    watch = Watch(prefixed, rank, size, holder)
    watch.start()
    atexit.register(watch.leave)
    return watch


def _is_from_elsewhere(error: BaseException) -> bool:
    """Whether a collective failed here because of what happened to another rank."""
    is_plain = isinstance(error, RuntimeError) and not isinstance(error, NanochatError)
    return is_plain and FROM_ELSEWHERE.search(f"{type(error).__name__}: {error}") is not None

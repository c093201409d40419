"""A function and tasks -> results, by whoever there is.   in: tasks   out: results, in their order
who calls: batches/prepare.py, cli/data_prepare.py   (imports no torch)

One process, several of this machine, or the machines of a Ray cluster: the results are the same and
come in the order of the tasks.  Function and tasks are pickled, so both are plain: a function of a
module, frozen dataclasses.  What a task leaves on disk it writes whole or not at all, since any
process may end at any moment; on a cluster the disk is one that all machines share.
A process ends by itself when the one that started it is gone, however that ended.
Read next: batches/prepare.py (what is done with it).
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection
from typing import Any, Protocol, TypeVar

from nanochat.common.errors import ConfigError, NanochatError

__all__ = ["Executor", "InTurn", "Processes", "RayCluster", "num_cores", "open_executor"]

T = TypeVar("T")
R = TypeVar("R")

RAY_REMEDY = "pip install 'nanochat[cluster]'"
RAY_STORE_BYTES = 100_000_000  # results are small: what is large goes to the disk
TASKS_AHEAD = 4  # for each worker, so that one slow task does not let the others wait


class Executor(Protocol):
    """Who runs tasks."""

    @property
    def name(self) -> str:
        """For a person: such as `2 processes`."""
        ...

    @property
    def num_workers(self) -> int:
        """How many tasks run at a time."""
        ...

    def map(self, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[R]:
        """The results, in the order of the tasks.

        Raises: what the first task that failed raised.
        """
        ...


class InTurn:
    """This process, one task after another."""

    name = "1 process"
    num_workers = 1

    def map(self, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[R]:
        """The results, each made when it is asked for."""
        return map(function, tasks)


class Processes:
    """Processes of this machine, for the length of a `with`.

    They are spawned, so that threads and locks of this process are not copied.
    """

    def __init__(self, num_workers: int) -> None:
        if num_workers < 1:
            raise ConfigError(f"workers is {num_workers}, expected at least 1")
        self.num_workers = num_workers
        self._pool: ProcessPoolExecutor | None = None
        self._line: Connection | None = None

    @property
    def name(self) -> str:
        """Such as `2 processes`."""
        return f"{self.num_workers} process{'es' if self.num_workers > 1 else ''}"

    def __enter__(self) -> "Processes":
        context = multiprocessing.get_context("spawn")
        ours, self._line = context.Pipe(duplex=False)
        self._pool = ProcessPoolExecutor(
            self.num_workers, mp_context=context, initializer=_begin_worker, initargs=(ours,)
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        assert self._pool is not None and self._line is not None, "left before it was entered"
        if kind is not None:
            # Nobody waits for a task any more; what it writes is whole or not at all.
            self._line.close()
        with contextlib.suppress(BrokenProcessPool):
            self._pool.shutdown(cancel_futures=True)
        self._line.close()
        self._pool = None

    def map(self, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[R]:
        """The results, in the order of the tasks.

        Raises: what the first task that failed raised; NanochatError if a process was killed.
        """
        assert self._pool is not None, "used before it was entered"
        pool = self._pool
        try:
            yield from _in_order(
                lambda task: pool.submit(function, task), Future.result, tasks, self.num_workers
            )
        except BrokenProcessPool:
            raise NanochatError(
                "a process was killed: perhaps for want of memory, then take fewer --workers; the "
                "same command goes on with what is done"
            ) from None


class RayCluster:
    """The machines of a Ray cluster, for the length of a `with`; `local` starts one here.

    Raises: ConfigError where Ray is not installed, or there is no cluster at the address.
    """

    def __init__(self, address: str, num_workers: int | None = None) -> None:
        self._address = address
        self._wanted = num_workers
        self._ray: Any = None
        self.num_workers = num_workers or 1

    @property
    def name(self) -> str:
        """Such as `Ray with 64 processors`."""
        return f"Ray with {self.num_workers} processors"

    def __enter__(self) -> "RayCluster":
        try:
            import ray
        except ImportError:
            raise ConfigError(f"--ray needs Ray, which is not installed: {RAY_REMEDY}") from None
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if self._address == "local":
            options |= {
                "num_cpus": self._wanted or num_cores(),
                "include_dashboard": False,
                "object_store_memory": RAY_STORE_BYTES,
                "_node_ip_address": "127.0.0.1",  # nobody else is to reach it
            }
        try:
            ray.init(address=self._address, **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ConfigError(
                f"--ray {self._address}: no Ray cluster answers ({reason}); expected the address "
                "of one, auto, or local"
            ) from None
        self._ray = ray
        resources = self._ray.cluster_resources()
        self.num_workers = self._wanted or max(1, int(resources.get("CPU", 1)))
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()
        self._ray = None

    def map(self, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[R]:
        """The results, in the order of the tasks.

        Raises: what the first task that failed raised; NanochatError if its machine was lost again
                and again.
        """
        remote = self._ray.remote(num_cpus=1)(function)
        try:
            yield from _in_order(remote.remote, self._ray.get, tasks, self.num_workers)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, NanochatError):
                raise error.cause from None
            raise
        except self._ray.exceptions.RayError as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise NanochatError(f"a task of the Ray cluster was lost: {reason}") from None


def num_cores() -> int:
    """Processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def open_executor(
    num_workers: int | None, ray_address: str | None
) -> AbstractContextManager[Executor]:
    """Who is asked for: a cluster, else so many processes of this machine (None: one a core)."""
    if ray_address is not None:
        return RayCluster(ray_address, num_workers)
    wanted = num_workers or num_cores()
    return contextlib.nullcontext(InTurn()) if wanted == 1 else Processes(wanted)


def _in_order(
    submit: Callable[[T], Any], result: Callable[[Any], R], tasks: Sequence[T], num_workers: int
) -> Iterator[R]:
    """Some tasks are handed out ahead, not all: a million of them would only be kept."""
    waiting: list[Any] = []
    for task in tasks:
        waiting.append(submit(task))
        if len(waiting) >= TASKS_AHEAD * num_workers:
            yield result(waiting.pop(0))
    for each in waiting:
        yield result(each)


def _begin_worker(line: Connection) -> None:
    """Nothing is ever said on the line: it is closed when nobody waits for this process, and by the
    system when the one that started it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all: one answers

    def follow() -> None:
        with contextlib.suppress(EOFError, OSError):
            line.recv_bytes()
        os._exit(1)

    threading.Thread(target=follow, name="follow", daemon=True).start()

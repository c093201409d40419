"""Several ranks on this machine.   in: what each does   out: how each ended

Forked, so that torch is imported already.
"""

import gc
import multiprocessing
import os
import socket
from collections.abc import Callable

import torch

from nanochat.common.dist import World, current_world

__all__ = ["PATIENCE_S", "exit_codes"]

PATIENCE_S = 300.0  # they start in seconds, on a machine that is busy in a minute


def exit_codes(size: int, task: Callable[[World], None]) -> list[int | None]:
    """What each of so many ranks ended with; None: it runs still."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_rank, args=(rank, size, port, task)) for rank in range(size)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(PATIENCE_S)
    return [process.exitcode for process in ranks]


def _rank(rank: int, size: int, port: int, task: Callable[[World], None]) -> None:
    gc.freeze()  # else a collection here copies all pages of the process that was forked
    torch.set_num_threads(1)
    names = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    current_world.cache_clear()
    task(current_world())

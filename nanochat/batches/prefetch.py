"""Batches -> the same batches, made ahead.   in: an iterator   out: a generator
who calls: train/loop.py

Read next: stream.py (where they come from).
"""

import queue
import threading
import time
from collections.abc import Generator, Iterator

from nanochat.batches.batch import Batch

__all__ = ["prefetch", "waited"]


def prefetch(batches: Iterator[Batch], depth: int = 2) -> Generator[Batch]:
    """The same batches in the same order, made ahead by a thread, at most `depth` of them."""
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(depth)
    is_closed = threading.Event()

    def put(item: Batch | BaseException | None) -> None:
        while not is_closed.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for batch in batches:
                put(batch)
                if is_closed.is_set():
                    return
            put(None)
        except BaseException as error:  # raised again where the batches are used
            put(error)

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        is_closed.set()
        thread.join()


def waited(batches: Iterator[Batch]) -> Iterator[tuple[Batch, float]]:
    """Each batch with the seconds it was waited for."""
    while True:
        start_s = time.monotonic()
        try:
            batch = next(batches)
        except StopIteration:
            return
        yield batch, time.monotonic() - start_s

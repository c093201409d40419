"""Items -> the same items, made ahead.   in: an iterator   out: a generator
who calls: train/loop.py, store.py   (imports no torch)

Read next: stream.py (where they come from).
"""

import queue
import threading
import time
from collections.abc import Generator, Iterator
from typing import TypeVar

__all__ = ["prefetch", "waited"]

T = TypeVar("T")


def prefetch(items: Iterator[T], depth: int = 2) -> Generator[T]:
    """The same items in the same order, made ahead by a thread, at most `depth` of them."""
    ready: queue.Queue[tuple[T] | BaseException | None] = queue.Queue(depth)
    is_closed = threading.Event()

    def put(item: tuple[T] | BaseException | None) -> None:
        while not is_closed.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put((item,))
                if is_closed.is_set():
                    return
            put(None)
        except BaseException as error:  # raised again where the items are used
            put(error)

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item[0]
    finally:
        is_closed.set()
        thread.join()


def waited(items: Iterator[T]) -> Iterator[tuple[T, float]]:
    """Each item with the seconds it was waited for."""
    while True:
        start_s = time.monotonic()
        try:
            item = next(items)
        except StopIteration:
            return
        yield item, time.monotonic() - start_s

"""Prefetching: the same batches in the same order, made a little ahead, and waiting is measured."""

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from nanochat.batches.batch import Batch
from nanochat.batches.prefetch import prefetch, waited
from nanochat.common.errors import DataError

pytestmark = pytest.mark.req("FR-033")


def numbered(count: int) -> Iterator[Batch]:
    for index in range(count):
        yield Batch(torch.tensor([[index]]), torch.tensor([[index]]))


def test_prefetch_changes_nothing() -> None:
    assert [int(batch.inputs_BT) for batch in prefetch(numbered(20), depth=3)] == [*range(20)]


def test_prefetch_stays_within_its_depth() -> None:
    made: list[int] = []
    release = threading.Event()

    def watched() -> Iterator[Batch]:
        for index, batch in enumerate(numbered(20)):
            made.append(index)
            if index == 3:
                release.set()
            yield batch

    batches = prefetch(watched(), depth=2)
    next(batches)
    assert release.wait(10)  # one is used, two wait, one is in the thread's hand
    release.clear()
    assert not release.wait(0.1) and made == [0, 1, 2, 3]
    batches.close()


def test_prefetch_passes_errors_on() -> None:
    def failing() -> Iterator[Batch]:
        yield from numbered(1)
        raise DataError("the disk is gone")

    batches = prefetch(failing())
    assert int(next(batches).inputs_BT) == 0
    with pytest.raises(DataError, match="the disk is gone"):
        next(batches)


def test_prefetch_ends_its_thread() -> None:
    batches = prefetch(numbered(1000))
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_waiting_is_measured() -> None:
    def slow() -> Iterator[Batch]:
        for batch in numbered(3):
            time.sleep(0.02)
            yield batch

    told = list(waited(slow()))
    assert len(told) == 3 and all(wait_s >= 0.02 for _, wait_s in told)

"""A thread that has computed -> its helpers are gone.   in: nothing   out: nothing
who calls: engine.py

PyTorch computes on a CPU with OpenMP, and every thread that has computed once keeps helpers of its
own, one for each other core.  GNU's runtime counts them all: where there are more of them than
cores, also idle ones, a helper no longer waits in a short loop for the next operator but sleeps and
is woken, some three thousand times a step.  A model loaded in the main thread made each step of the
engine's thread 2 to 4 times as long (dev/LOG.md).  So who hands work to the engine lets its own
helpers go first; they come back, in some 50 microseconds, when it computes again.
Source: libgomp, config/linux/wait.h (gomp_throttled_spin_count_var) and team.c (gomp_free_thread).
"""

import contextlib
import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

__all__ = ["release_helpers"]

MAPS = Path("/proc/self/maps")
SOFT = 1  # omp_pause_soft: what the program set stays as it is


def release_helpers() -> None:
    """End the OpenMP helpers of the calling thread; nothing where the runtime is another.

    Cost: 1 microsecond where there are none.
    """
    for pause in _runtimes():
        pause(SOFT)


@functools.cache
def _runtimes() -> tuple[Callable[[int], int], ...]:
    """What ends helpers in every GNU OpenMP runtime of this process; PyTorch brings its own."""
    paths: dict[str, None] = {}
    with contextlib.suppress(OSError):  # not Linux, or no /proc: nothing to do
        for line in MAPS.read_text().splitlines():
            path = line.partition("/")
            if "libgomp" in path[2]:
                paths["/" + path[2]] = None
    found: list[Callable[[int], int]] = []
    for name in paths:
        with contextlib.suppress(OSError, AttributeError):  # removed since, or before OpenMP 5
            found.append(ctypes.CDLL(name).omp_pause_resource_all)
    return tuple(found)

"""One process at a time, and who is waited for.   in: a file   out: nothing
who calls: common/download.py, corpus/remote.py, evals/download.py, batches/prepare.py,
batches/prepare_place.py   (imports no torch)

The system frees a lock when the process that has it ends, however that ends.
Read next: download.py (one process loads a file, the others find it).
"""

import contextlib
import fcntl
import os
import sys
import threading
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

__all__ = ["locked"]

SAY_AFTER_S = 1.0


@contextlib.contextmanager
def locked(path: Path, what: str | None = None) -> Iterator[None]:
    """One process of this machine at a time; the system frees it when that process ends.

    Whoever waits for longer than a moment says on standard error for which process, and `what` that
    process does, such as "loads climbmix"; None: that it has the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _wait_for(file, what or f"has {path}")
        _sign(file, str(os.getpid()))
        try:
            yield
        finally:  # closing would not do: a process forked meanwhile has the file open too
            _sign(file, "")
            fcntl.flock(file, fcntl.LOCK_UN)


def _wait_for(file: FileIO, what: str) -> None:
    def say() -> None:
        file.seek(0)
        signed = file.read().decode(errors="replace")
        who = f"process {signed}" if signed else "another process"
        print(f"waiting for {who}, which {what}", file=sys.stderr, flush=True)

    # Ranks that only look whether all is here meet for a moment: that is not worth a line.
    timer = threading.Timer(SAY_AFTER_S, say)
    timer.daemon = True
    timer.start()
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    finally:
        timer.cancel()
        timer.join()


def _sign(file: FileIO, text: str) -> None:
    """Who has the lock, for those who wait."""
    with contextlib.suppress(OSError):  # a full disk: the lock holds without the name
        file.truncate(0)
        file.write(text.encode())

"""How a download goes -> what a person sees.   in: events of download.py   out: bars, or lines
who calls: cli/data_download.py, corpus/remote.py   (imports no torch)

On a terminal a bar for each file on its way and one for all; elsewhere a line for each file that is
complete, and one for each wait.
Read next: download.py (who calls).
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

from nanochat.common.download import Watcher

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["Lines", "human_bytes", "shown"]


def human_bytes(num_bytes: int) -> str:
    """Such as 12 kB or 1.5 GB: decimal units, as servers and disks count."""
    amount = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 999.5:
            return (
                f"{amount:.0f} {unit}" if unit == "B" or amount >= 99.5 else f"{amount:.1f} {unit}"
            )
        amount /= 1000
    return f"{amount:.1f} TB"


@contextmanager
def shown(
    num_files: int, total_bytes: int | None, stream: TextIO | None = None
) -> Iterator[Watcher]:
    """Bars on a terminal, else lines, on standard error."""
    stream = stream or sys.stderr
    if not stream.isatty():
        yield Lines(num_files, stream)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=stream)) as progress:
        yield _Bars(progress, num_files, total_bytes)


@dataclass(slots=True)
class Lines:
    """A line when a file is complete, and when there is a wait."""

    num_files: int
    stream: TextIO
    _num_done: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begins(self, name: str, num_bytes: int | None) -> None:
        """Nothing is said."""

    def has(self, name: str, num_bytes: int, total_bytes: int | None) -> None:
        """Nothing is said."""

    def waits(self, name: str, reason: str, wait_s: float) -> None:
        """Why, and how long."""
        self._say(f"{name}: {reason}; again in {wait_s:.1f} s")

    def ends(self, name: str, num_bytes: int) -> None:
        """Name and size, and how many of all."""
        with self._lock:
            self._num_done += 1
        self._say(f"{name}: {human_bytes(num_bytes)}, {self._num_done} of {self.num_files}")

    def _say(self, text: str) -> None:
        with self._lock:
            print(text, file=self.stream, flush=True)


class _Bars:
    """Bars of rich; the total counts what is here of every file."""

    def __init__(self, progress: "Progress", num_files: int, total_bytes: int | None) -> None:
        self._progress = progress
        self._num_files = num_files
        self._num_done = 0
        self._stated_bytes = total_bytes
        self._sizes: dict[str, tuple[int, int | None]] = {}
        self._tasks: dict[str, TaskID] = {}
        self._lock = threading.Lock()
        self._total = progress.add_task(self._words(), total=total_bytes)

    def begins(self, name: str, num_bytes: int | None) -> None:
        with self._lock:
            self._tasks[name] = self._progress.add_task(name, total=num_bytes)

    def has(self, name: str, num_bytes: int, total_bytes: int | None) -> None:
        with self._lock:
            self._sizes[name] = (num_bytes, total_bytes)
            self._progress.update(self._tasks[name], completed=num_bytes, total=total_bytes)
            self._update_total()

    def waits(self, name: str, reason: str, wait_s: float) -> None:
        self._progress.console.print(
            f"{name}: {reason}; again in {wait_s:.1f} s",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

    def ends(self, name: str, num_bytes: int) -> None:
        with self._lock:
            self._num_done += 1
            self._sizes[name] = (num_bytes, num_bytes)
            if name in self._tasks:
                self._progress.remove_task(self._tasks.pop(name))
            self._update_total()

    def _update_total(self) -> None:
        here = sum(have for have, _ in self._sizes.values())
        totals = [total for _, total in self._sizes.values() if total is not None]
        total = self._stated_bytes
        if total is None and totals:  # what is not yet known is taken for as large as the others
            total = sum(totals) * self._num_files // len(totals)
        self._progress.update(self._total, description=self._words(), completed=here, total=total)

    def _words(self) -> str:
        return f"{self._num_done} of {self._num_files} files"

"""Numbers on a terminal.   in: metrics   out: a live line, or plain lines where there is no
terminal
who calls: loop.py through the stages, cli

Read next: loop.py.
"""

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

__all__ = ["Display", "format_duration"]


class Display:
    """One stage's progress.  On a terminal one line is rewritten; elsewhere a line is printed now
    and then.

    `is_quiet` prints nothing: for tests and --json.
    """

    def __init__(
        self, *, is_quiet: bool = False, stream: TextIO | None = None, log_every: int = 10
    ) -> None:
        self._console = Console(
            file=stream or sys.stderr, highlight=False, soft_wrap=True, quiet=is_quiet
        )
        self._log_every = log_every
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._log: TextIO | None = None

    @contextlib.contextmanager
    def logging_to(self, path: Path) -> Iterator[None]:
        """Every line meanwhile is added to a file too, with its time, and so is what ends it."""
        with path.open("a", buffering=1, encoding="utf-8") as self._log:
            try:
                yield
            except BaseException as error:
                self._write(f"{type(error).__name__}: {error}")
                raise
            finally:
                self._log = None

    def note(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text, markup=False)
        self._write(text)

    def start(self, stage: str, num_steps: int) -> None:
        """A stage begins."""
        self._stage, self._num_steps, self._last_s = stage, num_steps, 0.0
        if self._console.is_terminal and not self._console.quiet:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[line]}"),
            )
            self._progress = Progress(*columns, console=self._console, transient=True)
            self._task = self._progress.add_task(stage, total=num_steps, line="")
            self._progress.start()

    def step(self, metrics: Mapping[str, float]) -> None:
        """One step is done; `metrics` is the row of metrics.jsonl."""
        step = int(metrics["step"])
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=step, line=_line(metrics, self._num_steps))
        if step % self._log_every == 0 or step in (1, self._num_steps):
            line = f"{self._stage} {_line(metrics, self._num_steps)}"
            if self._progress is None:
                self.note(line)
            else:
                self._write(line)

    def stop(self) -> None:
        """The stage is over; the live line goes."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _write(self, text: str) -> None:
        if self._log is not None:
            self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")


def format_duration(seconds: float) -> str:
    """3:05 for 185 seconds, 1:02:03 for 3,723."""
    whole = int(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def _line(metrics: Mapping[str, float], num_steps: int) -> str:
    parts = [
        f"step {int(metrics['step'])}/{num_steps}",
        f"loss {metrics['loss']:.4f}",
        f"lr x{metrics['lr']:.3f}",
        f"{metrics['tokens_per_s']:,.0f} tok/s",
        f"mfu {metrics['mfu']:.1%}",
        f"mem {metrics['memory_bytes'] / 2**30:.1f} GiB",
        f"eta {format_duration(metrics['eta_s'])}",
    ]
    if "val_bpb" in metrics:
        parts.insert(2, f"val bpb {metrics['val_bpb']:.4f}")
    return "  ".join(parts)

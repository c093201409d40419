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

from nanochat.train.rows import writing

__all__ = ["Display", "format_duration"]


class Display:
    """One stage's progress.  On a terminal one line is rewritten; elsewhere a line is printed now
    and then.

    `lr 0.01 (x0.500)` is the learning rate of the matrices and what the schedule makes of all
    rates just now.
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
        self._val_bpb: float | None = None

    @contextlib.contextmanager
    def logging_to(self, path: Path) -> Iterator[None]:
        """Every line meanwhile is added to a file too, with its time, and so is what ends it.

        Raises: TrainingError if the file cannot be opened.
        """
        with writing(path):
            log = path.open("a", buffering=1, encoding="utf-8")
        self._log = log
        try:
            yield
        except BaseException as error:
            self._write(f"{type(error).__name__}: {error}")
            raise
        finally:
            self._log = None
            with contextlib.suppress(OSError):
                log.close()

    def note(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text, markup=False)
        self._write(text)

    def start(self, stage: str, num_steps: int, lr: float) -> None:
        """A stage begins; `lr` is the learning rate of the matrices before the schedule."""
        self._stage, self._num_steps, self._lr, self._val_bpb = stage, num_steps, lr, None
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
        """One step is done; `metrics` is the row of metrics.jsonl.

        A validation is always a line that stays; the live line shows the last one until the next.
        """
        step, measured = int(metrics["step"]), metrics.get("val_bpb")
        self._val_bpb = self._val_bpb if measured is None else measured
        if self._progress is not None and self._task is not None:
            self._progress.update(
                self._task, completed=step, line=self._line(metrics, self._val_bpb)
            )
        is_due = step % self._log_every == 0 or step in (1, self._num_steps)
        if is_due or measured is not None:
            line = f"{self._stage} {self._line(metrics, measured)}"
            if self._progress is None or measured is not None:
                self.note(line)
            else:
                self._write(line)

    def stop(self) -> None:
        """The stage is over; the live line goes."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _line(self, metrics: Mapping[str, float], val_bpb: float | None) -> str:
        parts = [
            f"step {int(metrics['step'])}/{self._num_steps}",
            f"loss {metrics['loss']:.4f}",
            *([] if val_bpb is None else [f"val bpb {val_bpb:.4f}"]),
            f"lr {self._lr * metrics['lr']:.2g} (x{metrics['lr']:.3f})",
            f"{metrics['tokens_per_s']:,.0f} tok/s",
            f"mfu {metrics['mfu']:.1%}",
            f"mem {metrics['memory_bytes'] / 2**30:.1f} GiB",
            f"eta {format_duration(metrics['eta_s'])}",
        ]
        return "  ".join(parts)

    def _write(self, text: str) -> None:
        if self._log is not None:
            # On a full disk the checkpoint or metrics.jsonl ends the run, with the remedy; a line
            # of the log would hide it.
            with contextlib.suppress(OSError):
                self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")


def format_duration(seconds: float) -> str:
    """3:05 for 185 seconds, 1:02:03 for 3,723."""
    whole = int(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"

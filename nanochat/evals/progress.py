"""How far an evaluation is, on a terminal.   in: what the runner tells   out: a bar, or plain lines
who calls: cli/eval.py   (imports no torch)

Read next: runner.py (Reporter).
"""

import sys
import time
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from nanochat.evals.results import TaskResult

__all__ = ["EvalDisplay", "result_line"]

LINE_SECONDS = 15.0  # between plain lines


class EvalDisplay:
    """A bar with the time left on a terminal; elsewhere a line now and then, and one a task.

    With several processes each counts its own share; one display is enough.
    """

    def __init__(
        self, *, is_quiet: bool = False, num_processes: int = 1, stream: TextIO | None = None
    ) -> None:
        self._console = Console(
            file=stream or sys.stderr, highlight=False, soft_wrap=True, quiet=is_quiet
        )
        self._num_processes = num_processes
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def start(self, label: str, num_samples: int, num_known: int) -> None:
        """A task begins."""
        self._label, self._num_samples, self._num_known = label, num_samples, num_known
        self._num_done, self._start_s = 0, time.monotonic()
        self._line_s = self._start_s
        if num_known:
            self._say(f"{label}: {num_known:,} of {num_samples:,} samples are known already")
        if self._console.is_terminal and not self._console.quiet:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(elapsed_when_finished=True),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task(label, total=num_samples, completed=num_known)
            self._bar.start()

    def advance(self, num_samples: int) -> None:
        """So many more are judged."""
        self._num_done += num_samples * self._num_processes
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=num_samples * self._num_processes)
            return
        now_s = time.monotonic()
        if now_s - self._line_s < LINE_SECONDS:
            return
        self._line_s = now_s
        num_judged = min(self._num_samples, self._num_known + self._num_done)
        rate = self._num_done / (now_s - self._start_s)
        left_s = (self._num_samples - num_judged) / rate
        self._say(
            f"{self._label}: {num_judged:,} of {self._num_samples:,}, {rate:,.1f} a second, "
            f"about {_duration(left_s)} left"
        )

    def finish(self, result: TaskResult) -> None:
        """A task is done: its line."""
        self.close()
        self._say(result_line(result))

    def close(self) -> None:
        """No bar stays, and the cursor is back, also where a run is broken off."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False)


def result_line(result: TaskResult) -> str:
    """Name, accuracy with its interval, centred, how many, how long; or why there is nothing."""
    name = f"{result.label:<34}"
    if result.error is not None:
        return f"{name} failed: {result.error}"
    tail = f"{result.count:>7,} samples {_duration(result.seconds):>9}"
    if result.kind == "bits_per_byte":
        low, high = result.interval
        return f"{name}{result.bits_per_byte:>8.4f}  ({low:.4f} to {high:.4f})  bits per byte{tail}"
    low, high = result.interval
    passes = "".join(f"  pass@{k} {value:.2%}" for k, value in result.pass_at.items())
    return (
        f"{name}{result.accuracy:>8.2%}  ({low:.2%} to {high:.2%})  centred {result.centered:>7.4f}"
        f"{passes}{tail}"
    )


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if seconds < 60:
        return f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"

"""SIGINT, SIGTERM, SIGUSR1 -> a run that ends after its step, saved.   in: signals   out: which
who calls: loop.py

A second Ctrl-C ends the process at once; its checkpoints are safe (checkpoint/format.py).
Read next: loop.py, cli/main.py (exit codes).
"""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

__all__ = ["StopSignals"]

SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1")  # SIGUSR1: what schedulers send before time runs out


class StopSignals:
    """While this context lasts, the signals are noted instead of obeyed.

    Does nothing outside the main thread, where Python delivers no signals.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        """The first one that came."""
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for name in SIGNALS:
                if number := getattr(signal, name, None):  # Windows has fewer
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            os._exit(128 + number)
        self.received = self.received or signal.Signals(number)

"""Ctrl-C and keys while an answer comes.   in: signals, a terminal   out: an answer, or part of it
who calls: chat_loop.py, chat.py

Ctrl-C breaks into the waiting for the next piece and nowhere else, so that no escape sequence is
left half written.  What is typed meanwhile is not echoed into the answer; it is there afterwards.
Read next: chat_screen.py (what is shown), chat_loop.py.
"""

import contextlib
import signal
import sys
import termios
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from types import FrameType

from nanochat.cli.chat_screen import Screen, Status
from nanochat.cli.chat_talk import Piece

__all__ = ["interrupts_go_to", "quiet_keys", "show_answer"]


def show_answer(screen: Screen, pieces: Generator[Piece, None, None], status: Status) -> None:
    """The answer on the screen; Ctrl-C closes it, what came stays.

    Raises: KeyboardInterrupt after that, and what the answer raises.
    """
    presses = _Presses()
    with closing(pieces), quiet_keys(), interrupts_go_to(presses.note):
        screen.begin(status)
        try:
            while (piece := presses.next_of(pieces)) is not None:
                screen.show(piece)
        finally:
            screen.end()


class _Presses:
    """Ctrl-C, noted when it comes and raised where it may be."""

    def __init__(self) -> None:
        self._was_pressed = self._is_waiting = False

    def next_of(self, pieces: Iterator[Piece]) -> Piece | None:
        """The next piece; None at the end.

        Raises: KeyboardInterrupt
        """
        self._is_waiting = True
        try:
            if self._was_pressed:
                raise KeyboardInterrupt
            return next(pieces, None)
        finally:
            self._is_waiting = False

    def note(self, number: int, frame: FrameType | None) -> None:
        self._was_pressed = True
        if self._is_waiting:
            self._is_waiting = False
            raise KeyboardInterrupt


@contextlib.contextmanager
def interrupts_go_to(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Ctrl-C calls this meanwhile; in another thread than the main one no signal arrives."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def quiet_keys() -> Iterator[None]:
    """Keys are kept for the next prompt as they are, and not echoed; Ctrl-C stays a signal.

    Else Enter, typed while a model loads or answers, would arrive as a line feed, which is none.
    """
    try:
        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
    except (AttributeError, OSError, ValueError, termios.error):  # no terminal
        yield
        return
    quiet = [*before]
    quiet[0] &= ~termios.ICRNL  # Enter stays Enter
    quiet[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(descriptor, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)

"""Pieces of an answer -> a screen.   in: Piece   out: what a person sees, or a pipe gets
who calls: chat.py, chat_loop.py

MarkdownScreen prints each finished block once, and rewrites only the lines of the open one that
have changed, in one write, so that nothing flickers.  PlainScreen prints what comes, as it comes:
for pipes, NO_COLOR, TERM=dumb and --plain.
Read next: chat_markdown.py (blocks), terminal.py (what may reach a terminal).
"""

import math
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol, TextIO, cast

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.text import Text

from nanochat.cli.chat_markdown import MarkdownBlock, MarkdownStream
from nanochat.cli.chat_talk import Piece
from nanochat.cli.terminal import neutralize, print_answer

__all__ = ["MarkdownScreen", "PlainScreen", "Region", "Screen", "ToolFold", "make_screen"]

REDRAW_S = 0.05  # twenty times a second: faster than one reads, a few percent of a core
SPINNER = "\u280b\u2819\u2839\u2838\u283c\u2834\u2826\u2827\u2807\u280f"
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"

Status = Callable[[], str]


class Screen(Protocol):
    """Where answers are shown: begin, show each piece, end, also of an answer broken off."""

    def begin(self, status: Status) -> None:
        """An answer comes; `status` says how it goes, where there is room to tell."""

    def show(self, piece: Piece) -> None:
        """Some of it."""

    def end(self) -> None:
        """That was all."""

    def say(self, text: str) -> None:
        """A remark of ours, between answers."""


def make_screen(stream: TextIO | None = None, *, plain: bool = False) -> Screen:
    """Markdown on a terminal that can show it, else plain text."""
    stream = stream or sys.stdout
    console = Console(file=stream, highlight=False, emoji=False, markup=False)
    is_able = console.is_terminal and not console.is_dumb_terminal and not console.no_color
    return MarkdownScreen(console) if is_able and not plain else PlainScreen(stream)


class PlainScreen:
    """The words as they come; what the calculator did is told after them, on a terminal only."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._fold = ToolFold()
        self._told: list[str] = []
        self._has_begun = False

    def begin(self, status: Status) -> None:
        """Nothing to prepare."""
        self._fold, self._told, self._has_begun = ToolFold(), [], False

    def show(self, piece: Piece) -> None:
        """Print it."""
        self._has_begun = True
        self._told += self._fold.feed(piece)
        if piece.kind == "text":
            print_answer(piece.text, self._stream)

    def end(self) -> None:
        """End the line; of a question that was refused there is none."""
        if not self._has_begun:
            return
        lines = [*self._told, *self._fold.close()] if self._stream.isatty() else []
        self._stream.write("\n".join(["", *lines, ""]))
        self._stream.flush()

    def say(self, text: str) -> None:
        """Print it on lines of its own."""
        print_answer(f"{text}\n", self._stream)


class MarkdownScreen:
    """Markdown, block by block, with a line below that says how the answer goes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._region = Region(cast(TextIO, console.file))
        self._lock = threading.Lock()  # the ticker draws too
        self._ticker: _Ticker | None = None
        self._status: Status = str
        self._stream, self._fold = MarkdownStream(), ToolFold()
        self._finished: list[str] = []
        self._drawn_s = 0.0

    def begin(self, status: Status) -> None:
        """Show that the answer is waited for."""
        self._stream, self._fold, self._finished = MarkdownStream(), ToolFold(), []
        self._status = status
        self._console.file.write(HIDE_CURSOR)
        self._draw()
        self._ticker = _Ticker(self._tick)

    def show(self, piece: Piece) -> None:
        """Add it; drawn now, or by the ticker if there was something just now."""
        with self._lock:
            self._finished += [self._dim(line) for line in self._fold.feed(piece)]
            if piece.kind == "text":
                self._finish(self._stream.feed(neutralize(piece.text)))
            if time.perf_counter() - self._drawn_s >= REDRAW_S:
                self._draw()

    def end(self) -> None:
        """All of it for good, and the cursor back."""
        if self._ticker is not None:
            self._ticker.stop()
            self._ticker = None
        self._finish(self._stream.close())
        self._finished += [self._dim(line) for line in self._fold.close()]
        self._region.show([], above=self._finished)
        self._finished = []
        self._console.file.write(SHOW_CURSOR)
        self._console.file.flush()

    def say(self, text: str) -> None:
        """Print it dim."""
        self._console.print(Text(neutralize(text), style="dim"))

    def _finish(self, text: str) -> None:
        if lines := self._lines(text):
            self._finished += [*lines, ""]

    def _tick(self) -> None:
        with self._lock:
            self._draw()

    def _draw(self) -> None:
        """The finished blocks for good, below them the tail of the open one and the status."""
        self._drawn_s = time.perf_counter()
        size = self._console.size
        spinner = SPINNER[int(self._drawn_s * 10) % len(SPINNER)]
        status = self._dim(f"{spinner} {self._status()}"[: size.width - 1])
        open_lines = self._lines(self._stream.open_text)
        lines = [*open_lines, *([""] if open_lines else []), status]
        self._region.show(lines[-(size.height - 1) :], above=self._finished, width=size.width)
        self._finished = []

    def _lines(self, text: str) -> list[str]:
        """The blocks of a text as lines for this terminal, without empty ones around them."""
        lines = self._rendered(MarkdownBlock(text)) if text.strip() else []
        while lines and not lines[0]:
            lines.pop(0)
        while lines and not lines[-1]:
            lines.pop()
        return lines

    def _dim(self, text: str) -> str:
        return "\n".join(self._rendered(Text(text, style="dim")))

    def _rendered(self, renderable: RenderableType) -> list[str]:
        with self._console.capture() as captured:
            self._console.print(renderable, end="")
        return captured.get().split("\n")


class Region:
    """The last lines of a terminal, rewritten in place: only from the first one that changed.

    The cursor rests at the end of the last line; without lines, at the beginning of an empty row.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: list[str] = []
        self._width = 0

    def show(self, lines: Sequence[str], *, above: Sequence[str] = (), width: int = 0) -> None:
        """These lines instead of those before; the lines `above` them scroll away for good."""
        old = self._lines
        text = "\r"
        if width and self._width and width != self._width:  # the terminal has wrapped them anew
            num_rows = sum(max(1, math.ceil(_num_cells(line) / width)) for line in old)
            text += _up(num_rows - 1) + "\x1b[J"
            old = []
        self._width = width or self._width
        new = [*above, *lines]
        row = _num_equal(old, new)
        if not above and row == len(old) == len(new):
            return
        row = max(0, min(row, len(old) - 1, len(new) - 1))
        text += _up(len(old) - 1 - row)
        if len(new) < len(old):
            text += "\x1b[J"
        text += "\n".join(f"\x1b[K{line}" for line in new[row:])
        if above and not lines:
            text += "\n"
        elif not new:
            text += "\x1b[K"
        self._stream.write(text)
        self._stream.flush()
        self._lines = list(lines)


class ToolFold:
    """What the calculator did, each use in one line."""

    def __init__(self) -> None:
        self._expression = self._result = ""

    def feed(self, piece: Piece) -> list[str]:
        """The line of a use that is over with this piece, if one is."""
        ends = piece.text and (piece.kind == "text" or (piece.kind == "python" and self._result))
        lines = self.close() if ends else []
        if piece.kind == "python":
            self._expression += piece.text
        elif piece.kind == "python_output":
            self._result += piece.text
        return lines

    def close(self) -> list[str]:
        """The line of a use that the answer ends with."""
        expression, result = self._expression, self._result
        self._expression = self._result = ""
        if not expression and not result:
            return []
        shown = " ".join(f"{expression} = {result or 'no result'}".split())
        return [neutralize(f"[calculator] {shown}")]


class _Ticker:
    """Calls a function from time to time: a spinner turns while nothing comes."""

    def __init__(self, tick: Callable[[], None]) -> None:
        self._tick, self._is_over = tick, threading.Event()
        self._thread = threading.Thread(target=self._run, name="chat-screen", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over.wait(2 * REDRAW_S):
            self._tick()


def _up(num_rows: int) -> str:
    return f"\x1b[{num_rows}A" if num_rows > 0 else ""


def _num_equal(old: Sequence[str], new: Sequence[str]) -> int:
    num_equal = 0
    while num_equal < min(len(old), len(new)) and old[num_equal] == new[num_equal]:
        num_equal += 1
    return num_equal


def _num_cells(line: str) -> int:
    return cell_len(Text.from_ansi(line).plain)

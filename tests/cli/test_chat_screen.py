"""chat_screen.py: what stands on the screen in the end, and that it got there without flicker."""

import io
import random
import time
from typing import Any, cast

import pytest
from rich.console import Console

from nanochat.cli import chat_screen
from nanochat.cli.chat_screen import MarkdownScreen, PlainScreen, Region, ToolFold, make_screen
from nanochat.cli.chat_talk import Piece
from tests.cli.chat_fakes import Terminal
from tests.patience import wait_until


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def markdown_screen(terminal: Terminal) -> MarkdownScreen:
    console = Console(
        file=cast(Any, terminal), force_terminal=True, width=terminal.width,
        height=terminal.height, highlight=False,
    )  # fmt: skip
    return MarkdownScreen(console)


def test_a_region_shows_exactly_its_lines_and_keeps_what_scrolled_away() -> None:
    numbers = random.Random(5)
    for _ in range(50):
        terminal = Terminal(width=20, height=10)
        region = Region(cast(Any, terminal))
        gone: list[str] = []
        for _ in range(20):
            above = [f"above {numbers.random():.3f}" for _ in range(numbers.choice([0, 0, 1, 3]))]
            lines = [
                numbers.choice("abc") * numbers.randint(0, 20) for _ in range(numbers.randint(0, 6))
            ]
            region.show(lines, above=above, width=20)
            gone += above
            assert terminal.text == "\n".join([*gone, *lines]).rstrip("\n")


def test_only_what_changed_is_written() -> None:
    stream = io.StringIO()
    region = Region(stream)
    region.show(["one", "two", "three"])
    stream.truncate(0)
    region.show(["one", "two", "three"])
    assert stream.getvalue() == ""
    region.show(["one", "two", "threes"])
    assert "one" not in stream.getvalue() and "two" not in stream.getvalue()
    assert "\x1b[2J" not in stream.getvalue()


def test_a_terminal_that_became_narrow_is_cleaned_up() -> None:
    terminal = Terminal(width=20, height=30)
    region = Region(cast(Any, terminal))
    region.show(["a" * 20, "b"], above=["kept"], width=20)
    terminal.width = 10  # it wraps what is there
    terminal.rows = [list("kept"), list("a" * 10), list("a" * 10), list("b")]
    terminal.row = 3
    region.show(["c"], width=10)
    assert terminal.text == "kept\nc"


TEXT = """# Title

A paragraph that is longer than the terminal is wide, so it wraps.

- one
- two

```
code
```
The end."""

SHOWN = """Title

A paragraph that is longer than the
terminal is wide, so it wraps.

 \u2022 one
 \u2022 two

  code

The end."""


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_an_answer_stands_on_the_screen_as_if_it_had_come_at_once(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nanochat.cli.chat_screen.REDRAW_S", 0.0005)  # drawn as often as can be
    terminal = Terminal(width=40, height=8)
    screen = markdown_screen(terminal)
    screen.begin(lambda: "status")
    assert "status" in terminal.text and not terminal.is_cursor_shown
    for place in range(0, len(TEXT), size):
        screen.show(Piece("text", TEXT[place : place + size]))
    screen.end()
    assert terminal.text == SHOWN
    assert terminal.is_cursor_shown
    assert terminal.column == 0


def test_a_block_taller_than_the_screen_shows_its_end_and_is_whole_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal(width=40, height=6)
    screen = markdown_screen(terminal)
    screen.begin(lambda: "status")
    monkeypatch.setattr(chat_screen, "REDRAW_S", 0.0)  # each piece is drawn at once
    for number in range(30):
        screen.show(Piece("text", f"- item {number}\n"))
    assert "item 29" in terminal.text and "item 20" not in terminal.text
    screen.end()
    assert [row.strip() for row in terminal.text.splitlines()] == [
        f"\u2022 item {number}" for number in range(30)
    ]


def test_the_spinner_turns_while_nothing_comes() -> None:
    terminal = Terminal()
    screen = markdown_screen(terminal)
    screen.begin(lambda: f"{time.perf_counter()}")
    first = terminal.text
    wait_until(lambda: terminal.text != first)
    screen.end()
    assert terminal.text == ""


def test_the_calculator_is_one_line_above_the_words() -> None:
    terminal = Terminal(width=60)
    screen = markdown_screen(terminal)
    screen.begin(lambda: "")
    for piece in (
        Piece("text", "It is "), Piece("python", "6"), Piece("python", "*7"), Piece("text", ""),
        Piece("python_output", "42"), Piece("text", "42."), Piece("python", "1/0\x1b[2J"),
    ):  # fmt: skip
        screen.show(piece)
    screen.end()
    assert terminal.text.splitlines() == [
        "[calculator] 6*7 = 42", "It is 42.", "", "[calculator] 1/0\u241b[2J = no result",
    ]  # fmt: skip


def test_uses_of_the_calculator_are_told_apart() -> None:
    fold = ToolFold()
    pieces = [("python", "1+1"), ("python_output", "2"), ("python", "2+2"), ("python_output", "4")]
    lines = [line for kind, text in pieces for line in fold.feed(Piece(cast(Any, kind), text))]
    assert lines == ["[calculator] 1+1 = 2"]
    assert fold.close() == ["[calculator] 2+2 = 4"]
    assert fold.close() == []


def test_plain_text_is_what_it_is() -> None:
    for stream, shown in (
        (io.StringIO(), "a\x1b[2J**b**\nsaid\x07\n"),
        (Tty(), "a\u241b[2J**b**\n[calculator] 1 = 2\nsaid\u2407\n"),
    ):
        screen = PlainScreen(stream)
        screen.begin(str)
        screen.end()  # refused: nothing is printed
        screen.begin(str)
        for piece in (
            Piece("text", "a\x1b[2J"), Piece("python", "1"), Piece("python_output", "2"),
            Piece("text", "**b**"),
        ):  # fmt: skip
            screen.show(piece)
        screen.end()
        screen.say("said\x07")
        assert stream.getvalue() == shown


def test_markdown_is_for_terminals_that_can_show_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert isinstance(make_screen(Tty()), MarkdownScreen)
    assert isinstance(make_screen(Tty(), plain=True), PlainScreen)
    assert isinstance(make_screen(io.StringIO()), PlainScreen)
    assert isinstance(make_screen(), PlainScreen)
    monkeypatch.setenv("NO_COLOR", "1")
    assert isinstance(make_screen(Tty()), PlainScreen)
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_screen(Tty()), PlainScreen)


def test_remarks_are_harmless() -> None:
    terminal = Terminal()
    markdown_screen(terminal).say("a\x1b[2J [bold]b[/bold]")
    assert terminal.text == "a\u241b[2J [bold]b[/bold]"

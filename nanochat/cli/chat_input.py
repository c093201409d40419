"""Keys -> a message.   in: a terminal   out: what was typed   who calls: chat_loop.py

Enter sends.  A new line: Alt-Enter, Ctrl-J, a backslash at the end, or text that opens with three
quotation marks, until it ends with three.  Tab completes commands and the files they take.
Read next: chat_commands.py (what a slash does), chat_files.py (what is kept of it).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from prompt_toolkit import PromptSession
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.styles import Style

from nanochat.cli.chat_commands import COMMANDS

if TYPE_CHECKING:
    from prompt_toolkit.history import History

__all__ = ["CommandCompleter", "is_unfinished", "make_session", "message_of"]

FENCE = '"""'
TAKES_A_FILE = ("/save", "/load")
STYLE = Style.from_dict(
    {
        "prompt": "bold ansicyan",
        "bottom-toolbar": "noreverse ansibrightblack",
        "bottom-toolbar.full": "noreverse ansiyellow",
    }
)


def make_session(
    history: "History", toolbar: Callable[[], StyleAndTextTuples]
) -> "PromptSession[str]":
    """A line editor for a conversation."""
    return PromptSession(
        [("class:prompt", "> ")],
        multiline=True,
        prompt_continuation="  ",
        history=history,
        auto_suggest=AutoSuggestFromHistory(),
        completer=CommandCompleter(),
        complete_while_typing=True,
        key_bindings=_keys(),
        bottom_toolbar=toolbar,
        style=STYLE,
        reserve_space_for_menu=5,
        enable_history_search=False,
    )


def is_unfinished(text: str) -> bool:
    """Whether Enter begins a new line instead of sending."""
    return _opens_fence(text) or (text.endswith("\\") and not text.endswith("\\\\"))


def message_of(text: str) -> str:
    """What was typed as it is sent: without the quotation marks around it, and blanks at the ends.

    A text in quotation marks keeps its own.
    """
    stripped = text.strip()
    if stripped.startswith(FENCE) and not _opens_fence(text):
        return stripped.removeprefix(FENCE).removesuffix(FENCE).strip("\n")
    return stripped


def _opens_fence(text: str) -> bool:
    stripped = text.strip()
    is_closed = stripped.endswith(FENCE) and len(stripped) >= 2 * len(FENCE)
    return stripped.startswith(FENCE) and not is_closed


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _enter(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.complete_state and buffer.complete_state.current_completion:
            buffer.complete_state = None  # what was chosen is in the text already
        elif is_unfinished(buffer.text) and buffer.document.is_cursor_at_the_end:
            if not _opens_fence(buffer.text):
                buffer.delete_before_cursor()  # the backslash has done its work
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    return keys


class CommandCompleter(Completer):
    """Commands after a slash, and files after the commands that take one."""

    def __init__(self) -> None:
        self._files = PathCompleter(expanduser=True)

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        """What the word before the cursor may become."""
        text = document.text_before_cursor
        word, blank, rest = text.partition(" ")
        if not blank and text.startswith("/"):
            yield from _matching(text)
        elif word in TAKES_A_FILE and "\n" not in rest:
            with suppress(OSError):
                yield from self._files.get_completions(Document(rest), complete_event)


def _matching(text: str) -> Iterator[Completion]:
    for name, command in COMMANDS.items():
        if name.startswith(text):
            yield Completion(name, start_position=-len(text), display_meta=command.summary)

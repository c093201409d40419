"""A chat on a terminal.   in: a Talk, keys   out: answers on the screen   who calls: chat.py

Nothing ends it but /quit and Ctrl-D: Ctrl-C stops an answer or gives a line up, and what goes
wrong with an answer is told in one line.
Read next: chat_input.py (keys), chat_commands.py, chat_interrupt.py (how an answer is shown).
"""

from collections.abc import Callable, Generator
from pathlib import Path

from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.history import History, InMemoryHistory

from nanochat.cli.chat_commands import Desk, is_command, obey
from nanochat.cli.chat_files import history_path, open_history
from nanochat.cli.chat_input import make_session, message_of
from nanochat.cli.chat_interrupt import interrupts_go_to, show_answer
from nanochat.cli.chat_screen import Screen
from nanochat.cli.chat_talk import Piece, Talk
from nanochat.cli.terminal import notice
from nanochat.common.errors import DataError, NanochatError

__all__ = ["answer_status", "converse", "toolbar_text"]

NEARLY_FULL = 0.9  # of the context


def converse(talk: Talk, screen: Screen, home: Path) -> None:
    """Questions and answers until the person leaves."""
    desk = Desk(talk=talk, say=screen.say, answer=lambda pieces: _answer(talk, screen, pieces))
    session = make_session(_history(home), lambda: _toolbar(talk))
    screen.say(f"{talk.backend.name} ({talk.backend.place}). /help lists commands, Ctrl-D leaves.")
    # Between answer and prompt, where Ctrl-C stops nothing, it does nothing.
    with interrupts_go_to(lambda number, frame: None):
        while not desk.is_over:
            draft, desk.draft = desk.draft, ""
            typed = _read(lambda default: session.prompt(default=default), draft)
            if typed is None:
                return
            _do(desk, typed)


def _do(desk: Desk, typed: str) -> None:
    try:
        if is_command(typed):
            obey(desk, typed)
        elif message := message_of(typed):
            desk.answer(desk.talk.ask(message))
    except NanochatError as error:
        notice(str(error))


def toolbar_text(talk: Talk) -> str:
    """Model, context and speed in one line."""
    backend, last = talk.backend, talk.last
    used = "?" if talk.num_context_tokens is None else str(talk.num_context_tokens)
    parts = [backend.name, f"context {used}/{backend.context_len or '?'} tokens"]
    if last is not None and last.tokens_per_s is not None:
        parts.append(f"{last.tokens_per_s:.1f} tokens/s")
    return "  |  ".join(parts)


def answer_status(talk: Talk) -> Callable[[], str]:
    """How the answer that comes now goes."""

    def status() -> str:
        last = talk.last
        if last is None or not last.has_begun:
            return "reading; Ctrl-C stops"
        speed = f", {last.tokens_per_s:.1f} tokens/s" if last.tokens_per_s is not None else ""
        count = f"{last.num_tokens} tokens{speed}; " if last.num_tokens is not None else ""
        return f"{count}Ctrl-C stops"

    return status


def _answer(talk: Talk, screen: Screen, pieces: Generator[Piece, None, None]) -> None:
    try:
        show_answer(screen, pieces, answer_status(talk))
    except KeyboardInterrupt:
        screen.say("(stopped)")
        return
    if remark := _remark(talk):
        screen.say(remark)


def _remark(talk: Talk) -> str:
    """Why an answer ended, if not by itself."""
    reply = talk.last
    if reply is None or reply.finish_reason in (None, "stop"):
        return ""
    if reply.finish_reason != "length":
        return f"(ended: {reply.finish_reason})"
    context_len, used = talk.backend.context_len, talk.num_context_tokens
    if context_len is not None and used is not None and used >= context_len - 1:
        return f"(the context of {context_len} tokens is full: /drop forgets the oldest turns)"
    return f"(stopped at {reply.num_tokens or 'the most'} tokens: /max-tokens allows more)"


def _read(prompt: Callable[[str], str], draft: str) -> str | None:
    """What was typed; None at the end of it.  Ctrl-C gives up the line."""
    while True:
        try:
            return prompt(draft)
        except KeyboardInterrupt:
            draft = ""
        except EOFError:
            return None


def _toolbar(talk: Talk) -> StyleAndTextTuples:
    context_len, used = talk.backend.context_len, talk.num_context_tokens
    is_full = context_len and used and used > NEARLY_FULL * context_len
    name = "class:bottom-toolbar.full" if is_full else "class:bottom-toolbar"
    return [(name, f" {toolbar_text(talk)} ")]


def _history(home: Path) -> History:
    try:
        return open_history(history_path(home))
    except DataError as error:
        notice(f"{error}: it is kept for this session only")
        return InMemoryHistory()

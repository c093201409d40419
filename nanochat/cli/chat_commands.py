"""What a slash does.   in: a line such as /temperature 0.5   out: a changed Desk, a remark
who calls: chat_loop.py, chat_input.py (for completion)

A command is a slash and a word; all else that begins with a slash (//, /etc/hosts) is said to the
model as it was typed.
Read next: chat_talk.py (the conversation), chat_files.py (/save, /load).
"""

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nanochat.cli.chat_files import load_conversation, save_conversation
from nanochat.cli.chat_talk import Piece, Talk
from nanochat.common.config import nearest
from nanochat.common.errors import ConfigError, DataError

__all__ = ["COMMANDS", "Command", "Desk", "is_command", "obey"]

KEYS = """\
Enter sends. Alt-Enter or Ctrl-J begins a new line; so does Enter after a backslash, or between
triple quotation marks. Ctrl-C stops an answer, Ctrl-D leaves. Arrow up brings back what was
typed."""


@dataclass
class Desk:
    """What commands work on."""

    talk: Talk
    say: Callable[[str], None]
    """Tell the person something."""
    answer: Callable[[Generator[Piece, None, None]], None]
    """Show an answer as it comes."""
    is_over: bool = False
    draft: str = ""
    """What stands in the next line to begin with."""
    path: Path | None = None
    """Where the conversation was saved to or loaded from."""


@dataclass(frozen=True, slots=True)
class Command:
    """One word after a slash."""

    argument: str
    summary: str
    run: Callable[[Desk, str], None]


def is_command(text: str) -> bool:
    """Whether it is for us: a slash and a word, neither two slashes nor a path."""
    words = text.split(maxsplit=1)
    return text.startswith("/") and "/" not in words[0][1:]


def obey(desk: Desk, line: str) -> None:
    """Do what the line says; what is wrong with it is told.

    Raises: what an answer raises (/retry); DataError, ConfigError for a wrong argument.
    """
    name, *after = line.split(maxsplit=1)
    rest = "".join(after).strip()
    command = COMMANDS.get(name)
    if command is None:
        raise ConfigError(
            f"there is no command {name}{nearest(name, COMMANDS)} (/help lists them; a space "
            "before the slash says it to the model)"
        )
    if rest and not command.argument:
        raise ConfigError(f"{name} takes nothing after it, got {rest[:40]!r}")
    command.run(desk, rest)


def _help(desk: Desk, rest: str) -> None:
    width = max(len(f"{name} {command.argument}") for name, command in COMMANDS.items())
    for name, command in COMMANDS.items():
        desk.say(f"{f'{name} {command.argument}':{width}}  {command.summary}")
    desk.say(f"\n{KEYS}")


def _system(desk: Desk, rest: str) -> None:
    if rest:
        desk.talk.system = "" if rest == "clear" else rest
    system = desk.talk.system
    desk.say(f"the system message is: {system}" if system else "there is no system message")


def _setting(name: str, kind: type[int] | type[float]) -> Callable[[Desk, str], None]:
    """A command that shows a setting, sets it, or leaves it to the default again."""
    word = name.replace("_", "-")

    def run(desk: Desk, rest: str) -> None:
        talk = desk.talk
        if rest:
            value: Any
            try:
                value = None if rest == "default" else kind(rest)
                talk.settings = replace(talk.settings, **{name: value})
            except ConfigError as error:
                raise ConfigError(f"{error}; it stays {_shown(talk, name)}") from None
            except ValueError:
                wanted = "a whole number" if kind is int else "a number"
                raise ConfigError(
                    f"{word} is {rest[:40]!r}, expected {wanted} or default; it stays "
                    f"{_shown(talk, name)}"
                ) from None
        desk.say(f"{word} is {_shown(talk, name)}")

    return run


def _shown(talk: Talk, name: str) -> str:
    value = getattr(talk.settings, name)
    if value is not None:
        return f"{value:g}" if isinstance(value, float) else str(value)
    if talk.backend.defaults is None:
        return "the server's default"
    return f"{getattr(talk.backend.defaults, name)}, the default"


def _save(desk: Desk, rest: str) -> None:
    talk = desk.talk
    if not talk.turns:
        raise DataError("there is nothing to save yet")
    path = Path(rest).expanduser() if rest else desk.path
    path = path or Path(time.strftime("chat-%Y%m%d-%H%M%S.json"))
    is_ours = desk.path is not None and path.absolute() == desk.path.absolute()
    desk.path = save_conversation(path, talk.conversation, overwrite=is_ours)
    desk.say(f"saved {len(talk.turns)} messages to {desk.path}")


def _load(desk: Desk, rest: str) -> None:
    if not rest:
        raise ConfigError("/load wants the name of a file that /save wrote")
    path, conversation = load_conversation(Path(rest))
    desk.talk.load(conversation)
    desk.path = path
    waiting = "; /retry answers the last question" if desk.talk.pending is not None else ""
    desk.say(f"loaded {len(conversation)} messages from {path}{waiting}")


def _retry(desk: Desk, rest: str) -> None:
    desk.answer(desk.talk.retry())


def _undo(desk: Desk, rest: str) -> None:
    desk.draft = desk.talk.undo()
    left = len(desk.talk.turns) // 2
    desk.say(f"taken back: the last question and its answer; {left} are left")


def _drop(desk: Desk, rest: str) -> None:
    if rest and (not rest.isdecimal() or not int(rest)):
        raise ConfigError(f"/drop is {rest[:40]!r}, expected how many questions to forget")
    dropped = desk.talk.drop(int(rest) if rest else None)
    left = len(desk.talk.turns) // 2
    waiting = "; /retry asks the last one again" if desk.talk.pending is not None else ""
    desk.say(f"forgotten: the oldest {dropped} questions and answers; {left} are left{waiting}")


def _clear(desk: Desk, rest: str) -> None:
    desk.talk.clear()
    desk.path = None
    desk.say("forgotten")


def _stats(desk: Desk, rest: str) -> None:
    talk = desk.talk
    backend, last = talk.backend, talk.last
    used = "?" if talk.num_context_tokens is None else talk.num_context_tokens
    desk.say(f"model    {backend.name} ({backend.place})")
    desk.say(f"context  {used} of {backend.context_len or '?'} tokens, {len(talk.turns)} messages")
    if last is None or not last.first_s:
        return
    speed = last.tokens_per_s
    desk.say(
        f"answer   {'?' if last.num_tokens is None else last.num_tokens} tokens, "
        f"{'?' if speed is None else f'{speed:.1f}'} tokens/s, "
        f"first after {(last.first_s - last.asked_s) * 1000:.0f} ms, "
        f"ended by {last.finish_reason or 'you'}"
    )


def _quit(desk: Desk, rest: str) -> None:
    desk.is_over = True


COMMANDS: dict[str, Command] = {
    "/help": Command("", "show this", _help),
    "/system": Command("[TEXT]", "what the model is told first; /system clear removes it", _system),
    "/temperature": Command(
        "[N]",
        "0: always the likeliest word; 1: as the model has it",
        _setting("temperature", float),
    ),
    "/top-p": Command(
        "[N]", "only the likeliest words that add up to this", _setting("top_p", float)
    ),
    "/top-k": Command("[N]", "only the N likeliest words; 0: all", _setting("top_k", int)),
    "/max-tokens": Command("[N]", "the longest answer", _setting("max_tokens", int)),
    "/save": Command("[FILE]", "write the conversation, for /load or nanochat sft --chats", _save),
    "/load": Command("FILE", "go on from a saved conversation", _load),
    "/retry": Command("", "another answer to the last question", _retry),
    "/undo": Command("", "take the last question back and edit it", _undo),
    "/drop": Command("[N]", "forget the oldest questions; without N, as many as needed", _drop),
    "/clear": Command("", "forget what was said", _clear),
    "/stats": Command("", "model, context and speed", _stats),
    "/quit": Command("", "leave; so do /exit and Ctrl-D", _quit),
    "/exit": Command("", "leave", _quit),
}

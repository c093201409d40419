"""Conversations and history on the disk.   in: paths   out: conversations, a prompt_toolkit history
who calls: chat_commands.py, chat_loop.py

A saved conversation is {"messages": [{"role", "content"}, ...]}: OpenAI's shape, and one that
`nanochat sft --chats` reads.
Read next: common/messages.py (what a message is), corpus/conversations.py (who else reads it).
"""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat.cli.chat_talk import check_turns
from nanochat.common.errors import DataError
from nanochat.common.files import read_json, write_json_atomically
from nanochat.common.messages import Conversation, conversation_from_json, conversation_to_json

if TYPE_CHECKING:
    from prompt_toolkit.history import History

__all__ = ["history_path", "load_conversation", "open_history", "save_conversation"]

MAX_CONVERSATION_BYTES = 2**24
MAX_HISTORY_BYTES = 2**20  # some ten thousand lines; reading them takes milliseconds


def save_conversation(path: Path, conversation: Conversation, *, overwrite: bool = False) -> Path:
    """Write it; the path, which gets the suffix .json if it has none.

    Raises: DataError if there is such a file already, or it cannot be written.
    """
    path = _with_suffix(path)
    if path.exists() and not overwrite:
        raise DataError(f"{path} exists already: choose another name, or remove it first")
    try:
        write_json_atomically(path, {"messages": conversation_to_json(conversation)})
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror})") from None
    return path


def load_conversation(path: Path) -> tuple[Path, Conversation]:
    """The file, with .json added where only that exists, and the conversation in it.

    Raises: DataError in one line for what is missing, no JSON, or no conversation.
    """
    path = path.expanduser()
    try:
        path = path if path.exists() else _with_suffix(path)
        size_bytes = path.stat().st_size if path.is_file() else 0
        if size_bytes > MAX_CONVERSATION_BYTES:
            raise DataError(
                f"{path} has {size_bytes} bytes, expected one conversation of at most "
                f"{MAX_CONVERSATION_BYTES}"
            )
        value = read_json(path)
    except (OSError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "nested too deeply"
        raise DataError(f"{path} cannot be read ({reason})") from None
    messages = value.get("messages") if isinstance(value, dict) else value
    if not isinstance(messages, list):
        raise DataError(f'{path}: expected {{"messages": [...]}}, one conversation')
    conversation = conversation_from_json(messages, str(path))
    try:
        check_turns(conversation)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    return path, conversation


def _with_suffix(path: Path) -> Path:
    path = path.expanduser()
    return path if path.suffix else path.with_name(f"{path.name}.json")


def history_path(home: Path) -> Path:
    """Where what was typed is kept for the next session."""
    return home / "chat_history"


def open_history(path: Path) -> "History":
    """What was typed before, for the arrow keys; nobody else may read it.

    A file that has become large loses its older half.
    Raises: DataError if the file cannot be used.
    """
    from prompt_toolkit.history import FileHistory

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
            if os.fstat(descriptor).st_size > MAX_HISTORY_BYTES:
                _keep_newer_half(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DataError(f"{path} cannot keep what is typed ({error.strerror})") from None
    return FileHistory(str(path))


def _keep_newer_half(descriptor: int) -> None:
    size_bytes = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, MAX_HISTORY_BYTES // 2, size_bytes - MAX_HISTORY_BYTES // 2)
    entry = re.search(rb"\n# ", tail)  # where the next entry begins
    os.ftruncate(descriptor, 0)
    os.write(descriptor, tail[entry.start() :] if entry else b"")

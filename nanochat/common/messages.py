"""What people and models say to each other.   in: JSON   out: Message, Part
who calls: corpus, tokenizer.chat, evals, engine, server

A conversation is a tuple of messages; an assistant's content is text, or parts when it used a tool.
Read next: tokenizer/chat.py (conversation -> tokens), corpus/conversations.py (files -> these).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from nanochat.common.errors import DataError
from nanochat.common.quote import quoted

__all__ = [
    "Conversation",
    "Message",
    "Part",
    "PartKind",
    "Role",
    "conversation_from_json",
    "conversation_to_json",
]

Role = Literal["system", "user", "assistant"]
PartKind = Literal["text", "python", "python_output"]


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of an assistant's turn: words, a calculator's expression, or its answer."""

    kind: PartKind
    text: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn.  Only an assistant's content may be parts."""

    role: Role
    content: str | tuple[Part, ...]


Conversation = tuple[Message, ...]


def conversation_from_json(messages: Sequence[Any], where: str = "conversation") -> Conversation:
    """The messages of one conversation, checked; `where` names the file and line in errors.

    Example: conversation_from_json([{"role": "user", "content": "Hi"}])
    Raises:  DataError for anything that is not role + content in the shapes of karpathy/nanochat
             (tasks/customjson.py at 2f09686): string content, or for the assistant a list of
             {"type", "text"}.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise DataError(f"{where}: expected a non-empty list of messages, got {quoted(messages)}")
    return tuple(
        _message(message, f"{where}, message {index}") for index, message in enumerate(messages)
    )


def conversation_to_json(conversation: Conversation) -> list[dict[str, Any]]:
    """The inverse of `conversation_from_json`."""
    return [
        {
            "role": message.role,
            "content": message.content
            if isinstance(message.content, str)
            else [{"type": part.kind, "text": part.text} for part in message.content],
        }
        for message in conversation
    ]


def _message(raw: Any, where: str) -> Message:
    if not isinstance(raw, Mapping) or "role" not in raw or "content" not in raw:
        raise DataError(f'{where}: expected {{"role": ..., "content": ...}}, got {quoted(raw)}')
    role, content = raw["role"], raw["content"]
    if role not in get_args(Role):
        raise DataError(
            f"{where}: role is {quoted(role)}, expected one of {', '.join(get_args(Role))}"
        )
    if isinstance(content, str):
        return Message(role, content)
    if role == "assistant" and isinstance(content, list) and content:
        return Message(role, tuple(_part(part, where) for part in content))
    raise DataError(f"{where}: content of a {role} message must be a string, got {quoted(content)}")


def _part(raw: Any, where: str) -> Part:
    if (
        isinstance(raw, Mapping)
        and raw.get("type") in get_args(PartKind)
        and isinstance(raw.get("text"), str)
    ):
        return Part(raw["type"], raw["text"])
    raise DataError(
        f'{where}: expected a part {{"type": "text"|"python"|"python_output", "text": ...}}, '
        f"got {quoted(raw)}"
    )

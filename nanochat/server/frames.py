"""Tokens -> JSON in OpenAI's shapes.   in: pieces of answers   out: frames of a stream, bodies
who calls: stream.py

A frame is made of bytes that stay the same and what a token adds, not by rendering an object: at 64
streams that is the difference between 1% and 8% of a core.
    ChatFrames        POST /v1/chat/completions
    CompletionFrames  POST /v1/completions     (completion_frames.py)
    LegacyFrames      POST /chat/completions   (legacy.py)
Read next: stream.py (when a frame is sent), responses.py (the shapes as types).
"""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from json.encoder import encode_basestring
from typing import Any, NamedTuple, Protocol

from nanochat.engine.request import NO_TOKEN, TokenEvent
from nanochat.server.responses import Usage
from nanochat.server.words import Words
from nanochat.tokenizer.tokenizer import Tokenizer

__all__ = [
    "DONE",
    "ChatFrames",
    "Frames",
    "Head",
    "Piece",
    "as_json",
    "as_number",
    "frame_of",
    "is_written",
    "token_bytes",
    "token_string",
    "whole_of",
]

DONE = b"data: [DONE]\n\n"
LEAST_LOGPROB = -9999.0  # OpenAI's; JSON has no infinity


class Piece(NamedTuple):
    """A token of one of the answers to a request."""

    choice: int
    """Which of the answers."""
    event: TokenEvent


class Frames(Protocol):
    """How answers are written; one for each request."""

    def first(self) -> bytes:
        """What comes before any token."""

    def of(self, piece: Piece) -> bytes:
        """What a token adds; empty if nothing."""

    def last(self, usage: Usage) -> bytes:
        """What comes after all tokens."""

    def add(self, piece: Piece) -> None:
        """Keep what a token adds to a body that is not streamed."""

    def whole(self, usage: Usage) -> bytes:
        """That body, of all that was added."""


class Head(NamedTuple):
    """What every frame of an answer begins with."""

    id: str
    model: str
    created: int

    @classmethod
    def new(cls, id: str, model: str) -> "Head":
        """Of an answer that begins now."""
        return cls(id, model, int(time.time()))

    def body(self, kind: str) -> dict[str, Any]:
        """As a body has it."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def begin(self, kind: str) -> bytes:
        """As a frame has it, up to the number of its choice."""
        return b"data: " + as_json(self.body(kind))[:-1] + b',"choices":[{"index":'


@dataclass(slots=True)
class _Choice:
    """What was added to one answer, as JSON where that is the larger part of the work: one call
    for all of it would hold Python's lock for seconds."""

    texts: list[str] = field(default_factory=list)
    logprobs: list[bytes] = field(default_factory=list)
    reason: str | None = None


class ChatFrames:
    """Answers to a conversation: role, then content, then finish_reason, then usage if asked."""

    def __init__(
        self,
        head: Head,
        tokenizer: Tokenizer,
        *,
        num_choices: int,
        has_logprobs: bool = False,
        has_usage_frame: bool = False,
        is_tool_shown: bool = False,
        stop_tokens: Sequence[int] = (),
    ) -> None:
        self._head, self._tokenizer, self._stop_tokens = head, tokenizer, frozenset(stop_tokens)
        self._has_logprobs, self._has_usage_frame = has_logprobs, has_usage_frame
        self._words = [Words(tokenizer, is_shown=is_tool_shown) for _ in range(num_choices)]
        self._choices = [_Choice() for _ in range(num_choices)]
        usage = b',"usage":null' if has_usage_frame else b""
        begin = head.begin("chat.completion.chunk")
        self._begins = [b"%s%d" % (begin, index) for index in range(num_choices)]
        self._end = b"}]%s}\n\n" % usage

    def first(self) -> bytes:
        """The role, for every choice."""
        delta = b',"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null'
        return b"".join(begin + delta + self._end for begin in self._begins)

    def of(self, piece: Piece) -> bytes:
        """A frame of content, and one that says why the answer ends."""
        index, event = piece
        text, logprobs = self._told(piece)
        begin, frames = self._begins[index], b""
        if text or logprobs:
            told = b"null" if logprobs is None else _chat_logprobs([as_json(logprobs)])
            frames = b'%s,"delta":{"content":%s},"logprobs":%s,"finish_reason":null%s' % (
                begin, encode_basestring(text).encode(), told, self._end
            )  # fmt: skip
        if event.finish_reason is not None:
            frames += b'%s,"delta":{},"logprobs":null,"finish_reason":"%s"%s' % (
                begin, event.finish_reason.encode(), self._end
            )  # fmt: skip
        return frames

    def last(self, usage: Usage) -> bytes:
        """The tokens, if they are asked for, and [DONE]."""
        if not self._has_usage_frame:
            return DONE
        body = {**self._head.body("chat.completion.chunk"), "choices": [], "usage": usage.body()}
        return frame_of(body) + DONE

    def add(self, piece: Piece) -> None:
        """One more token of a chat.completion."""
        text, told = self._told(piece)
        choice = self._choices[piece.choice]
        choice.texts.append(text)
        if told is not None:
            choice.logprobs.append(as_json(told))
        choice.reason = piece.event.finish_reason

    def whole(self, usage: Usage) -> bytes:
        """A chat.completion."""
        choices = [
            b'{"index":%d,"message":%s,"logprobs":%s,"finish_reason":%s}' % (
                index,
                as_json(
                    {"role": "assistant", "content": "".join(choice.texts), "refusal": None}
                ),
                _chat_logprobs(choice.logprobs) if self._has_logprobs else b"null",
                as_json(choice.reason),
            )
            for index, choice in enumerate(self._choices)
        ]  # fmt: skip
        return whole_of(self._head.body("chat.completion"), choices, usage)

    def _told(self, piece: Piece) -> tuple[str, dict[str, Any] | None]:
        """The text of a token, and how likely it was if that is asked for."""
        words, event = self._words[piece.choice], piece.event
        was_hidden = words.is_hidden
        text = words.of(event)
        if not self._has_logprobs or not is_written(event, self._stop_tokens):
            return text, None
        if event.is_forced or was_hidden or words.is_hidden:
            return text, None
        return text, self._logprob(event)

    def _logprob(self, event: TokenEvent) -> dict[str, Any]:
        top = [self._one(token, logprob) for token, logprob in event.top_logprobs]
        return {**self._one(event.token, event.logprob), "top_logprobs": top}

    def _one(self, token: int, logprob: float) -> dict[str, Any]:
        return {
            "token": token_string(self._tokenizer, token),
            "logprob": as_number(logprob),
            "bytes": list(token_bytes(self._tokenizer, token)),
        }


def _chat_logprobs(content: Iterable[bytes]) -> bytes:
    return b'{"content":[%s],"refusal":null}' % b",".join(content)


def whole_of(head: Mapping[str, Any], choices: Iterable[bytes], usage: Usage) -> bytes:
    """A body whose choices are JSON already."""
    return b'%s,"choices":[%s],"usage":%s}' % (
        as_json(head)[:-1], b",".join(choices), as_json(usage.body())
    )  # fmt: skip


def is_written(event: TokenEvent, stop_tokens: frozenset[int]) -> bool:
    """Whether a token is part of the answer: not one that only ends it."""
    return event.token != NO_TOKEN and not (event.finish_reason and event.token in stop_tokens)


def token_bytes(tokenizer: Tokenizer, token: int) -> bytes:
    """What a token stands for; a special one stands for its name."""
    return tokenizer.decode_bytes([token])


def token_string(tokenizer: Tokenizer, token: int) -> str:
    """The same as text; bytes that are no whole characters as OpenAI writes them:
    bytes:\\xe2\\x98."""
    raw = token_bytes(tokenizer, token)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def as_number(logprob: float) -> float:
    """A log-probability that JSON can hold."""
    return max(logprob, LEAST_LOGPROB)


def frame_of(body: Mapping[str, Any]) -> bytes:
    """A body as a server-sent event."""
    return b"data: " + as_json(body) + b"\n\n"


def as_json(body: Any) -> bytes:
    """A body, a frame's data or a part of either, as it goes over the wire: compact, in UTF-8."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()

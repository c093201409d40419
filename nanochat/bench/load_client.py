"""One question -> what was answered, and when.   in: a connection, a prompt   out: Answer
who calls: load.py

A dialect knows one server's bodies: ours and every other with OpenAI's chat, llama.cpp's with
prompts of token ids, and the private frames of the old karpathy/nanochat page.  Tokens are counted
from `usage`, never from frames: one frame may hold several tokens, or none.
Read next: load_wire.py (the bytes below), load_metrics.py (what becomes of answers).
"""

import asyncio
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Protocol

from nanochat.bench.load_wire import Connection, EventParser, WireError

__all__ = ["Answer", "Ask", "ChatDialect", "Dialect", "PrivateDialect", "TokensDialect", "ask"]

MAX_ERROR_CHARACTERS = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """What one request asks for."""

    words: str
    """The prompt."""
    prompt_tokens: int
    """How many tokens it is meant to be."""
    output_tokens: int
    """The most to be answered."""


@dataclass(kw_only=True, slots=True)
class Answer:
    """One request, from sending to the end.   Units: times in seconds of perf_counter."""

    user: int
    sent_s: float
    times_s: list[float] = field(default_factory=list)
    """When each frame with text came."""
    end_s: float = 0.0
    """When the last frame of the answer came, or the failure."""
    status: int = 0
    """Of HTTP; 0: none came."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    finish_reason: str = ""
    error: str = ""
    retry_after_s: float = 0.0

    @property
    def is_success(self) -> bool:
        """Whether it came whole."""
        return self.status == 200 and not self.error


class Dialect(Protocol):
    """How a server is asked, and how its frames are read."""

    @property
    def path(self) -> str:
        """Where requests are posted."""

    def body(self, ask: Ask) -> Mapping[str, Any]:
        """The body of a request."""

    def read(self, frame: bytes, ask: Ask, answer: Answer, now_s: float) -> bool:
        """Note a frame; whether the stream is over.

        Raises: WireError for a frame that cannot be read.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatDialect:
    """OpenAI's chat completions, streamed with usage."""

    model: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    """What else stands in each body."""
    path: str = "/v1/chat/completions"

    def body(self, ask: Ask) -> Mapping[str, Any]:
        """One message of a user."""
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": ask.words}],
            "max_tokens": ask.output_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.fields,
        }

    def read(self, frame: bytes, ask: Ask, answer: Answer, now_s: float) -> bool:
        """A chunk, an error, or [DONE]."""
        return _read_openai(frame, answer, now_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class TokensDialect:
    """OpenAI's completions with a prompt of token ids, as llama.cpp's server reads them: a model
    without a vocabulary of words is asked for exactly as many tokens."""

    vocab_size: int
    fields: Mapping[str, Any] = field(default_factory=dict)
    path: str = "/v1/completions"

    def body(self, ask: Ask) -> Mapping[str, Any]:
        """Ids that follow from the words, so that two prompts share no beginning."""
        first = 1000 + zlib.crc32(ask.words.encode()) % 100_000
        span = self.vocab_size - 600  # neither the bytes at the beginning nor what is special
        tokens = [300 + (first * (place + 1)) % span for place in range(ask.prompt_tokens)]
        return {
            "prompt": tokens,
            "max_tokens": ask.output_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.fields,
        }

    def read(self, frame: bytes, ask: Ask, answer: Answer, now_s: float) -> bool:
        """A chunk, an error, or [DONE]."""
        return _read_openai(frame, answer, now_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class PrivateDialect:
    """karpathy/nanochat's chat_web.py, before it was taken out in July 2026.

    It tells no usage: an answer that ended is taken to have as many tokens as were asked for, which
    random weights end before once in some thousand tokens; that is in its favour.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    path: str = "/chat/completions"

    def body(self, ask: Ask) -> Mapping[str, Any]:
        """One message of a user."""
        message = {"role": "user", "content": ask.words}
        return {"messages": [message], "max_tokens": ask.output_tokens, **self.fields}

    def read(self, frame: bytes, ask: Ask, answer: Answer, now_s: float) -> bool:
        """{"token": text} or {"done": true}."""
        content = _object(frame)
        answer.end_s = now_s
        if content.get("done"):
            answer.prompt_tokens, answer.output_tokens = ask.prompt_tokens, ask.output_tokens
            answer.finish_reason = "length"
            return True
        if content.get("token"):
            answer.times_s.append(now_s)
        return False


async def ask(
    connection: Connection,
    dialect: Dialect,
    wanted: Ask,
    *,
    user: int = 0,
    due_s: float | None = None,
    timeout_s: float = 600.0,
) -> Answer:
    """The answer to one request; whatever goes wrong is in it.

    Times count from `due_s`, when it should have been sent: a generator that is late hides no wait.
    """
    answer = Answer(user=user, sent_s=perf_counter() if due_s is None else due_s)
    try:
        async with asyncio.timeout(timeout_s):
            await _ask(connection, dialect, wanted, answer)
        if answer.is_success and not answer.prompt_tokens:
            answer.error = "the stream ended without usage"
    except TimeoutError:
        answer.error = f"not complete after {timeout_s:g} s"
    except (WireError, OSError) as error:
        answer.error = f"{type(error).__name__}: {error}"
    finally:
        if answer.error or not answer.is_success:
            connection.close()
            answer.end_s = perf_counter()
    return answer


async def _ask(connection: Connection, dialect: Dialect, wanted: Ask, answer: Answer) -> None:
    body = json.dumps(dialect.body(wanted)).encode()
    await connection.send("POST", dialect.path, body)
    events, whole, is_over = EventParser(), b"", False
    while not connection.response.is_done:
        piece = await connection.receive()
        if connection.response.status != 200:
            whole += piece
            continue
        now_s = perf_counter()
        for frame in events.feed(piece):
            is_over = is_over or dialect.read(frame, wanted, answer, now_s)
    answer.status = connection.response.status
    if answer.status != 200:
        answer.error = _error_text(whole)
        wait = connection.response.headers.get("retry-after", "")
        answer.retry_after_s = float(wait) if wait.isdecimal() else 0.0
    elif not is_over:
        raise WireError("the stream ended before the answer did")


def _read_openai(frame: bytes, answer: Answer, now_s: float) -> bool:
    if frame == b"[DONE]":
        return True
    content = _object(frame)
    if "error" in content:
        answer.error = _error_text(frame)
        return True
    if usage := content.get("usage"):
        answer.prompt_tokens = int(usage["prompt_tokens"])
        answer.output_tokens = int(usage["completion_tokens"])
    for choice in content.get("choices") or ():
        text = choice["delta"].get("content") if "delta" in choice else choice.get("text")
        if text:
            answer.times_s.append(now_s)
        answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
        answer.end_s = now_s
    return False


def _object(frame: bytes) -> dict[str, Any]:
    try:
        content = json.loads(frame)
    except ValueError:
        raise WireError(f"a frame that is no JSON: {frame[:60]!r}") from None
    if not isinstance(content, dict):
        raise WireError(f"a frame that is no object: {frame[:60]!r}")
    return content


def _error_text(body: bytes) -> str:
    """OpenAI's message, or the body itself."""
    try:
        text = str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        text = body.decode("utf-8", "replace")
    return " ".join(text.split())[:MAX_ERROR_CHARACTERS] or "an empty error body"

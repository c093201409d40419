"""Token events -> HTTP.   in: an engine's events   out: a text, or server-sent events
who calls: app.py

The engine's thread hands events to the event loop, which never waits for it.  Who goes away is
noticed while waiting, with or without streaming, and the engine drops the request within a step.
Read next: app.py, responses.py (the frames' bodies).
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from nanochat.common.errors import Aborted
from nanochat.engine.request import FinishReason, Request, TokenEvent
from nanochat.server.errors import error_body, to_api_error
from nanochat.server.responses import Usage, chunk_body

if TYPE_CHECKING:
    from nanochat.server.cache import CacheAnswer, CachePolicy

__all__ = ["Answer", "AnswerDoor", "EngineDoor", "EventStream", "while_connected"]

T = TypeVar("T")


class EngineDoor(Protocol):
    """What the server needs of an engine."""

    def submit(
        self, request: Request, deliver: Callable[[TokenEvent | Exception], None], /
    ) -> None:
        """Have the events of a request delivered, from whatever thread."""

    def cancel(self, request_id: str, /) -> None:
        """Drop a request; unknown ones are ignored."""


class AnswerDoor(Protocol):
    """What an answer needs: an engine behind a cache and a queue."""

    def submit(
        self,
        request: Request,
        deliver: Callable[[TokenEvent | Exception], None],
        *,
        tenant: str = "",
        policy: "CachePolicy",
    ) -> "CacheAnswer":
        """As EngineDoor's, and where the events come from."""

    def cancel(self, request_id: str, /) -> None:
        """As EngineDoor's."""


class Answer:
    """The events of one request on the event loop; `close` says that nobody listens any more.

    Raises: what the door's `submit` raises, when made; what ends the request early, when read.
    """

    def __init__(
        self, door: AnswerDoor, request: Request, *, tenant: str, policy: "CachePolicy"
    ) -> None:
        self.num_tokens = 0
        self._door, self._request = door, request
        self._events: asyncio.Queue[TokenEvent | Exception] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        self.found = door.submit(
            request,
            lambda event: _hand_over(loop, self._events, event),
            tenant=tenant,
            policy=policy,
        )

    @property
    def headers(self) -> dict[str, str]:
        """Where the answer comes from."""
        headers: dict[str, str] = {"X-Cache": self.found.status}
        if self.found.key is not None:
            headers["X-Cache-Key"] = self.found.key
        if self.found.status == "HIT":
            headers["Age"] = str(int(self.found.age_s))
        return headers

    @property
    def usage(self) -> Usage:
        """Tokens of the prompt and of the answer so far; the one that stopped it is not counted."""
        return Usage(len(self._request.prompt_tokens), self.num_tokens)

    async def pieces(self) -> AsyncIterator[tuple[str, FinishReason | None]]:
        """Pieces of text as they come, all that is there at once; the last says why it ends."""
        reason: FinishReason | None = None
        while reason is None:
            events = [await self._events.get()]
            while not self._events.empty():
                events.append(self._events.get_nowait())
            text = ""
            for event in events:
                if isinstance(event, Exception):
                    raise event
                text, reason = text + event.text, event.finish_reason
                self.num_tokens += reason in (None, "length")
            if reason == "abort":
                raise Aborted("the request was aborted: the server is shutting down")
            yield text, reason

    async def whole(self) -> tuple[str, FinishReason]:
        """All of the text, and why it ends."""
        pieces = [piece async for piece in self.pieces()]
        reason = pieces[-1][1]
        assert reason is not None, "an answer ends with a reason"
        return "".join(text for text, _ in pieces), reason

    def close(self) -> None:
        """Drop the request if it still runs."""
        self._door.cancel(self._request.request_id)


class EventStream(Response):
    """A streamed answer: frames for role, content, finish_reason, usage if asked, then [DONE]."""

    media_type = "text/event-stream"

    def __init__(
        self,
        answer: Answer,
        head: Mapping[str, Any],
        *,
        has_usage_frame: bool,
        keep_alive_s: float = 15.0,
    ) -> None:
        super().__init__(
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **answer.headers}
        )
        self._keep_alive_s, self._sent_s = keep_alive_s, 0.0
        del self.headers["content-length"]
        # With a usage frame at the end, the others say that theirs is not there.
        self._head = {**head, "usage": None} if has_usage_frame else dict(head)
        self._answer, self._has_usage_frame = answer, has_usage_frame

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the answer ends or nobody reads."""
        try:
            await while_connected(receive, self._send(send))
        except Aborted:  # nobody is there to be told
            pass
        finally:
            self._answer.close()

    async def _send(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        keeping = asyncio.ensure_future(self._keep_alive(send))
        try:
            async for data in self._frames():
                body = b"".join(b"data: %s\n\n" % frame for frame in data)
                await self._send_body(send, body)
        finally:
            keeping.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _keep_alive(self, send: Send) -> None:
        """A comment whenever nothing was sent for a while, so that proxies keep the stream."""
        while True:
            await asyncio.sleep(max(self._sent_s + self._keep_alive_s - time.monotonic(), 0.01))
            if time.monotonic() >= self._sent_s + self._keep_alive_s:
                await self._send_body(send, b": keep-alive\n\n")

    async def _send_body(self, send: Send, body: bytes) -> None:
        self._sent_s = time.monotonic()
        await send({"type": "http.response.body", "body": body, "more_body": True})

    async def _frames(self) -> AsyncIterator[list[bytes]]:
        """Frames in groups that are sent together."""
        try:
            yield [self._chunk({"role": "assistant", "content": ""})]
            async for text, reason in self._answer.pieces():
                group = [self._chunk({"content": text})] if text else []
                if reason is not None:
                    group.append(self._chunk({}, reason))
                if group:
                    yield group
        except Exception as error:  # the status is out already: only a frame can tell
            yield [_json(error_body(to_api_error(error)))]
            return
        usage = {**self._head, "object": "chat.completion.chunk", "choices": []}
        usage["usage"] = self._answer.usage.body()
        yield [*([_json(usage)] if self._has_usage_frame else []), b"[DONE]"]

    def _chunk(self, delta: Mapping[str, Any], reason: FinishReason | None = None) -> bytes:
        return _json(chunk_body(self._head, delta, reason))


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of the work, which is cancelled if the client goes away first.

    Raises: Aborted in that case.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Aborted("the client went away before the answer was complete")
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _hand_over(
    loop: asyncio.AbstractEventLoop,
    events: "asyncio.Queue[TokenEvent | Exception]",
    event: TokenEvent | Exception,
) -> None:
    loop.call_soon_threadsafe(events.put_nowait, event)


def _json(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()

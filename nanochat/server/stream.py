"""Token events -> HTTP.   in: an engine's events   out: a whole body, or server-sent events
who calls: serving.py

The engine's thread hands events to the event loop, which never waits for it; what has come by the
time the loop looks goes out at once, a frame a token; much is cut into groups, between
which the loop does what else there is.  Who goes away is noticed while waiting,
with or without streaming, and the engine drops the request within a step.
Read next: serving.py, frames.py (how a frame is written), gate.py (the door to the engine).
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from nanochat.common.errors import Aborted, ClientLeft, EngineError
from nanochat.engine.request import Request, TokenEvent
from nanochat.server.errors import error_body, to_api_error
from nanochat.server.frames import Frames, Piece, frame_of, is_written
from nanochat.server.responses import Usage

if TYPE_CHECKING:
    from nanochat.server.cache import CacheAnswer
    from nanochat.server.cache_key import CachePolicy

__all__ = ["AnswerDoor", "Answers", "EngineDoor", "EventStream", "while_connected"]

T = TypeVar("T")
KEEP_ALIVE = b": keep-alive\n\n"
MAX_GROUP = 64
"""Tokens that are told at once; an answer from memory has tens of thousands."""
MAX_SIZE_ON_LOOP = 2048
"""Tokens and log-probabilities of a group that are told on the event loop, in about 10 ms: a group
of 64 with 20 each is below it.  A thread takes twice as long; a long prompt that is echoed is
given one."""


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

    def together(self, requests: Sequence[Request]) -> AbstractContextManager[None]:
        """While requests of one body are asked: room for one is room for all."""

    def cancel(self, request_id: str, /) -> None:
        """As EngineDoor's."""


class Answers:
    """The events of one or several requests on the event loop; `close` says that nobody listens.

    It may be made in another thread, if that says which loop.
    Raises: what the door's `submit` raises, when made: then nothing is left running; what ends a
            request early, when read.
    """

    def __init__(
        self,
        door: AnswerDoor,
        requests: Sequence[Request],
        *,
        tenant: str = "",
        policy: "CachePolicy",
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.num_tokens = 0
        self._door, self._requests = door, tuple(requests)
        self._loop, self._wake = loop or asyncio.get_running_loop(), asyncio.Event()
        self._arrived: deque[Piece | Exception] = deque()
        self._is_woken = False
        self._num_left = sum(request.num_samples for request in requests)
        self._stops = [frozenset(request.sampling.stop_tokens) for request in requests]
        self.found: list[CacheAnswer] = []
        begin = 0
        try:
            with door.together(requests):
                for request in requests:
                    self.found.append(
                        door.submit(request, self._taker(begin), tenant=tenant, policy=policy)
                    )
                    begin += request.num_samples
        except BaseException:
            self.close()
            raise

    @property
    def headers(self) -> dict[str, str]:
        """Where the answer comes from."""
        statuses = {found.status for found in self.found}
        status = statuses.pop() if len(statuses) == 1 else "MISS"
        headers: dict[str, str] = {"X-Cache": status}
        if len(self.found) == 1 and self.found[0].key is not None:
            headers["X-Cache-Key"] = self.found[0].key
        if status == "HIT":
            headers["Age"] = str(int(max(found.age_s for found in self.found)))
        return headers

    @property
    def usage(self) -> Usage:
        """Tokens of the prompts and of the answers so far; a token that only ends one is not
        counted, nor are those that a tool put there."""
        num_prompt = sum(max(1, len(request.prompt_tokens)) for request in self._requests)
        return Usage(num_prompt, self.num_tokens)

    async def begun(self, limit_s: float) -> None:
        """Until there is something to tell, or so long: while no head of an answer is out, an error
        still has a status.

        Raises: what ends the request before its first token.
        """
        try:
            await asyncio.wait_for(self._wake.wait(), limit_s)
        except TimeoutError:
            return
        first = self._arrived[0]
        if error := first if isinstance(first, Exception) else _end_of(first.event):
            raise error

    async def told(self, tell: Callable[[list[Piece]], T]) -> AsyncIterator[T]:
        """What `tell` makes of each group; of much, in another thread."""
        async for group in self.groups():
            if sum(map(_size, group)) > MAX_SIZE_ON_LOOP:
                yield await asyncio.to_thread(tell, group)
            else:
                yield tell(group)

    async def groups(self) -> AsyncIterator[list[Piece]]:
        """Tokens as they come, what is there at once up to a bound, until every answer has ended;
        between groups, the loop does what else there is."""
        while self._num_left:
            await self._wake.wait()
            self._is_woken = False  # from here on a new event wakes again
            self._wake.clear()
            while self._arrived:
                group, error = self._group()
                if group:
                    yield group
                if error is not None:
                    raise error
                if self._arrived:
                    await asyncio.sleep(0)

    def _group(self) -> tuple[list[Piece], Exception | None]:
        """Some of what has arrived, and what ends it all."""
        num_samples = self._requests[0].num_samples
        group: list[Piece] = []
        while self._arrived and len(group) < MAX_GROUP:
            arrived = self._arrived.popleft()
            if isinstance(arrived, Exception):
                return group, arrived
            event = arrived.event
            if error := _end_of(event):
                return group, error
            stops = self._stops[arrived.choice // num_samples]
            self.num_tokens += is_written(event, stops) and not event.is_forced
            self._num_left -= event.finish_reason is not None
            group.append(arrived)
        return group, None

    def close(self) -> None:
        """Drop what still runs."""
        for request in self._requests:
            self._door.cancel(request.request_id)

    def _taker(self, begin: int) -> Callable[[TokenEvent | Exception], None]:
        """What the engine's thread calls."""

        def take(event: TokenEvent | Exception) -> None:
            if isinstance(event, TokenEvent):
                self._arrived.append(Piece(begin + event.sample, event))
            else:
                self._arrived.append(event)
            if not self._is_woken:
                self._is_woken = True
                self._loop.call_soon_threadsafe(self._wake.set)

        return take


def _size(piece: Piece) -> int:
    """Tokens and log-probabilities to tell."""
    event = piece.event
    size = 1 + len(event.top_logprobs)
    return size + sum(1 + len(token.top_logprobs) for token in event.prompt_logprobs)


def _end_of(event: TokenEvent) -> Exception | None:
    """What ends an answer that has not been written to its end."""
    if event.finish_reason == "abort":
        return Aborted("the request was aborted: the server is shutting down")
    if event.finish_reason == "error":
        return EngineError("the answer could not be written to its end")
    return None


class EventStream(Response):
    """A streamed answer."""

    media_type = "text/event-stream"

    def __init__(self, answers: Answers, frames: Frames, *, keep_alive_s: float = 15.0) -> None:
        super().__init__(
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **answers.headers}
        )
        del self.headers["content-length"]
        self._answers, self._written = answers, frames
        self._keep_alive_s, self._sent_s = keep_alive_s, 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the answer ends or nobody reads."""
        try:
            await while_connected(receive, self._send(send))
        except Aborted:  # nobody is there to be told
            pass
        finally:
            self._answers.close()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        keeping = asyncio.ensure_future(self._keep_alive(send))
        try:
            async for body in self._bodies():
                await self._send_body(send, body)
        finally:
            keeping.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _keep_alive(self, send: Send) -> None:
        """A comment whenever nothing was sent for a while, so that proxies keep the stream."""
        while True:
            await asyncio.sleep(max(self._sent_s + self._keep_alive_s - time.monotonic(), 0.01))
            if time.monotonic() >= self._sent_s + self._keep_alive_s:
                await self._send_body(send, KEEP_ALIVE)

    async def _send_body(self, send: Send, body: bytes) -> None:
        self._sent_s = time.monotonic()
        await send({"type": "http.response.body", "body": body, "more_body": True})

    async def _bodies(self) -> AsyncIterator[bytes]:
        """Frames in groups that are sent together."""
        written = self._written
        try:
            if first := written.first():
                yield first
            async for body in self._answers.told(lambda group: b"".join(map(written.of, group))):
                if body:
                    yield body
        except Exception as error:  # the status is out already: only a frame can tell
            yield frame_of(error_body(to_api_error(error)))
            return
        yield written.last(self._answers.usage)


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of the work, which is cancelled if the client goes away first.

    Raises: ClientLeft in that case.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeft("the client went away before the answer was complete")
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

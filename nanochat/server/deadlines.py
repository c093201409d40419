"""How long a client may take.   in: bytes of one connection   out: uvicorn's protocol, or its end
who calls: cli/http_server.py

Uvicorn waits for ever for the rest of a head or a body, and for a client that does not read.  Here
each of them has its time, and a connection its place:

    head_s    from the first byte, or the connection, to the last byte of the head    408
    body_s    from there to the last byte of the body                                 408
    write_s   from when what we wrote piles up to when some of it has been read       cut off
Who runs out of time holds no thread, no row of an engine and, from then on, no connection.
Read next: limits.py (what is refused once it has arrived).
"""

import asyncio
import json
from collections import Counter
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from nanochat.server.errors import ApiError, error_body
from nanochat.server.limits import ENDED, SECURITY_HEADERS

__all__ = ["Connection", "Deadlines", "connection_type"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Deadlines:
    """How long a client may take, and how many connections there may be."""

    head_s: float = 10.0
    body_s: float = 30.0
    write_s: float = 30.0
    max_head_bytes: int = 32 << 10
    max_connections: int = 900
    """A process may usually open 1,024 files."""
    max_connections_per_client: int = 512
    """By address; behind a proxy all are one client."""


class Connection(HttpToolsProtocol):
    """One connection."""

    deadlines = Deadlines()
    num_by_client: "Counter[str]" = Counter()

    _timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _num_head_bytes = 0
    _is_counted = False
    _cycles: "tuple[RequestResponseCycle, ...] | list[RequestResponseCycle]" = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Takes a place, if there is one, and waits for a head."""
        assert isinstance(transport, asyncio.Transport), "HTTP runs over a stream"
        super().connection_made(transport)
        client = self.client[0] if self.client else ""
        limits = self.deadlines
        if (
            len(self.connections) > limits.max_connections
            or self.num_by_client[client] >= limits.max_connections_per_client
        ):
            self._refuse(503, "Too many connections: ask again later.", "too_many_connections")
            return
        self._is_counted = True
        self.num_by_client[client] += 1
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Gives its place back; whoever writes or waits for a body is told."""
        self._stop_timer()
        self._stop_write_timer()
        for cycle in self._cycles:  # uvicorn tells the newest alone
            if not cycle.response_complete:
                _give_up(cycle, 499)
        if self._is_counted:
            client = self.client[0] if self.client else ""
            self._is_counted = False
            self.num_by_client[client] -= 1
            if not self.num_by_client[client]:
                del self.num_by_client[client]
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some of a head or a body."""
        before = self.cycle
        was_body = before is not None and before.more_body
        if not self.transport.is_closing():
            super().data_received(data)
        if self.transport.is_closing():
            return
        cycle = self.cycle
        if cycle is not before:  # a head is whole
            self._num_head_bytes = 0
            self._cycles = [*(each for each in self._cycles if not each.response_complete), cycle]
            self._stop_timer()
            if cycle.more_body:
                self._start_timer(self.deadlines.body_s, self._body_is_late)
        elif not was_body:
            self._some_of_a_head(data)
        elif not cycle.more_body:  # a body is whole
            self._stop_timer()

    def _some_of_a_head(self, data: bytes) -> None:
        if self._num_head_bytes or data.strip(b"\r\n"):  # empty lines before a head are no head
            self._num_head_bytes += len(data)
        if self._num_head_bytes > self.deadlines.max_head_bytes:
            message = (
                f"The head is too large: expected at most {self.deadlines.max_head_bytes} bytes."
            )
            self._refuse(431, message, "headers_too_large")
        elif self._timer is None and (self.cycle is None or self.cycle.response_complete):
            self._await_head()

    def on_response_complete(self) -> None:
        """What has come of the next head meanwhile has its time from here on."""
        super().on_response_complete()
        if self._num_head_bytes and self._timer is None and not self.transport.is_closing():
            self._await_head()

    def pause_writing(self) -> None:
        """The client does not read what was written."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.deadlines.write_s, self._reader_is_late)

    def resume_writing(self) -> None:
        """It does."""
        super().resume_writing()
        self._stop_write_timer()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is refused in OpenAI's words."""
        self._refuse(400, "This is not HTTP.", "invalid_http")

    # ------------------------------------------------------------------------- timers

    def _await_head(self) -> None:
        self._start_timer(self.deadlines.head_s, self._head_is_late)

    def _start_timer(self, seconds: float, late: Any) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, late)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _head_is_late(self) -> None:
        if self._num_head_bytes:
            self._refuse(408, "The head of the request took too long.", "request_timeout")
        else:  # it has said nothing, so it hears nothing
            self.transport.close()

    def _body_is_late(self) -> None:
        self._refuse(408, "The body of the request took too long.", "request_timeout")

    def _reader_is_late(self) -> None:
        self.transport.abort()  # closing would wait until it reads

    def _refuse(self, status: int, message: str, code: str) -> None:
        """The last word on this connection, unless an answer is on its way or out already."""
        self._stop_timer()
        cycle = self.cycle
        is_between = cycle is None or (cycle.response_complete and not cycle.more_body)
        if is_between or not (self.pipeline or cycle.response_started):
            self.transport.write(_answer(status, message, code))
        if cycle is not None and not cycle.response_complete:
            _give_up(cycle, status)
        self.transport.close()


def connection_type(deadlines: Deadlines) -> type[Connection]:
    """The protocol of one server, for uvicorn's `http`."""
    return type("Connection", (Connection,), {"deadlines": deadlines, "num_by_client": Counter()})


def _give_up(cycle: RequestResponseCycle, status: int) -> None:
    """Whoever waits for the body, or writes, learns that nobody is there; and the log, why."""
    if not cycle.response_started:
        cycle.scope["state"].setdefault(ENDED, status)
    cycle.disconnected = True
    cycle.message_event.set()


def _answer(status: int, message: str, code: str) -> bytes:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    body = json.dumps(error_body(ApiError(status, message, code, kind=kind))).encode()
    headers = {
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Connection": "close",
        **SECURITY_HEADERS,
    }
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body

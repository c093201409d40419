"""Bytes of HTTP/1.1 -> server-sent events.   in: bytes, cut anywhere   out: payloads of events
who calls: load_client.py

Parsers without a socket, so that every cut can be tested, and one connection around them.  A load
generator shares the cores with the server it measures: this one costs about a tenth of a core for
3,000 frames a second, where a client library costs several times that.
Source: RFC 9112 (messages, chunks); the HTML standard, section 9.2.6 (event streams).
Read next: load_client.py (what is asked over it).
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType

__all__ = ["Address", "Connection", "EventParser", "ResponseParser", "WireError"]

MAX_HEAD_BYTES = 1 << 16
MAX_EVENT_BYTES = 1 << 20
READ_BYTES = 1 << 16


class WireError(Exception):
    """What came is no HTTP, or ended too early."""


class EventParser:
    """Pieces of an event stream -> the data of whole events, wherever the pieces are cut."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of the events that this piece completes; comments and other fields are left out.

        Raises: WireError for an event of more than a MiB.
        """
        data = self._rest + piece
        if b"\r" in data:
            # A line may end with \r\n, \n or \r; whether a last \r ends one is known only later.
            held = b"\r" if data.endswith(b"\r") else b""
            data = data[: len(data) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        else:
            held = b""
        *events, rest = data.split(b"\n\n")
        self._rest = rest + held
        if len(self._rest) > MAX_EVENT_BYTES:
            raise WireError(f"an event of more than {MAX_EVENT_BYTES} bytes")
        return [payload for event in events if (payload := _data(event)) is not None]


def _data(event: bytes) -> bytes | None:
    lines = [
        line[6:] if line.startswith(b"data: ") else line[5:]
        for line in event.split(b"\n")
        if line.startswith(b"data:")
    ]
    return b"\n".join(lines) if lines else None


class ResponseParser:
    """Bytes of one response -> its status, headers, and the bytes of its body."""

    def __init__(self) -> None:
        self.status = 0
        """0 until the head is there."""
        self.headers: Mapping[str, str] = {}
        """Names in lower case."""
        self.is_done = False
        self._buffer = b""
        self._left: int | None = None  # bytes of the body, or of this chunk; None: until the end
        self._is_chunked = False
        self._is_after_chunk = False  # its line end comes first
        self._is_in_trailer = False

    @property
    def has_begun(self) -> bool:
        """Whether anything has come."""
        return bool(self.status or self._buffer)

    @property
    def can_stay(self) -> bool:
        """Whether the connection may carry another request."""
        is_kept = self.headers.get("connection", "").lower() != "close"
        return self.is_done and is_kept and not self._buffer

    def feed(self, piece: bytes) -> bytes:
        """What of the body this piece brings.

        Raises: WireError for what is no HTTP/1.1.
        """
        self._buffer += piece
        while not self.status:
            head, end, rest = self._buffer.partition(b"\r\n\r\n")
            if not end:
                _check_size(self._buffer, MAX_HEAD_BYTES)
                return b""
            self._buffer = rest
            self._read_head(head)
        if self._is_chunked:
            return self._chunks()
        body = self._buffer[: self._left]
        self._buffer = self._buffer[len(body) :]
        if self._left is not None:
            self._left -= len(body)
            self.is_done = not self._left
        return body

    def end(self) -> None:
        """The connection was closed.

        Raises: WireError if the response is not whole.
        """
        if not self.status:
            raise WireError("the connection was closed before an answer")
        if self._is_chunked or self._left is not None:
            if not self.is_done:
                raise WireError("the connection was closed in the middle of an answer")
        self.is_done = True

    def _read_head(self, head: bytes) -> None:
        first, *lines = head.decode("latin-1").split("\r\n")
        words = first.split(" ", 2)
        is_http = words[0].startswith("HTTP/1.") and len(words) > 1
        if not is_http or len(words[1]) != 3 or not words[1].isdecimal():
            raise WireError(f"no HTTP: {first[:40]!r}")
        if words[1].startswith("1"):  # 100 Continue: the answer follows
            return
        self.status = int(words[1])
        pairs = (line.partition(":") for line in lines)
        self.headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        self._is_chunked = self.headers.get("transfer-encoding", "").lower() == "chunked"
        length = self.headers.get("content-length", "")
        if self._is_chunked:
            self._left = 0
        elif length.isdecimal():
            self._left = int(length)
        elif self.status in (204, 304):
            self._left = 0
        self.is_done = not self._is_chunked and self._left == 0

    def _chunks(self) -> bytes:
        body = []
        while not self.is_done:
            if self._left:
                body.append(self._buffer[: self._left])
                self._buffer = self._buffer[len(body[-1]) :]
                self._left -= len(body[-1])
                self._is_after_chunk = True
                if self._left:
                    break
            line, end, rest = self._buffer.partition(b"\r\n")
            if not end:
                _check_size(self._buffer, 1024)
                break
            self._buffer = rest
            self._read_line(line)
        return b"".join(body)

    def _read_line(self, line: bytes) -> None:
        if self._is_in_trailer:
            self.is_done = not line
        elif self._is_after_chunk:
            if line:
                raise WireError(f"a chunk that is longer than it said: {line[:20]!r}")
            self._is_after_chunk = False
        else:
            try:
                self._left = int(line.partition(b";")[0], 16)
            except ValueError:
                raise WireError(f"no size of a chunk: {line[:20]!r}") from None
            self._is_in_trailer = self._left == 0


def _check_size(buffer: bytes, limit: int) -> None:
    if len(buffer) > limit:
        raise WireError(f"more than {limit} bytes without an end")


# ------------------------------------------------------------------------------- the socket


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """Where a server is, and the headers it is sent."""

    host: str
    port: int
    path: str = ""
    """What all its paths begin with."""
    headers: tuple[tuple[str, str], ...] = ()

    def head(self, method: str, path: str, num_bytes: int) -> bytes:
        """The head of a request."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        lines = [
            f"{method} {self.path}{path} HTTP/1.1",
            f"Host: {host}:{self.port}",
            *(f"{name}: {value}" for name, value in self.headers),
        ]
        if num_bytes:
            lines += ["Content-Type: application/json", f"Content-Length: {num_bytes}"]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


class Connection:
    """One connection, kept between requests as long as the server keeps it."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.response = ResponseParser()
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._request = b""
        self._is_reused = False

    async def __aenter__(self) -> "Connection":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    async def send(self, method: str, path: str, body: bytes = b"") -> None:
        """Send a request; `receive` gives the answer.

        Raises: OSError where nobody listens.
        """
        if not self.response.can_stay:
            self.close()
        self._request = self.address.head(method, path, len(body)) + body
        self._is_reused = self._writer is not None
        await self._send()

    async def receive(self) -> bytes:
        """The next piece of the body, perhaps empty, until `response.is_done`.

        Raises: WireError for what is no HTTP or ends too early, OSError for a broken connection.
        """
        assert self._reader is not None, "receive before send"
        try:
            piece = await self._reader.read(READ_BYTES)
        except ConnectionError:
            if not self._can_ask_again:
                raise
            piece = b""
        if piece:
            return self.response.feed(piece)
        if self._can_ask_again:  # it was closed while idle, as any server may
            self.close()
            self._is_reused = False
            await self._send()
            return b""
        self.response.end()
        return b""

    def close(self) -> None:
        """Close it at once; the next request opens another."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None

    @property
    def _can_ask_again(self) -> bool:
        return self._is_reused and not self.response.has_begun

    async def _send(self) -> None:
        self.response = ResponseParser()
        if self._writer is None:
            address = self.address
            self._reader, self._writer = await asyncio.open_connection(address.host, address.port)
        self._writer.write(self._request)  # a few KB: they are on their way without waiting

"""A web server on this machine that can be told to misbehave."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.listening import Handler, listening, reset

__all__ = ["Served", "Server", "serving"]


@dataclass
class Served:
    """A file, and how it is served."""

    content: bytes
    etag: str | None = None
    modified: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    """More of them."""
    breaks: list[int] = field(default_factory=list)
    """After how many bytes the line breaks, request by request."""
    has_resets: bool = False
    """Whether it breaks with a reset instead of an end, as where a machine on the way fails."""
    refusals: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    """Statuses and headers to answer first."""
    corruptions: int = 0
    """How many times a byte is wrong."""
    stated_bytes: int | None = None
    """A lie about the length."""
    has_ranges: bool = True
    heeds_if_range: bool = True
    redirect: str | None = None
    is_chunked: bool = False


@dataclass
class Server:
    """What is served, and what was asked for."""

    url: str = ""
    files: dict[str, Served] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """Paths and ranges."""
    tokens: list[str | None] = field(default_factory=list)
    after: dict[str, Served] = field(default_factory=dict)
    """What takes a file's place once it was asked for."""


@contextmanager
def serving() -> Iterator[Server]:
    """A server, until the block ends."""
    state = Server()
    lock = threading.Lock()

    class Downloads(Handler):
        def do_GET(self) -> None:
            with lock:
                state.asked.append((self.path, self.headers.get("Range")))
                state.tokens.append(self.headers.get("Authorization"))
                served = state.files.get(self.path)
                if self.path in state.after:
                    state.files[self.path] = state.after.pop(self.path)
            if served is None:
                self.send_error(404)
            elif served.refusals:
                self.say(*served.refusals.pop(0), content=b"busy")
            elif served.redirect is not None:
                self.say(302, {"Location": served.redirect, **served.headers}, content=b"")
            else:
                self._send(served)

        def _send(self, served: Served) -> None:
            content, start = served.content, 0
            asked = self.headers.get("Range")
            condition = self.headers.get("If-Range")
            is_same = condition in (None, served.etag, served.modified)
            if asked and served.has_ranges and (is_same or not served.heeds_if_range):
                start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start and start >= len(content):
                self.say(416, {"Content-Range": f"bytes */{len(content)}"}, content=b"")
                return
            length = (served.stated_bytes or len(content)) - start
            headers = dict(served.headers)
            if start:
                total = served.stated_bytes or len(content)
                headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
            if served.etag:
                headers["ETag"] = served.etag
            if served.modified:
                headers["Last-Modified"] = served.modified
            if not served.is_chunked:
                headers["Content-Length"] = str(length)
            body = content[start:]
            if served.corruptions:
                served.corruptions -= 1
                body = bytes([body[0] ^ 1]) + body[1:]
            is_broken = bool(served.breaks)
            if served.breaks:
                body = body[: served.breaks.pop(0)]
            self.send_response(206 if start else 200)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
            if is_broken and served.has_resets:
                reset(self.connection)

    with listening(Downloads) as state.url:
        yield state

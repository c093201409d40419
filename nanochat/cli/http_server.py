"""An app -> a running server.   in: a FastAPI app, a host and a port   out: HTTP until a signal
who calls: cli/serve.py

Read next: server/app.py (the app).
"""

import contextlib
import signal
import socket
import threading
import webbrowser
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

import uvicorn
from fastapi import FastAPI

from nanochat.common.errors import ConfigError

__all__ = ["Place", "reserve", "serve_app"]

# Answers that are being written may go on for so long after the signal to stop.
DRAIN_S = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A socket with an address, and what people type to reach it."""

    socket: socket.socket
    url: str


@contextlib.contextmanager
def reserve(host: str, port: int) -> Iterator[Place]:
    """The address, before anything listens: a client is refused until the server is ready.

    Raises: ConfigError if it is taken or does not exist here.
    """
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # not held by the last server
        with contextlib.ExitStack() as on_error:
            on_error.callback(bound.close)
            bound.bind(address)
            on_error.pop_all()
    except OSError as error:
        raise ConfigError(
            f"cannot serve on {host}:{port} ({error.strerror or error}): pass another --port, or "
            "--port 0 for any that is free"
        ) from None
    with bound:
        shown = f"[{host}]" if ":" in host else host
        yield Place(socket=bound, url=f"http://{shown}:{bound.getsockname()[1]}")


def serve_app(app: FastAPI, place: Place, *, ready: str, is_opened: bool = False) -> None:
    """Serve until a signal; `ready` is printed once the server answers.

    Raises: KeyboardInterrupt after a clean end by Ctrl-C; SIGTERM just returns.
    """
    server = _Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=DRAIN_S,
        )
    )
    server.ready = ready
    server.opened_url = place.url if is_opened else None
    server.run(sockets=[place.socket])
    if server.was_interrupted:
        raise KeyboardInterrupt


class _Server(uvicorn.Server):
    """Says when it is ready, and ends without the signal being raised again."""

    ready = ""
    opened_url: str | None = None
    was_interrupted = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(self.ready, flush=True)
            if self.opened_url is not None:  # in a thread: some browsers return when they close
                open_page = threading.Thread(target=webbrowser.open, args=(self.opened_url,))
                open_page.daemon = True
                open_page.start()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._stop) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.was_interrupted |= number == signal.SIGINT
        self.handle_exit(number, frame)

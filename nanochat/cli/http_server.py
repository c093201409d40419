"""An app -> a running server.   in: a FastAPI app, a host and a port   out: HTTP until a signal
who calls: cli/serve.py, deploy/ray_serve.py

A signal lets answers that run go on for a while; new ones are refused meanwhile, and what is left
then is told so and ended.  A second signal does that at once.
Read next: server/app.py (the app), server/deadlines.py (slow clients).
"""

import asyncio
import contextlib
import ipaddress
import signal
import socket
import sys
import threading
import time
import webbrowser
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Protocol

import uvicorn
from starlette.types import ASGIApp

from nanochat.common.errors import ConfigError
from nanochat.engine.streams import SWITCH_INTERVAL_S
from nanochat.server.deadlines import Deadlines, connection_type

__all__ = ["Drains", "Place", "answering", "reserve", "serve_app"]

LAST_WORDS_S = 2.0  # for telling those who are cut off


class Drains(Protocol):
    """What has to end before the server does: server/admission.py."""

    @property
    def num_active(self) -> int:
        """Answers that run or wait."""

    def begin_draining(self) -> None:
        """Let nobody in any more."""

    def abort_all(self) -> int:
        """End what runs; how many requests that were."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A socket with an address, and what people type to reach it."""

    socket: socket.socket
    url: str

    @property
    def is_loopback(self) -> bool:
        """Whether this machine alone can reach it."""
        host: str = self.socket.getsockname()[0]
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback


@contextlib.contextmanager
def reserve(host: str, port: int) -> Iterator[Place]:
    """The address, with clients that wait there until `answering` or `serve_app` takes them.

    Raises: ConfigError if it is taken or does not exist here.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        # With the protocol named, asyncio turns Nagle's algorithm off for every connection: with
        # it on, a token waits up to 40 ms for the acknowledgement of the one before.
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # not held by the last server
        with contextlib.ExitStack() as on_error:
            on_error.callback(bound.close)
            bound.bind(address)
            bound.listen()  # two servers may bind the same address, but one of them can listen
            on_error.pop_all()
    except OSError as error:
        raise ConfigError(
            f"cannot serve on {host}:{port} ({error.strerror or error}): pass another --port, or "
            "--port 0 for any that is free"
        ) from None
    with bound:
        shown = f"[{host}]" if ":" in host else host
        yield Place(socket=bound, url=f"http://{shown}:{bound.getsockname()[1]}")


@contextlib.contextmanager
def answering(app: ASGIApp, place: Place) -> Iterator[None]:
    """Within, the app answers from a thread; who comes afterwards waits for `serve_app`."""
    server = uvicorn.Server(_config(app, Deadlines()))
    own = place.socket.dup()  # uvicorn closes what it is given
    thread = threading.Thread(target=server.run, args=([own],), name="answering", daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.002)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()


def serve_app(
    app: ASGIApp,
    place: Place,
    *,
    ready: str,
    is_opened: bool = False,
    deadlines: Deadlines | None = None,
    drains: Drains | None = None,
    drain_s: float = 0.0,
    trusted_proxies: Sequence[str] = (),
) -> None:
    """Serve until a signal; `ready` is printed once the server answers, and `trusted_proxies` say
    for whom they ask.

    Raises: KeyboardInterrupt after a clean end by Ctrl-C; SIGTERM just returns.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    server = _Server(_config(app, deadlines or Deadlines(), trusted_proxies))
    server.ready, server.drains, server.drain_s = ready, drains, drain_s
    server.opened_url = place.url if is_opened else None
    server.run(sockets=[place.socket])
    if server.was_interrupted:
        raise KeyboardInterrupt


def _config(
    app: ASGIApp, deadlines: Deadlines, trusted_proxies: Sequence[str] = ()
) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="asyncio",  # what the deadlines were made for, whatever else is installed
        http=connection_type(deadlines),
        lifespan="off",  # none of ours has anything to begin or to end
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=bool(trusted_proxies),  # uvicorn believes all of this machine if not told
        forwarded_allow_ips=list(trusted_proxies),
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(LAST_WORDS_S),
    )


class _Server(uvicorn.Server):
    """Says when it is ready, drains, and ends without the signal being raised again."""

    ready = ""
    opened_url: str | None = None
    drains: Drains | None = None
    drain_s = 0.0
    was_interrupted = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(self.ready, flush=True)
            if self.opened_url is not None:  # in a thread: some browsers return when they close
                open_page = threading.Thread(target=webbrowser.open, args=(self.opened_url,))
                open_page.daemon = True
                open_page.start()

    async def main_loop(self) -> None:
        await super().main_loop()
        if self.drains is not None:  # still listening, so that who comes is told to come again
            await self._drain(self.drains)

    async def _drain(self, drains: Drains) -> None:
        drains.begin_draining()
        end_s = time.monotonic() + self.drain_s
        if drains.num_active:
            print(
                f"nanochat: {drains.num_active} answers are still being written, for at most "
                f"{self.drain_s:g} s; a second signal ends them now",
                file=sys.stderr,
                flush=True,
            )
        while drains.num_active and not self.force_exit and time.monotonic() < end_s:
            await asyncio.sleep(0.02)
        drains.abort_all()
        end_s = time.monotonic() + LAST_WORDS_S
        while self.server_state.tasks and time.monotonic() < end_s:
            await asyncio.sleep(0.02)

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
        self.force_exit |= self.should_exit  # the second one
        self.should_exit = True

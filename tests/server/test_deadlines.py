"""deadlines.py: clients that are slow, silent, half gone or too many; over real sockets."""

import asyncio
import contextlib
import json
import select
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from nanochat.server.deadlines import Connection, Deadlines, connection_type
from nanochat.server.limits import ENDED
from tests.patience import wait_until

# A client that is not slow has a second between two lines here; one that is may wait that long.
SHORT = Deadlines(head_s=1.0, body_s=1.0, write_s=0.3)
PATIENT = Deadlines(head_s=60.0, body_s=60.0, write_s=60.0, max_connections_per_client=8)
HEAD = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


class App:
    """Answers GET at once, a POST with the length of its body, /endless for ever."""

    def __init__(self) -> None:
        self.running = 0
        self.disconnects = 0
        self.ends: list[int | None] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        self.running += 1
        try:
            await self._answer(scope, receive, send)
        finally:
            self.ends.append(scope["state"].get(ENDED))
            self.running -= 1

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        num_bytes, more = 0, scope["method"] == "POST"
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.disconnects += 1
                return
            num_bytes, more = num_bytes + len(message["body"]), message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/endless":
            leaving = asyncio.ensure_future(self._left(receive))
            while not leaving.done():
                body = b"x" * (64 << 10)
                await send({"type": "http.response.body", "body": body, "more_body": True})
                await asyncio.sleep(0)
            return
        if scope["path"] == "/slow":
            await asyncio.sleep(1.5)  # longer than a head may take
        await send({"type": "http.response.body", "body": b"%d" % num_bytes})

    async def _left(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.disconnects += 1


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def port(app: App) -> Iterator[int]:
    with serving(app, connection_type(SHORT)) as server:
        yield server.servers[0].sockets[0].getsockname()[1]


@pytest.fixture
def patient_port(app: App) -> Iterator[int]:
    """For who is not to run out of time."""
    with serving(app, connection_type(PATIENT)) as server:
        yield server.servers[0].sockets[0].getsockname()[1]


@contextlib.contextmanager
def serving(app: Any, protocol: type[Connection]) -> Iterator[uvicorn.Server]:
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=0,
        loop="asyncio",
        http=protocol,
        log_level="critical",
        lifespan="off",
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield server
    finally:
        server.should_exit = True
        thread.join()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=60)


def rest(connection: socket.socket) -> bytes:
    """All there is to read until the other side closes."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(1 << 16):
            data += piece
    return data


def trickle(connection: socket.socket, data: Iterable[int]) -> bytes:
    """Send a byte now and then until the other side has had enough; what it says."""
    for byte in data:
        if select.select([connection], [], [], 0.05)[0]:
            break
        with contextlib.suppress(OSError):
            connection.sendall(bytes([byte]))
    return rest(connection)


def error_of(answer: bytes) -> tuple[int, str]:
    """The status and code of OpenAI's error body."""
    head, _, body = answer.partition(b"\r\n\r\n")
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert b"connection: close" in head.lower() and b"nosniff" in head
    return int(head.split()[1]), error["code"]


@pytest.mark.req("FR-062")
def test_a_head_that_trickles_in_is_given_up(port: int, app: App) -> None:
    begin_s = time.monotonic()
    with connect(port) as slow:
        # It would go on for a minute: each byte does not begin the time anew.
        answer = trickle(slow, HEAD + b"X-A: " + b"x" * 1200)
    assert error_of(answer) == (408, "request_timeout")
    assert time.monotonic() - begin_s > 0.9
    assert app.running == 0


@pytest.mark.req("FR-062")
@pytest.mark.parametrize("said", [b"", b"\r\n"])
def test_who_says_nothing_is_let_go(port: int, said: bytes) -> None:
    with connect(port) as silent:
        silent.sendall(said)
        assert rest(silent) == b""


@pytest.mark.req("FR-062")
def test_a_body_that_trickles_in_is_given_up(port: int, app: App) -> None:
    with connect(port) as slow:
        slow.sendall(HEAD + b"Content-Length: 5000\r\n\r\n{")
        wait_until(lambda: app.running == 1)
        assert error_of(trickle(slow, b" " * 1200)) == (408, "request_timeout")
    wait_until(lambda: app.running == 0)
    assert app.disconnects == 1 and app.ends == [408]


def test_who_goes_away_before_an_answer_begins_is_noted(patient_port: int, app: App) -> None:
    with connect(patient_port) as client:
        client.sendall(HEAD + b"Content-Length: 100\r\n\r\n{")
        wait_until(lambda: app.running == 1)
    wait_until(lambda: app.running == 0)
    assert app.ends == [499]


def test_a_body_in_pieces_is_read(patient_port: int) -> None:
    with connect(patient_port) as client:
        client.sendall(HEAD + b"Connection: close\r\nContent-Length: 10\r\n\r\n01234")
        time.sleep(0.1)
        client.sendall(b"56789")
        assert rest(client).endswith(b"2\r\n10\r\n0\r\n\r\n")


@pytest.mark.req("FR-062")
@pytest.mark.parametrize("how", ["close", "half", "reset"])
def test_who_is_gone_or_half_gone_is_noticed(port: int, app: App, how: str) -> None:
    client = connect(port)
    client.sendall(b"GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert client.recv(100)
    if how == "half":
        client.shutdown(socket.SHUT_WR)
    elif how == "reset":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
    else:
        client.close()
    wait_until(lambda: app.running == 0)
    client.close()
    assert app.disconnects == 1


@pytest.mark.req("FR-062")
def test_who_does_not_read_is_cut_off(port: int, app: App) -> None:
    with connect(port) as stuck:
        stuck.sendall(b"GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_until(lambda: app.running == 1)
        wait_until(lambda: app.running == 0)  # while the connection is still open here
    assert app.disconnects == 1


def test_a_slow_reader_goes_on(app: App) -> None:
    """Each time it has read what was written, its time begins anew."""
    timers: list[asyncio.TimerHandle] = []

    class Watched(connection_type(PATIENT)):  # type: ignore[misc]
        def pause_writing(self) -> None:
            super().pause_writing()
            timers.append(self._write_timer)

    with serving(app, Watched) as server:
        with connect(server.servers[0].sockets[0].getsockname()[1]) as slow:
            slow.sendall(b"GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n")
            for number in range(4):
                wait_until(lambda number=number: len(timers) > number)
                num_bytes = 0
                while num_bytes < 16 << 20:  # more than all buffers on the way hold
                    assert (piece := slow.recv(1 << 20)), "it was cut off"
                    num_bytes += len(piece)
            assert app.running == 1
        wait_until(lambda: app.running == 0)
    assert len(timers) >= 4 and len(set(timers)) == len(timers)
    assert all(timer.cancelled() for timer in timers)


def test_connections_are_used_again_and_each_head_has_its_time(port: int) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        for _ in range(3):
            assert client.post("/", json={}).text == "2"
            time.sleep(0.5)  # together longer than a head may take
    with connect(port) as client:
        for _ in range(2):
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = b""
            while not answer.endswith(b"0\r\n\r\n"):
                answer += client.recv(1 << 16)
            assert b"200 OK" in answer
        client.sendall(b"GET / HT")
        assert error_of(rest(client)) == (408, "request_timeout")


def test_what_comes_during_an_answer_waits_and_then_has_its_time(port: int) -> None:
    with connect(port) as client:
        client.sendall(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(0.1)
        client.sendall(b"GET / HT")  # half a second head while the first is answered
        answer = rest(client)
    first, _, second = answer.partition(b"0\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 200") and b"\r\n1\r\n0" in first
    assert error_of(second) == (408, "request_timeout")


@pytest.mark.req("FR-062")
def test_what_is_no_http_and_heads_without_end(port: int) -> None:
    with connect(port) as client:
        client.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert error_of(rest(client)) == (400, "invalid_http")
    with connect(port) as client:
        with contextlib.suppress(ConnectionError):
            for _ in range(20):
                client.sendall(b"GET / HTTP/1.1\r\n" if not _ else b"X-A: " + b"x" * 4000 + b"\r\n")
                time.sleep(0.005)
        assert error_of(rest(client)) == (431, "headers_too_large")


@pytest.mark.req("FR-062")
def test_one_client_does_not_take_every_place(patient_port: int) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(connect(patient_port)).sendall(b"GET")
        ninth = stack.enter_context(connect(patient_port))
        assert error_of(rest(ninth)) == (503, "too_many_connections")
    wait_until(lambda: is_answered(patient_port))


def is_answered(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}", timeout=60).status_code == 200
    except httpx.TransportError:  # refused, and closed, before it was asked
        return False


def test_each_server_has_its_own() -> None:
    one, two = connection_type(SHORT), connection_type(Deadlines())
    assert one.deadlines != two.deadlines and one.num_by_client is not two.num_by_client
    assert issubclass(one, Connection)

"""http_server.py: a signal ends the server once what runs has ended, or has had its time."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable

import httpx
import pytest
from fastapi import FastAPI

from nanochat.cli.http_server import reserve, serve_app
from tests.cli.test_serve import once_ready


class Running:
    """Answers that run until somebody ends them."""

    def __init__(self, num_active: int = 1) -> None:
        self.num_active, self.is_draining, self.num_aborts = num_active, False, 0

    def begin_draining(self) -> None:
        self.is_draining = True

    def abort_all(self) -> int:
        self.num_aborts += bool(self.num_active)
        self.num_active = 0
        return 0


def signal_us(number: signal.Signals = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


def serve_with(
    capsys: pytest.CaptureFixture[str], drains: Running, drain_s: float, act: Callable[[str], None]
) -> float:
    """Seconds from the first signal to the end."""
    app, begins_s = FastAPI(), []

    @app.get("/")
    async def ready() -> bool:
        return not drains.is_draining

    with reserve("127.0.0.1", 0) as place:

        def then(line: str) -> None:
            begins_s.append(time.monotonic())
            signal_us()
            act(place.url)

        with once_ready(capsys, then):
            serve_app(app, place, ready="here", drains=drains, drain_s=drain_s)
    return time.monotonic() - begins_s[0]


@pytest.mark.req("FR-054")
def test_what_runs_goes_on_and_who_comes_is_answered_meanwhile(
    capsys: pytest.CaptureFixture[str],
) -> None:
    drains, answers = Running(), []

    def act(url: str) -> None:
        end_s = time.monotonic() + 40
        while not drains.is_draining and time.monotonic() < end_s:
            time.sleep(0.01)
        answers.append(httpx.get(url).json())
        drains.num_active = 0

    assert serve_with(capsys, drains, 60.0, act) < 45
    assert answers == [False] and drains.num_aborts == 0


@pytest.mark.req("FR-054")
def test_what_runs_has_its_time(capsys: pytest.CaptureFixture[str]) -> None:
    drains = Running()
    took_s = serve_with(capsys, drains, 0.3, lambda url: None)
    assert drains.num_aborts == 1 and 0.3 <= took_s < 45


@pytest.mark.req("FR-054")
def test_a_second_signal_ends_it_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    drains = Running()

    def again(url: str) -> None:
        while not drains.is_draining:
            time.sleep(0.01)
        signal_us()

    assert serve_with(capsys, drains, 60.0, again) < 45
    assert drains.num_aborts == 1


def test_nothing_to_wait_for_is_not_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    drains = Running(0)
    assert serve_with(capsys, drains, 60.0, lambda url: None) < 45
    assert drains.is_draining and drains.num_aborts == 0
    assert threading.active_count() < 20


@pytest.mark.parametrize(("host", "is_loopback"), [("127.0.0.1", True), ("0.0.0.0", False)])
def test_a_place_knows_who_can_reach_it(host: str, is_loopback: bool) -> None:
    with reserve(host, 0) as place:
        assert place.is_loopback == is_loopback


def test_a_token_is_not_held_back() -> None:
    """asyncio turns Nagle's algorithm off only where the protocol is named."""
    with reserve("127.0.0.1", 0) as place:
        assert place.socket.proto == socket.IPPROTO_TCP

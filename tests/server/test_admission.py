"""admission.py: as many as there is room for, none for longer than allowed, none after the end."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from nanochat.common.errors import (
    Aborted,
    DeadlineExceeded,
    EngineError,
    Overloaded,
    Unavailable,
)
from nanochat.engine.request import TokenEvent
from nanochat.server.admission import Admission
from nanochat.server.settings import ServerSettings
from tests.patience import wait_until
from tests.server.test_cache import SlowEngine, Told, request


@pytest.fixture
def engine() -> SlowEngine:
    return SlowEngine()


@pytest.fixture
def admission(engine: SlowEngine) -> Iterator[Admission]:
    admission = Admission(engine, ServerSettings(max_active=2, max_queue=1))
    yield admission
    for name in list(engine.asked):  # so that no thread is left
        end(engine, name)
    wait_until(lambda: not any(t.name == "nanochat-deadlines" for t in threading.enumerate()))


def end(engine: SlowEngine, name: str, reason: Any = "stop") -> None:
    asked, _ = engine.asked[name]
    for sample in range(asked.num_samples):
        engine.say(name, "", reason, sample)
    del engine.asked[name]


def ask(admission: Admission, name: str, **said: Any) -> Told:
    told: Told = []
    admission.submit(request(name, **said), told.append)
    return told


@pytest.mark.req("EC-10")
def test_no_more_than_there_is_room_for(admission: Admission, engine: SlowEngine) -> None:
    for name in "abc":
        ask(admission, name)
    assert (admission.num_active, admission.num_waiting) == (3, 3)
    with pytest.raises(Overloaded, match="3 answers are being written or wait, of at most 3") as c:
        ask(admission, "d")
    assert c.value.retry_after_s >= 1
    with pytest.raises(Overloaded):
        admission.check()
    assert admission.metrics.value("requests_rejected_total", reason="queue_full") == 2
    engine.say("a", "x")
    assert (admission.num_active, admission.num_waiting) == (3, 2)
    end(engine, "a")
    admission.check()
    ask(admission, "d")


def test_answers_count_and_not_requests(admission: Admission, engine: SlowEngine) -> None:
    ask(admission, "many", num_samples=5)  # more than ever fit, and nobody else is there
    with pytest.raises(Overloaded):
        ask(admission, "one")
    end(engine, "many")
    ask(admission, "two", num_samples=2)
    with pytest.raises(Overloaded):
        ask(admission, "two more", num_samples=2)
    ask(admission, "one")


def test_room_is_given_back_however_a_request_ends(
    admission: Admission, engine: SlowEngine
) -> None:
    for number, reason in enumerate(("stop", "length", "abort", "error")):
        told = ask(admission, f"r{number}")
        end(engine, f"r{number}", reason)
        assert admission.num_active == 0 and len(told) == 1
    told = ask(admission, "broken")
    engine.asked.pop("broken")[1](EngineError("it broke"))
    assert isinstance(told[0], EngineError) and admission.num_active == 0
    engine.refusal = EngineError("no")
    with pytest.raises(EngineError, match="no"):
        ask(admission, "refused")
    engine.refusal = Unavailable("loading")
    with pytest.raises(Unavailable):
        ask(admission, "early")
    assert admission.num_active == 0
    metrics = admission.metrics
    assert metrics.value("request_success_total", finished_reason="stop") == 1
    assert metrics.value("requests_aborted_total") == 1
    assert metrics.value("errors_total", type="EngineError") == 1
    assert metrics.value("requests_rejected_total", reason="unavailable") == 1


def test_what_is_cancelled_takes_room_until_the_engine_has_dropped_it(
    admission: Admission, engine: SlowEngine
) -> None:
    ask(admission, "a")
    admission.cancel("a")
    assert engine.cancelled == ["a"] and admission.num_active == 1
    end(engine, "a", "abort")
    assert admission.num_active == 0


@pytest.mark.req("EC-10")
def test_nobody_waits_for_ever(engine: SlowEngine) -> None:
    now = [0.0]
    settings = ServerSettings(queue_wait_s=5, request_deadline_s=15)
    admission = Admission(engine, settings, clock=lambda: now[0])
    waiting, running = ask(admission, "a"), ask(admission, "b")
    engine.say("b", "x")
    now[0] = 10.0
    wait_until(lambda: bool(waiting))
    assert len(running) == 1
    now[0] = 20.0
    wait_until(lambda: len(running) == 2)
    assert isinstance(waiting[0], Overloaded) and "no answer began" in str(waiting[0])
    assert isinstance(running[1], DeadlineExceeded)
    assert engine.cancelled == ["a", "b"]
    assert admission.num_active == 2  # the engine has not let go yet
    for name in "ab":
        end(engine, name, "abort")
    assert len(waiting) == 1 and len(running) == 2 and admission.num_active == 0
    assert admission.metrics.value("requests_rejected_total", reason="queue_wait") == 1
    assert admission.metrics.value("errors_total", type="DeadlineExceeded") == 1
    assert admission.metrics.value("requests_aborted_total") == 0  # both clients are still there


@pytest.mark.req("FR-054")
def test_draining_lets_what_runs_go_on(admission: Admission, engine: SlowEngine) -> None:
    told = ask(admission, "a")
    assert admission.is_ready and not admission.is_draining
    admission.begin_draining()
    assert admission.is_draining and not admission.is_ready
    with pytest.raises(Unavailable, match="about to stop"):
        ask(admission, "b")
    engine.say("a", "x")
    assert isinstance(told[0], TokenEvent)
    assert admission.abort_all() == 1
    assert isinstance(told[1], Aborted) and engine.cancelled == ["a"]
    assert admission.abort_all() == 1 and len(told) == 2  # nobody is told twice
    end(engine, "a", "abort")
    assert admission.metrics.value("requests_aborted_total") == 0


def test_readiness_is_the_engines(engine: SlowEngine) -> None:
    engine.is_ready = False  # type: ignore[attr-defined]
    assert not Admission(engine, ServerSettings()).is_ready


def test_tokens_and_times_are_counted(engine: SlowEngine) -> None:
    now = [0.0]
    admission = Admission(engine, ServerSettings(), clock=lambda: now[0])
    ask(admission, "a", max_tokens=5)
    for at in (0.5, 0.6, 0.8):
        now[0] = at
        engine.say("a", "x", "length" if at == 0.8 else None)
    del engine.asked["a"]
    metrics = admission.metrics
    assert metrics.value("generation_tokens_total") == 3
    assert metrics.value("prompt_tokens_total") == 2
    assert metrics.value("time_to_first_token_seconds_sum") == 0.5
    assert metrics.value("inter_token_latency_seconds_sum") == pytest.approx(0.3)
    assert metrics.value("e2e_request_latency_seconds_sum") == 0.8
    assert metrics.value("request_time_per_output_token_seconds_sum") == pytest.approx(0.15)
    assert metrics.value("request_params_max_tokens_sum") == 5
    assert metrics.value("request_params_n_sum") == 1

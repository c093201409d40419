"""An engine in a process of its own: the same answers, and a crash that costs its requests only."""

import json
import multiprocessing
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from nanochat.common.errors import (
    CheckpointError,
    ConfigError,
    EngineError,
    RequestTooLong,
    TokenizerError,
    Unavailable,
)
from nanochat.engine import worker as worker_module
from nanochat.engine.load import EngineSpec
from nanochat.engine.request import Request, SamplingParams, TokenEvent
from nanochat.engine.worker import EngineProcess
from nanochat.engine.worker_process import serve
from nanochat.model.gpt import GPT
from nanochat.server.app import ServedModel, create_app
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.cli.models import save_model
from tests.patience import wait_until
from tests.twins.generation import assert_greedy

pytestmark = pytest.mark.timeout(300)  # processes that import torch: seconds each, or a minute


@pytest.fixture(scope="module")
def model(tiny_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    home = tmp_path_factory.mktemp("home")
    return save_model(home, tiny_tokenizer), home


@pytest.fixture(scope="module")
def worker(model: tuple[GPT, Path]) -> Iterator[EngineProcess]:
    spec = EngineSpec(model="tiny", home=model[1], device="cpu", format="float32", max_rows=4)
    worker = EngineProcess(spec)
    yield worker
    worker.close()
    worker.close()
    assert worker.process_id is None
    with pytest.raises(EngineError, match="the engine is closed"):
        worker.submit(request("late", [1]), print)


def request(
    name: str,
    tokens: list[int],
    schema: str | None = None,
    beyond_context: Any = "refuse",
    **said: Any,
) -> Request:
    return Request(
        request_id=name,
        prompt_tokens=tuple(tokens),
        sampling=SamplingParams(**{"max_tokens": 6, "temperature": 0.0, **said}),
        schema=schema,
        beyond_context=beyond_context,
    )


def ask(worker: EngineProcess, asked: Request) -> list[TokenEvent | Exception]:
    events: queue.SimpleQueue[TokenEvent | Exception] = queue.SimpleQueue()
    worker.submit(asked, events.put)
    told = [events.get(timeout=200)]
    while isinstance(told[-1], TokenEvent) and told[-1].finish_reason is None:
        told.append(events.get(timeout=200))
    return told


@pytest.mark.req("FR-052")
def test_it_answers_as_an_engine_does(worker: EngineProcess, model: tuple[GPT, Path]) -> None:
    for name in ("a", "b"):
        events = ask(worker, request(name, [1, 2, 3]))
        assert_greedy(model[0], [1, 2, 3], [e.token for e in events if isinstance(e, TokenEvent)])
    assert worker.num_active == 0


@pytest.mark.req("FR-062")
def test_what_is_wrong_is_raised_at_once(worker: EngineProcess) -> None:
    with pytest.raises(TokenizerError, match="prompt token 300 at place 1"):
        worker.submit(request("c", [1, 300]), print)
    assert worker.num_active == 0


@pytest.mark.req("FR-062")
def test_what_only_the_engine_finds_wrong_is_told(worker: EngineProcess) -> None:
    [refusal] = ask(worker, request("c", [1], schema='{"type": "banana"}'))
    assert isinstance(refusal, ConfigError) and "Invalid type: banana" in str(refusal)
    [refusal] = ask(worker, request("c", [1] * 5000))
    assert isinstance(refusal, RequestTooLong)
    assert worker.num_active == 0


@pytest.mark.req("FR-062", "FR-052")
def test_a_process_that_is_busy_keeps_nobody_waiting(worker: EngineProcess) -> None:
    """While schemas are compiled, more is sent both ways than the pipe holds."""
    ask(worker, request("first", [1]))
    streams = [queue.SimpleQueue[TokenEvent | Exception]() for _ in range(8)]
    for place, events in enumerate(streams):
        long = request(f"s{place}", [1, 2], max_tokens=200, logprobs=20, beyond_context="slide")
        worker.submit(long, events.put)
    large = json.dumps({"properties": {f"property {n}": {} for n in range(500)}})  # 25 ms, 12 KB
    told: queue.SimpleQueue[TokenEvent | Exception] = queue.SimpleQueue()

    def submit_all(half: str) -> None:
        for place in range(20):
            worker.submit(request(f"{half}{place}", [1], schema=large, max_tokens=1), told.put)

    threads = [threading.Thread(target=submit_all, args=(half,)) for half in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _ in range(40):
        assert isinstance(told.get(timeout=60), TokenEvent)
    for events in streams:
        *_, last = [events.get(timeout=60) for _ in range(200)]
        assert isinstance(last, TokenEvent) and last.finish_reason == "length"
    assert worker.num_active == 0


@pytest.mark.req("EC-10")
def test_cancelling(worker: EngineProcess) -> None:
    told: list[Any] = []
    worker.submit(request("d", [1], max_tokens=10), told.append)
    worker.cancel("d")
    worker.cancel("nobody")
    wait_until(lambda: told and told[-1].finish_reason)
    assert told[-1].finish_reason in ("abort", "length") and worker.num_active == 0


@pytest.mark.req("FR-052")
def test_a_crash_is_an_error_of_its_requests_alone(
    worker: EngineProcess, model: tuple[GPT, Path]
) -> None:
    told: list[Any] = []
    long = request("f", [1], max_tokens=100_000, beyond_context="slide")
    worker.submit(long, told.append)
    wait_until(lambda: bool(told))
    first = worker.process_id
    assert first is not None and isinstance(told[0], TokenEvent)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: isinstance(told[-1], EngineError))
    assert "was ended by SIGKILL: ask again, another one starts" in str(told[-1])
    assert worker.num_active == 0
    events = ask(worker, request("g", [1, 2, 3]))
    assert_greedy(model[0], [1, 2, 3], [e.token for e in events if isinstance(e, TokenEvent)])
    assert worker.process_id not in (None, first)


@pytest.mark.slow  # tests/server/test_dead_worker.py has the same over HTTP
@pytest.mark.req("FR-054")
def test_one_that_was_started_is_replaced_by_itself(
    model: tuple[GPT, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = EngineSpec(
        model="tiny", home=model[1], device="cpu", format="float32", max_rows=4, num_workers=2
    )
    worker = EngineProcess(spec)
    try:
        found = worker.start()
        assert found.context_len == model[0].config.context_len and found.is_chat
        assert found.tokenizer.vocab_size == model[0].config.vocab_size
        assert len(found.model_hash) == 64
        assert worker.start() == found and worker.is_ready
        ask(worker, request("a", [1, 2, 3]))
        wait_until(lambda: worker.stats().num_steps > 0 and not worker.stats().num_running)
        stats = worker.stats()
        assert 0 < stats.num_free_blocks <= stats.num_blocks
        first = worker.process_id
        assert first is not None
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: not worker.is_ready)
        with pytest.raises(Unavailable, match="the engine is being loaded"):
            worker.submit(request("b", [1]), print)
        wait_until(lambda: worker.is_ready, 200)
        assert worker.process_id not in (None, first)
        assert ask(worker, request("c", [1, 2, 3]))
        is_replaced_when_it_hangs(worker, monkeypatch)
    finally:
        worker.close()
    assert not worker.is_ready
    with pytest.raises(EngineError, match="the engine is closed"):
        worker.start()


def is_replaced_when_it_hangs(worker: EngineProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server answers meanwhile, and who waited for the engine is told."""
    loaded, first = worker.start(), worker.process_id
    assert first is not None
    served = ServedModel(
        name="tiny", tokenizer=loaded.tokenizer, context_len=loaded.context_len, created=7
    )
    app, address = create_app(worker, served), "http://localhost:8000"
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
    with TestClient(app, base_url=address, raise_server_exceptions=False) as client:
        monkeypatch.setattr(worker_module, "HUNG_S", 3.0)
        os.kill(first, signal.SIGSTOP)
        with ThreadPoolExecutor(1) as thread:
            asked = thread.submit(client.post, "/v1/chat/completions", json=body)
            wait_until(lambda: worker.num_active == 1)
            assert client.get("/health").status_code == 200
            assert not asked.done()
            answer = asked.result(timeout=60)
    assert answer.status_code == 500
    assert "said nothing for 3 s and was ended: ask again" in answer.json()["error"]["message"]
    wait_until(lambda: worker.process_id not in (None, first), 200)
    assert ask(worker, request("d", [1, 2, 3]))


def test_a_reader_that_fails_costs_itself_alone(worker: EngineProcess) -> None:
    def broken(event: object) -> None:
        raise RuntimeError("its loop is closed")

    worker.submit(request("broken", [1]), broken)
    assert isinstance(ask(worker, request("fine", [1]))[-1], TokenEvent)
    wait_until(lambda: worker.num_active == 0)


def test_the_process_tells_why_it_cannot_load(
    model: tuple[GPT, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own words, without a process around them."""
    ours, theirs = multiprocessing.Pipe()
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    monkeypatch.setattr(sys, "setswitchinterval", lambda seconds: None)
    serve(EngineSpec(model="absent", home=model[1]), theirs)
    with pytest.raises(CheckpointError, match="'absent' is neither a directory nor a run"):
        raise ours.recv()


def test_what_cannot_be_loaded_is_said(model: tuple[GPT, Path]) -> None:
    worker = EngineProcess(EngineSpec(model="absent", home=model[1]))
    with pytest.raises(CheckpointError, match="'absent' is neither a directory nor a run"):
        worker.submit(request("a", [1]), print)
    worker.close()

"""An engine in a process of its own: the same answers, and a crash that costs its requests only."""

import os
import queue
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nanochat.common.errors import CheckpointError, EngineError, TokenizerError, Unavailable
from nanochat.engine.load import EngineSpec
from nanochat.engine.request import Request, SamplingParams, TokenEvent
from nanochat.engine.worker import EngineProcess
from nanochat.model.gpt import GPT
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


def request(name: str, tokens: list[int], **said: Any) -> Request:
    sampling = SamplingParams(**{"max_tokens": 6, "temperature": 0.0, **said})
    return Request(request_id=name, prompt_tokens=tuple(tokens), sampling=sampling)


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
    ask(worker, request("e", [1]))
    first = worker.process_id
    assert first is not None
    os.kill(first, signal.SIGSTOP)  # so that its requests are surely still there
    told: list[Any] = []
    with worker._lock:
        worker._readers["f"] = (told.append, 1)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: bool(told))
    assert isinstance(told[0], EngineError)
    assert "was ended by SIGKILL: ask again, another one starts" in str(told[0])
    events = ask(worker, request("g", [1, 2, 3]))
    assert_greedy(model[0], [1, 2, 3], [e.token for e in events if isinstance(e, TokenEvent)])
    assert worker.process_id not in (None, first)


@pytest.mark.req("FR-054")
def test_one_that_was_started_is_replaced_by_itself(model: tuple[GPT, Path]) -> None:
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
    finally:
        worker.close()
    assert not worker.is_ready
    with pytest.raises(EngineError, match="the engine is closed"):
        worker.start()


def test_a_reader_that_fails_costs_itself_alone(worker: EngineProcess) -> None:
    def broken(event: object) -> None:
        raise RuntimeError("its loop is closed")

    worker.submit(request("broken", [1]), broken)
    assert isinstance(ask(worker, request("fine", [1]))[-1], TokenEvent)
    wait_until(lambda: worker.num_active == 0)


def test_what_cannot_be_loaded_is_said(model: tuple[GPT, Path]) -> None:
    worker = EngineProcess(EngineSpec(model="absent", home=model[1]))
    with pytest.raises(CheckpointError, match="'absent' is neither a directory nor a run"):
        worker.submit(request("a", [1]), print)
    worker.close()

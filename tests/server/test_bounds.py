"""What one body may ask for: answers that fit, of bounded size, to a schema of bounded cost."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient

from nanochat.common.errors import ConfigError, SchemaError
from nanochat.engine.engine import Engine
from nanochat.engine.request import Request
from nanochat.server import serving
from nanochat.server.app import ServedModel, create_app
from nanochat.server.serving import MAX_ANSWER_SIZE
from nanochat.server.settings import CacheSettings, ServerSettings
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.engine.conftest import CONTEXT_LEN, random_model
from tests.patience import wait_until
from tests.server.conftest import ask
from tests.server.fakes import FakeEngine
from tests.server.test_app import CHAT, assert_error

COMPLETIONS = "/v1/completions"
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "array"}}}


def client_of(engine: Any, served: ServedModel, **settings: Any) -> TestClient:
    app = create_app(engine, served, ServerSettings(**settings))
    return TestClient(app, base_url="http://localhost", raise_server_exceptions=False)


@pytest.mark.req("EC-10", "FR-080")
@pytest.mark.parametrize("cache", [None, CacheSettings()])
def test_prompts_of_one_body_are_let_in_together(
    served: ServedModel, cache: CacheSettings | None
) -> None:
    engine = FakeEngine()
    body = {"model": "tiny", "prompt": [f"text {n}" for n in range(6)], "temperature": 0}
    with client_of(engine, served, max_active=4, max_queue=0, cache=cache) as client:
        # More than ever fit, and nobody else is there: as with n = 6.
        assert len(client.post(COMPLETIONS, json=body).json()["choices"]) == 6
        engine.gate.clear()
        with ThreadPoolExecutor(1) as thread:
            other = thread.submit(client.post, COMPLETIONS, json={**body, "prompt": "else"})
            wait_until(lambda: len(engine.requests) == 7)
            fresh = {**body, "prompt": ["x", "y", "z", "w"]}
            assert_error(client.post(COMPLETIONS, json=fresh), 429, "rate_limit_exceeded")
            assert len(engine.requests) == 7  # none of them began
            if cache is not None:  # what is known needs no room
                assert client.post(COMPLETIONS, json=body).headers["X-Cache"] == "HIT"
            engine.gate.set()
            assert other.result().status_code == 200
        assert len(client.post(COMPLETIONS, json=fresh).json()["choices"]) == 4


@pytest.mark.req("FR-080", "FR-062")
def test_answers_have_a_largest_size(
    tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine()
    served = ServedModel(name="tiny", tokenizer=tiny_tokenizer, context_len=8192)
    client = client_of(engine, served)
    largest = {"n": 128, "max_tokens": MAX_ANSWER_SIZE // 128}
    assert client.post(CHAT, json=ask("Hi", **largest)).status_code == 200
    for more in ({"max_tokens": 4097}, {"logprobs": True, "top_logprobs": 1}, {"max_tokens": None}):
        answer = client.post(CHAT, json=ask("Hi", **{**largest, **more}))
        assert_error(answer, 400, "invalid_value", "max_tokens")
        assert "expected at most 524288" in answer.json()["error"]["message"]
    monkeypatch.setattr(serving, "MAX_ANSWER_SIZE", 2 * 5 * 2)  # tokens that are echoed count, too
    body = {"model": "tiny", "prompt": [[1] * 4] * 2, "max_tokens": 1, "echo": True}
    assert client.post(COMPLETIONS, json={**body, "logprobs": 1}).status_code == 200
    answer = client.post(COMPLETIONS, json={**body, "logprobs": 2})
    assert_error(answer, 400, "invalid_value", "max_tokens")


@pytest.mark.req("FR-083")
@pytest.mark.parametrize("error", [ConfigError("no such type"), SchemaError("it took 9 s")])
@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_that_the_engine_gives_up_is_400(
    served: ServedModel, error: Exception, stream: bool
) -> None:
    client = client_of(FakeEngine([error]), served)
    answer = client.post(CHAT, json=ask("Hi", response_format=SCHEMA, stream=stream))
    assert_error(answer, 400, "invalid_value", "response_format")


@pytest.mark.req("FR-062")
def test_a_costly_schema_is_400_and_names_its_bound(tiny_tokenizer: Tokenizer) -> None:
    served = ServedModel(name="tiny", tokenizer=tiny_tokenizer, context_len=CONTEXT_LEN)
    client = client_of(Engine(random_model(), tiny_tokenizer), served)
    costly = {"allOf": [{"type": "string", "pattern": f".*{n}.{{0,60}}"} for n in range(20)]}
    asked = {"type": "json_schema", "json_schema": {"name": "a", "schema": costly}}
    answer = client.post(CHAT, json=ask("Hi", response_format=asked))
    assert_error(answer, 400, "invalid_value", "response_format")
    assert "20 patterns and formats apply to one string" in answer.json()["error"]["message"]


class Compiling(FakeEngine):
    """An engine that takes its time with a schema."""

    def __init__(self) -> None:
        super().__init__()
        self.is_asked, self.may_go_on = threading.Event(), threading.Event()

    def submit(self, request: Request, deliver: Callable[..., None], /) -> None:
        self.is_asked.set()
        assert request.schema is None or self.may_go_on.wait(60)
        super().submit(request, deliver)


@pytest.mark.req("FR-052", "FR-062")
def test_nobody_waits_for_the_schema_of_another(served: ServedModel) -> None:
    engine = Compiling()
    with client_of(engine, served) as client, ThreadPoolExecutor(1) as thread:
        asked = thread.submit(client.post, CHAT, json=ask("Hi", response_format=SCHEMA))
        assert engine.is_asked.wait(60)
        assert client.get("/health").status_code == 200
        assert client.post(CHAT, json=ask("Hi")).status_code == 200
        assert not asked.done()
        engine.may_go_on.set()
        assert asked.result().status_code == 200


def test_what_is_asked_for_after_everybody_left_is_dropped() -> None:
    may_go_on, closed = threading.Event(), threading.Event()

    class Made:
        def close(self) -> None:
            closed.set()

    def made() -> Any:
        assert may_go_on.wait(60)
        return Made()

    async def leave() -> None:
        making = asyncio.ensure_future(serving._made_beside(made))
        await asyncio.sleep(0)
        making.cancel()
        with pytest.raises(asyncio.CancelledError):
            await making
        may_go_on.set()
        while not closed.is_set():
            await asyncio.sleep(0.001)

    asyncio.run(leave())

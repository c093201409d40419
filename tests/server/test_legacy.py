"""POST /chat/completions: what karpathy/nanochat's page sends is answered as it expects."""

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient

from nanochat.common.errors import EngineError
from nanochat.engine.request import Request
from nanochat.server.app import ServedModel, create_app
from nanochat.server.frames import Piece
from nanochat.server.legacy import LegacyFrames
from nanochat.server.responses import Usage
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.server.conftest import CONTEXT_LEN, ask
from tests.server.fakes import FakeEngine, event
from tests.server.test_app import assert_error

pytestmark = [pytest.mark.req("FR-050"), pytest.mark.req("FR-080")]

URL = "/chat/completions"
USER = {"role": "user", "content": "Hi"}
# What its page sends: nothing more, and 512 whatever the context.
PAGE = {"messages": [USER], "temperature": 0.8, "top_k": 50, "max_tokens": 512}


def data_of(text: str) -> list[Any]:
    """The data of each event, as its page reads them: line by line."""
    return [
        json.loads(line.removeprefix("data: "))
        for line in text.split("\n")
        if line.startswith("data: ")
    ]


def test_the_page_reads_its_answer(client: TestClient, engine: FakeEngine) -> None:
    engine.script = ("Hel", "", 'lo "\u2603"\n')
    response = client.post(URL, json=PAGE)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.text.startswith('data: {"token": "Hel", "gpu": 0}\n\n')
    *tokens, done = data_of(response.text)
    assert done == {"done": True}
    assert [set(each) for each in tokens] == [{"token", "gpu"}] * 2
    assert "".join(each["token"] for each in tokens) == 'Hello "\u2603"\n'
    sampling = engine.requests[-1].sampling
    assert (sampling.temperature, sampling.top_k) == (0.8, 50)
    assert sampling.max_tokens == CONTEXT_LEN - len(engine.requests[-1].prompt_tokens)


def test_defaults_and_the_whole_vocabulary(client: TestClient, engine: FakeEngine) -> None:
    client.post(URL, json={"messages": [USER], "top_k": 0, "max_tokens": 5})
    assert engine.requests[-1].sampling.top_k is None
    assert engine.requests[-1].sampling.max_tokens == 5
    client.post(URL, json={"messages": [USER]})
    assert engine.requests[-1].sampling.top_k == 50


def test_the_calculator_is_used_and_told(tiny_tokenizer: Tokenizer) -> None:
    served = ServedModel(name="t", tokenizer=tiny_tokenizer, context_len=99, has_tools=True)
    engine = FakeEngine((("", tiny_tokenizer.special("<|python_start|>")), "1+1"))
    client = TestClient(create_app(engine, served), base_url="http://localhost")
    *tokens, _ = data_of(client.post(URL, json=PAGE).text)
    assert "".join(each["token"] for each in tokens) == "<|python_start|>1+1"
    assert engine.requests[-1].tools
    frames = LegacyFrames(tiny_tokenizer)
    request = Request(request_id="r", prompt_tokens=(1,))
    pieces = [Piece(0, event(request, text, 65)) for text in ("a", "b")]
    for piece in pieces:
        frames.add(piece)
    assert json.loads(frames.whole(Usage(1, 2))) == {"token": "ab", "done": True}


def test_what_breaks_in_mid_answer(client: TestClient, engine: FakeEngine) -> None:
    engine.script = ("Hel", EngineError("broken"))
    [first, last] = data_of(client.post(URL, json=PAGE).text)
    assert first["token"] == "Hel"
    assert last["error"]["code"] == "engine_error"


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": [USER] * 501}, "invalid_value", "messages"),
        ({"messages": [{**USER, "content": ""}]}, "invalid_value", "messages[0].content"),
        ({"messages": [{**USER, "content": "x" * 8001}]}, "invalid_value", "messages[0].content"),
        ({"messages": [{**USER, "content": "x" * 8000}] * 5}, "invalid_value", "messages"),
        ({"messages": [{**USER, "content": ["x"]}]}, "invalid_type", "messages[0].content"),
        ({"messages": [{**USER, "role": "root"}]}, "invalid_value", "messages[0].role"),
        ({"temperature": 2.1}, "decimal_above_max_value", "temperature"),
        ({"top_k": 201}, "integer_above_max_value", "top_k"),
        ({"max_tokens": 4097}, "integer_above_max_value", "max_tokens"),
        ({"max_tokens": 0}, "integer_below_min_value", "max_tokens"),
        ({"messages": [{**USER, "content": "x" * 999}]}, "context_length_exceeded", "messages"),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.req("FR-083")
def test_its_limits(client: TestClient, change: dict[str, Any], code: str, param: str) -> None:
    assert_error(client.post(URL, json=PAGE | change), 400, code, param)


def test_its_limits_hold_nowhere_else(client: TestClient, served: ServedModel) -> None:
    wide = ServedModel(name="tiny", tokenizer=served.tokenizer, context_len=20_000)
    client = TestClient(create_app(FakeEngine(), wide), base_url="http://localhost")
    for contents in (("x",) * 1001, ("x" * 9000,)):
        assert client.post("/v1/chat/completions", json=ask(*contents)).status_code == 200
        assert client.post(URL, json={"messages": ask(*contents)["messages"]}).status_code == 400

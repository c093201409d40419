"""app.py: OpenAI's shapes on every path, errors included."""

import json
import subprocess
import sys
import threading
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import ValidationError

from nanochat.common.errors import (
    Aborted,
    ClientLeft,
    ConfigError,
    DataError,
    DeadlineExceeded,
    EngineError,
    Overflowed,
    Overloaded,
    RequestTooLong,
    TokenizerError,
)
from nanochat.server import requests
from nanochat.server.app import ServedModel, create_app
from nanochat.server.settings import ServerSettings
from tests.conftest import REPOSITORY
from tests.patience import wait_until
from tests.server.conftest import CONTEXT_LEN, ask
from tests.server.fakes import FakeEngine

CHAT = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}


def frames_of(text: str) -> list[Any]:
    """The data of each event; the last is [DONE]."""
    events = text.split("\n\n")
    assert events.pop() == ""
    assert all(event.startswith("data: ") for event in events)
    assert events.pop() == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events]


def assert_error(response: Any, status: int, code: str, param: str | None = None) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param)
    assert error["type"] and error["message"]
    return str(error["message"])


@pytest.mark.req("FR-053")
@pytest.mark.req("FR-081")
def test_a_whole_answer(client: TestClient) -> None:
    body = client.post(CHAT, json=ask()).json()
    assert body.pop("id").startswith("chatcmpl-")
    assert body.pop("created") > 1.7e9
    assert body == {
        "object": "chat.completion",
        "model": "tiny",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 6, "completion_tokens": 2, "total_tokens": 8},
    }


@pytest.mark.req("FR-050")
@pytest.mark.req("FR-082")
def test_a_streamed_answer(client: TestClient, engine: FakeEngine) -> None:
    engine.script = ("Hel", "", "lo \u2603")
    response = client.post(CHAT, json=ask(stream=True))
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    frames = frames_of(response.text)
    for frame in frames:
        assert set(frame) == {"id", "object", "created", "model", "choices"}
        assert frame["object"] == "chat.completion.chunk"
        assert frame["id"] == frames[0]["id"]
        [choice] = frame["choices"]
        assert set(choice) == {"index", "delta", "logprobs", "finish_reason"}
    deltas = [frame["choices"][0]["delta"] for frame in frames]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert deltas[-1] == {}
    assert "".join(delta.get("content", "") for delta in deltas) == "Hello \u2603"
    assert [f["choices"][0]["finish_reason"] for f in frames[-2:]] == [None, "stop"]


def test_a_stream_counts_tokens_if_asked(client: TestClient, engine: FakeEngine) -> None:
    engine.reason = "length"
    options = {"include_usage": True}
    frames = frames_of(client.post(CHAT, json=ask(stream=True, stream_options=options)).text)
    assert [frame["usage"] for frame in frames[:-1]] == [None] * (len(frames) - 1)
    assert frames[-1]["choices"] == []
    assert frames[-1]["usage"] == {
        "prompt_tokens": 6,
        "completion_tokens": 3,  # the token that reached the limit is part of the answer
        "total_tokens": 9,
    }


@pytest.mark.req("FR-080")
@pytest.mark.req("FR-012")
def test_what_a_request_says_reaches_the_engine(client: TestClient, engine: FakeEngine) -> None:
    client.post(CHAT, json=ask(temperature=0, top_p=0.5, top_k=3, max_tokens=9, seed=-1))
    sampling = engine.requests[-1].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.0, 0.5, 3)
    assert (sampling.max_tokens, sampling.seed) == (9, 2**63 - 1)
    client.post(CHAT, json=ask(top_p=0, top_k=0, max_completion_tokens=4, max_tokens=5))
    sampling = engine.requests[-1].sampling
    assert 0 < sampling.top_p < 1e-3
    assert (sampling.top_k, sampling.max_tokens) == (None, 4)
    neutral = {"n": 1, "stop": None, "tools": None, "logprobs": False, "presence_penalty": 0}
    for _ in "ab":
        client.post(CHAT, json=ask(**neutral, user="me", metadata={"a": "b"}, max_tokens=None))
    first, second = (request.sampling for request in engine.requests[-2:])
    assert (first.temperature, first.top_k, first.top_p) == (0.8, 50, 1.0)
    assert first.max_tokens == CONTEXT_LEN - 6  # what the question has left
    assert first.seed != second.seed
    assert len({request.request_id for request in engine.requests}) == len(engine.requests)


@pytest.mark.req("FR-062")
@pytest.mark.req("FR-029")
def test_what_a_user_types_never_becomes_a_special_token(
    client: TestClient, engine: FakeEngine, served: ServedModel
) -> None:
    names = list(served.tokenizer.special_tokens)
    client.post(CHAT, json=ask("".join(names)))
    tokens = list(engine.requests[-1].prompt_tokens)
    special = served.tokenizer.special
    assert tokens[:2] == [special("<|bos|>"), special("<|user_start|>")]
    assert tokens[-2:] == [special("<|user_end|>"), special("<|assistant_start|>")]
    assert not set(tokens[2:-2]) & set(served.tokenizer.special_tokens.values())
    assert served.tokenizer.decode(tokens[2:-2]) == "".join(names)
    assert set(engine.requests[-1].sampling.stop_tokens) == {
        special("<|assistant_end|>"), special("<|bos|>")
    }  # fmt: skip


@pytest.mark.req("FR-051")
def test_a_conversation_in_all_roles_and_parts(
    client: TestClient, engine: FakeEngine, served: ServedModel
) -> None:
    parts = [{"type": "text", "text": "And"}, {"type": "text", "text": " now?"}]
    messages = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": "Hi", "name": "Ann"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": parts},
    ]
    assert client.post(CHAT, json=ask() | {"messages": messages}).status_code == 200
    text = served.tokenizer.decode(engine.requests[-1].prompt_tokens)
    assert text == (
        "<|bos|><|user_start|>Be kind.\n\nHi<|user_end|><|assistant_start|><|assistant_end|>"
        "<|user_start|>And now?<|user_end|><|assistant_start|>"
    )


@pytest.mark.req("FR-053")
def test_models_and_health(client: TestClient) -> None:
    assert client.get("/v1/models").json() == {
        "object": "list",
        "data": [{"id": "tiny", "object": "model", "created": 7, "owned_by": "nanochat"}],
    }
    health = {"status": "ok", "ready": True, "model": "tiny", "num_active": 0}
    health |= {"num_gpus": 1, "available_workers": 1}  # as chat_web.py's clients look for them
    assert client.get("/health").json() == health | {"context_len": CONTEXT_LEN}


USER = {"role": "user", "content": "x"}
CALCULATOR = {"type": "calculator"}
FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {}}}
IMAGE = [{"type": "image_url", "image_url": {"url": "http://localhost/x.png"}}]


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"model": None}, "invalid_type", "model"),
        ({"messages": None}, "invalid_type", "messages"),
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": [USER] * (2**14 + 1)}, "invalid_value", "messages"),
        ({"messages": ["x"]}, "invalid_type", "messages[0]"),
        ({"messages": [{"role": "user"}]}, "missing_required_parameter", "messages[0].content"),
        ({"messages": [{**USER, "role": "root"}]}, "invalid_value", "messages[0].role"),
        ({"messages": [{**USER, "content": 5}]}, "invalid_type", "messages[0].content"),
        ({"messages": [{**USER, "content": IMAGE}]}, "unsupported_value", "messages[0].content"),
        (
            {"messages": [{**USER, "content": [{"type": "text"}]}]},
            "invalid_type",
            "messages[0].content",
        ),
        ({"messages": [{**USER, "content": ""}]}, "invalid_value", "messages"),
        ({"messages": [{**USER, "role": "assistant"}]}, "invalid_value", "messages"),
        ({"temperature": 2.1}, "decimal_above_max_value", "temperature"),
        ({"temperature": -0.1}, "decimal_below_min_value", "temperature"),
        ({"temperature": "hot"}, "invalid_type", "temperature"),
        ({"temperature": float("nan")}, "invalid_type", "temperature"),
        ({"top_p": 1.5}, "decimal_above_max_value", "top_p"),
        ({"max_tokens": 0}, "integer_below_min_value", "max_tokens"),
        ({"max_tokens": 1.5}, "invalid_type", "max_tokens"),
        ({"seed": 2**64}, "integer_above_max_value", "seed"),
        ({"stream": "yes"}, "invalid_type", "stream"),
        ({"stream_options": 1}, "invalid_type", "stream_options"),
        ({"n": 0}, "integer_below_min_value", "n"),
        ({"n": 129}, "integer_above_max_value", "n"),
        ({"stop": ""}, "invalid_value", "stop"),
        ({"stop": ["x"] * 17}, "invalid_value", "stop"),
        ({"stop": 5}, "invalid_type", "stop"),
        ({"stop": ["x", 5]}, "invalid_type", "stop"),
        ({"presence_penalty": 3}, "decimal_above_max_value", "presence_penalty"),
        ({"frequency_penalty": -3}, "decimal_below_min_value", "frequency_penalty"),
        ({"repetition_penalty": 0}, "decimal_below_min_value", "repetition_penalty"),
        ({"min_p": 2}, "decimal_above_max_value", "min_p"),
        ({"logit_bias": []}, "invalid_type", "logit_bias"),
        ({"logit_bias": {"cat": 1}}, "invalid_value", "logit_bias"),
        ({"logit_bias": {"1": 101}}, "invalid_value", "logit_bias"),
        ({"logit_bias": {"1": "x"}}, "invalid_type", "logit_bias"),
        ({"logit_bias": {"300": 1}}, "invalid_value", "logit_bias"),
        ({"logit_bias": {str(k): 0 for k in range(1025)}}, "invalid_value", "logit_bias"),
        ({"top_logprobs": 2}, "invalid_value", "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "integer_above_max_value", "top_logprobs"),
        ({"stream_options": {}}, "invalid_value", "stream_options"),
        ({"max_tokens": CONTEXT_LEN}, "context_length_exceeded", "messages"),
        ({"cache": {"s-maxage": -1}}, "decimal_below_min_value", "cache.s-maxage"),
        ({"cache": {"namespace": 5}}, "invalid_type", "cache.namespace"),
        ({"cache": {"use-cache": True}}, "unknown_parameter", "cache.use-cache"),
        ({"tools": []}, "invalid_value", "tools"),
        ({"tools": {}}, "invalid_type", "tools"),
        ({"tools": [FUNCTION]}, "unsupported_value", "tools"),
        ({"tools": [CALCULATOR, FUNCTION]}, "unsupported_value", "tools"),
        ({"tools": [FUNCTION], "tool_choice": "required"}, "unsupported_value", "tools"),
        ({"tools": [FUNCTION], "tool_choice": FUNCTION}, "unsupported_value", "tools"),
        ({"tool_choice": "required"}, "unsupported_value", "tool_choice"),
        ({"tool_choice": 5}, "invalid_value", "tool_choice"),
        ({"tool_choice": "auto"}, "invalid_value", "tool_choice"),
        ({"tool_choice": "maybe"}, "invalid_value", "tool_choice"),
        ({"tools": [CALCULATOR], "tool_choice": "required"}, "unsupported_value", "tool_choice"),
        ({"tools": [CALCULATOR], "tool_choice": FUNCTION}, "unsupported_value", "tool_choice"),
        ({"functions": [FUNCTION["function"]]}, "unsupported_value", "functions"),
        ({"modalities": ["audio"]}, "unsupported_value", "modalities"),
        (
            {"tools": [CALCULATOR], "response_format": {"type": "json_object"}},
            "unsupported_value",
            "response_format",
        ),
        ({"response_format": {"type": "xml"}}, "invalid_value", "response_format"),
        ({"response_format": "json"}, "invalid_type", "response_format"),
        (
            {"response_format": {"type": "json_schema"}},
            "missing_required_parameter",
            "response_format.json_schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a b"}}},
            "invalid_value",
            "response_format.json_schema.name",
        ),
        (
            {"messages": [{**USER, "role": "assistant", "content": "", "tool_calls": [{}]}, USER]},
            "unsupported_value",
            "messages[0].tool_calls",
        ),
        ({"messages": [{**USER, "role": "tool"}]}, "invalid_value", "messages[0].role"),
        ({"messages": [{**USER, "role": "assistant"}, USER]}, "invalid_value", "messages"),
    ],
    ids=lambda value: str(value)[:50],
)
@pytest.mark.req("FR-083")
def test_wrong_values_are_400_and_name_the_parameter(
    client: TestClient, engine: FakeEngine, change: dict[str, Any], code: str, param: str
) -> None:
    content = json.dumps(ask() | change)
    response = client.post(CHAT, content=content, headers=JSON)
    assert_error(response, 400, code, param)
    assert engine.requests == []


@pytest.mark.parametrize(
    ("content", "code", "param"),
    [
        (b"{", "invalid_json", None),
        (b"", "invalid_type", None),
        (b"[]", "invalid_type", None),
        (b"null", "invalid_type", None),
        (b'"x"', "invalid_type", None),
        (b"{}", "missing_required_parameter", "model"),
        (b'{"model": "tiny"}', "missing_required_parameter", "messages"),
        (b"[" * 100_000, "invalid_json", None),
        (b'{"model": "\xff"}', "invalid_json", None),
        (b'{"seed": ' + b"9" * 5000 + b"}", "invalid_json", None),
    ],
    ids=lambda value: str(value)[:20],
)
@pytest.mark.req("FR-083")
def test_bodies_that_are_no_request(
    client: TestClient, content: bytes, code: str, param: str | None
) -> None:
    response = client.post(CHAT, content=content, headers=JSON)
    assert_error(response, 400, code, param)


@pytest.mark.req("FR-083", "FR-062")
def test_the_first_wrong_message_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body of 16,000 of them would take half a second."""
    num_looked_at = 0
    look = requests._neutral

    def counted(data: Any, neutral: Any) -> Any:
        nonlocal num_looked_at
        num_looked_at += 1
        return look(data, neutral)

    monkeypatch.setattr(requests, "_neutral", counted)
    for kind in (requests.ChatRequest, requests.TokenizeRequest):
        num_looked_at = 0
        with pytest.raises(ValidationError) as wrong:
            kind.model_validate({"model": "tiny", "messages": [USER, *[{}] * 1000]})
        assert {error["loc"][:2] for error in wrong.value.errors()} == {("messages", 1)}
        assert num_looked_at <= 3


@pytest.mark.req("FR-083")
def test_unknown_models_addresses_and_methods(client: TestClient) -> None:
    message = assert_error(
        client.post(CHAT, json=ask() | {"model": "gpt-5"}), 404, "model_not_found", "model"
    )
    assert "`gpt-5` does not exist" in message
    half = client.post(CHAT, content=json.dumps(ask() | {"model": "\ud800"}), headers=JSON)
    assert "`\ufffd` does not exist" in assert_error(half, 404, "model_not_found", "model")
    assert assert_error(client.get("/v2"), 404, "unknown_url") == "Invalid URL (GET /v2)"
    assert_error(client.get("/../pyproject.toml"), 404, "unknown_url")
    assert_error(client.delete("/v1/models"), 405, "method_not_allowed")
    for method, path, allowed in [
        ("GET", CHAT, "POST"),
        ("PUT", "/admin/cache", "GET, DELETE"),
        ("PUT", "/admin/cache/x", "DELETE"),
        ("POST", "/health", "GET, HEAD"),
        ("POST", "/", "GET, HEAD"),
    ]:
        response = client.request(method, path, headers=JSON)
        assert_error(response, 405, "method_not_allowed")
        assert response.headers["allow"] == allowed
    for path in (f"{CHAT}/", "/health/", "/v1/models/tiny/", "/v1/models//"):
        response = client.get(path, follow_redirects=False)
        assert response.status_code == 404, path
    assert_error(client.post(f"{CHAT}/", json=ask()), 404, "unknown_url")
    for path in ("/health", "/ready", "/"):
        head = client.head(path)
        assert (head.status_code, head.content) == (200, b"")


@pytest.mark.req("EC-4")
@pytest.mark.req("FR-083")
def test_a_conversation_beyond_the_context_is_refused_with_the_numbers(client: TestClient) -> None:
    message = assert_error(
        client.post(CHAT, json=ask("\u2603" * CONTEXT_LEN)),
        400, "context_length_exceeded", "messages",
    )  # fmt: skip
    assert f"maximum context length is {CONTEXT_LEN} tokens" in message
    assert f"resulted in {3 * CONTEXT_LEN + 4} tokens" in message


@pytest.mark.parametrize(
    ("error", "status", "code", "param"),
    [
        (RequestTooLong("x"), 400, "context_length_exceeded", "messages"),
        (Overloaded("x"), 429, "rate_limit_exceeded", None),
        (Aborted("x"), 503, "aborted", None),
        (ClientLeft("x"), 499, "client_closed_request", None),
        (DataError("x"), 400, "invalid_value", "messages"),
        (ConfigError("x"), 400, "invalid_value", None),
        (TokenizerError("x"), 400, "invalid_value", None),
        (EngineError("x"), 500, "engine_error", None),
        (DeadlineExceeded("x"), 504, "deadline_exceeded", None),
        (Overflowed("x"), 500, "engine_error", None),
        (KeyError("secret"), 500, "internal_error", None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
@pytest.mark.req("FR-083")
def test_one_table_maps_errors_to_status(
    client: TestClient,
    engine: FakeEngine,
    error: Exception,
    status: int,
    code: str,
    param: str | None,
) -> None:
    engine.refusal = error
    for is_stream in (False, True):  # before anything is streamed a status can still tell
        response = client.post(CHAT, json=ask(stream=is_stream))
        message = assert_error(response, status, code, param)
        assert message == "x" if not isinstance(error, KeyError) else "secret" not in message
        assert response.headers.get("retry-after") == ("1" if status == 429 else None)
        is_final = isinstance(error, DeadlineExceeded | Overflowed)  # else the client asks again
        assert response.headers.get("x-should-retry") == ("false" if is_final else None)
    assert client.get("/health").json()["num_active"] == 0


@pytest.mark.req("FR-083")
def test_what_breaks_in_mid_answer(client: TestClient, engine: FakeEngine) -> None:
    engine.script = ("Hel", EngineError("out of memory"))
    assert_error(client.post(CHAT, json=ask()), 500, "engine_error")
    response = client.post(CHAT, json=ask(stream=True))
    assert response.status_code == 200
    *_, last, end = response.text.split("\n\n")
    assert end == ""
    assert json.loads(last.removeprefix("data: ")) == {
        "error": {
            "message": "out of memory",
            "type": "server_error",
            "param": None,
            "code": "engine_error",
        }
    }
    engine.script, engine.reason = ("Hel",), "abort"
    assert_error(client.post(CHAT, json=ask()), 503, "aborted")


def test_more_requests_than_the_limit_are_429(engine: FakeEngine, served: ServedModel) -> None:
    engine.gate.clear()  # the first answer does not end by itself
    app = create_app(engine, served, ServerSettings(max_active=1, max_queue=0))
    client = TestClient(app, base_url="http://localhost")
    first = threading.Thread(target=client.post, args=(CHAT,), kwargs={"json": ask()})
    first.start()
    wait_until(lambda: app.state.admission.num_active == 1)
    response = client.post(CHAT, json=ask("another"))
    message = assert_error(response, 429, "rate_limit_exceeded")
    assert "1 answers are being written or wait, of at most 1" in message
    assert 1 <= int(response.headers["retry-after"]) <= 120
    engine.gate.set()
    first.join()


@pytest.mark.req("FR-079")
def test_the_server_imports_no_torch() -> None:
    code = "import sys, nanochat.server.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


def test_the_schema_is_served(client: TestClient, app: FastAPI) -> None:
    assert set(client.get("/openapi.json").json()["paths"]) == {
        CHAT,
        "/v1/completions",
        "/v1/models",
        "/v1/models/{model_id}",
        "/chat/completions",
        "/tokenize",
        "/detokenize",
        "/health",
        "/ready",
        "/version",
        "/stats",
        "/metrics",
        "/admin/cache",
        "/admin/cache/{key}",
    }
    assert client.get("/docs").status_code == 404  # its scripts would come from elsewhere

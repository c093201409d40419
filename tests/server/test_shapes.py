"""Every answer and every frame is as OpenAI's document says, whatever is asked for."""

import itertools
import json
from typing import Any

import jsonschema
import pytest
from fastapi.testclient import TestClient

from nanochat.common.errors import EngineError, Overloaded
from nanochat.server.errors import ErrorBody, ErrorMembers
from nanochat.server.responses import (
    ChatCompletion,
    ChatCompletionChunk,
    Detokenized,
    ModelCard,
    ModelList,
    TextCompletion,
    Tokenized,
)
from tests.server.conftest import ask
from tests.server.fakes import FakeEngine
from tests.server.shapes import check_shape, frames_of
from tests.server.test_app import CHAT

pytestmark = [pytest.mark.req("FR-081"), pytest.mark.req("FR-082"), pytest.mark.req("SC-015")]

COMPLETIONS = "/v1/completions"
CHAT_OPTIONS: dict[str, list[dict[str, Any]]] = {
    "n": [{}, {"n": 3}],
    "logprobs": [{}, {"logprobs": True}, {"logprobs": True, "top_logprobs": 5}],
    "format": [
        {},
        {"response_format": {"type": "text"}},
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}},
        {"tools": [{"type": "calculator"}], "tool_choice": "auto"},
    ],
    "rest": [
        {},
        {
            "stop": ["a", "b"], "seed": -5, "temperature": 0, "top_p": 0, "top_k": 5, "min_p": 0.1,
            "presence_penalty": 1, "frequency_penalty": -1, "repetition_penalty": 1.2,
            "logit_bias": {"5": -100}, "max_completion_tokens": 7, "user": "me",
            "metadata": {"a": "b"}, "store": False, "service_tier": "auto",
        },
    ],
}  # fmt: skip
COMPLETION_OPTIONS: dict[str, list[dict[str, Any]]] = {
    "prompt": [{"prompt": "a cat"}, {"prompt": ["a", "b"]}, {"prompt": [1, 2]},
               {"prompt": [[1, 2], [3]]}, {"prompt": ""}],
    "n": [{}, {"n": 2, "best_of": 2}],
    "logprobs": [{}, {"logprobs": 0}, {"logprobs": 3}],
    "echo": [{}, {"echo": True}, {"echo": True, "max_tokens": 0}, {"max_tokens": 0}],
}  # fmt: skip


def combined(options: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """All combinations."""
    bodies: list[dict[str, Any]] = []
    for picks in itertools.product(*options.values()):
        body: dict[str, Any] = {}
        for pick in picks:
            body |= pick
        bodies.append(body)
    return bodies


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_chat(client: TestClient, engine: FakeEngine, reason: Any) -> None:
    engine.reason = reason
    engine.script = ("", "Hel", ("\u2603", 226), "lo")
    for options in combined(CHAT_OPTIONS):
        response = client.post(CHAT, json=ask(**options))
        assert response.status_code == 200, response.text
        body = response.json()
        check_shape("CreateChatCompletionResponse", body)
        num_answers = options.get("n", 1)
        assert [choice["index"] for choice in body["choices"]] == list(range(num_answers))
        usage = {} if num_answers == 1 else {"stream_options": {"include_usage": True}}
        frames = frames_of(client.post(CHAT, json=ask(**options, **usage, stream=True)).text)
        for frame in frames:
            check_shape("CreateChatCompletionStreamResponse", frame)
        texts = [""] * num_answers
        told: list[list[Any]] = [[] for _ in texts]
        for frame in frames:
            for choice in frame["choices"]:
                texts[choice["index"]] += choice["delta"].get("content") or ""
                told[choice["index"]] += (choice["logprobs"] or {}).get("content") or []
        for choice in body["choices"]:
            assert choice["message"]["content"] == texts[choice["index"]] == "Hel\u2603lo"
            assert choice["finish_reason"] == reason
            logprobs = choice["logprobs"]
            assert (logprobs["content"] if logprobs else []) == told[choice["index"]]
            assert len(told[choice["index"]]) == (
                (4 if reason == "stop" else 5) if "logprobs" in options else 0
            )
        if usage:
            assert frames[-1]["usage"] == body["usage"]


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_completions(client: TestClient, engine: FakeEngine, reason: Any) -> None:
    engine.reason = reason
    for options in combined(COMPLETION_OPTIONS):
        body = {"model": "tiny", **options}
        response = client.post(COMPLETIONS, json=body)
        assert response.status_code == 200, response.text
        whole = response.json()
        # A list of tokens has nothing before its first.
        has_nulls = "logprobs" in options and bool(options.get("echo"))
        check_shape("CreateCompletionResponse", whole, has_nulls=has_nulls)
        more = {"stream": True, "stream_options": {"include_usage": True}}
        frames = frames_of(client.post(COMPLETIONS, json=body | more).text)
        for frame in frames:
            check_shape("CreateCompletionResponse", frame, has_nulls=True)
        assert frames[-1]["usage"] == whole["usage"]
        for choice in whole["choices"]:
            parts = [
                each
                for frame in frames
                for each in frame["choices"]
                if each["index"] == choice["index"]
            ]
            assert "".join(part["text"] for part in parts) == choice["text"]
            assert parts[-1]["finish_reason"] == choice["finish_reason"]
            if choice["logprobs"] is not None:
                for name, values in choice["logprobs"].items():
                    joined = [each for part in parts for each in part["logprobs"][name]]
                    assert joined == values


def test_models(client: TestClient) -> None:
    check_shape("ListModelsResponse", client.get("/v1/models").json())
    check_shape("Model", client.get("/v1/models/tiny").json())


def test_errors_on_every_path(client: TestClient, engine: FakeEngine) -> None:
    json_type = {"Content-Type": "application/json"}
    paths = (CHAT, COMPLETIONS, "/chat/completions", "/tokenize", "/detokenize")
    answers = [
        (client.get("/nowhere"), 404),
        (client.get("/v1/models/none/such"), 404),
        *[(client.get(path), 405) for path in paths],
        *[(client.post(path, content="{", headers=json_type), 400) for path in paths],
        *[(client.post(path, json=[]), 400) for path in paths],
        *[(client.post(path, content="a=b"), 415) for path in paths],
        *[(client.post(path, json={"x": "x" * (1 << 20)}), 413) for path in paths],
    ]
    engine.refusal = Overloaded("full", 7)
    answers += [(client.post(CHAT, json=ask()), 429)]
    assert answers[-1][0].headers["retry-after"] == "7"
    engine.refusal = EngineError("broken")
    answers += [(client.post(CHAT, json=ask()), 500)]
    engine.refusal = KeyError("secret")
    answers += [(client.post("/chat/completions", json={"messages": ask()["messages"]}), 500)]
    for response, status in answers:
        assert response.status_code == status, response.text
        check_shape("ErrorResponse", response.json())
        assert isinstance(response.json()["error"]["code"], str)
        assert "secret" not in response.text


@pytest.mark.parametrize(
    "body",
    [
        {"model": "x" * 900_000},
        {"model": "tiny", "messages": [{"role": "user", "content": "x"}] * 20_000},
        {"model": "tiny", "messages": [{"role": "z" * 800_000, "content": ["y"] * 100}]},
        {"model": "tiny", "messages": [5] * 100_000},
        {"model": "tiny", "messages": [{}], "logit_bias": {"k" * 500_000: 5}},
        {"model": "\ud800", "messages": [{"role": "user", "content": "\udfff"}]},
    ],
    ids=lambda body: str(body)[:30],
)
def test_errors_are_small(client: TestClient, body: dict[str, Any]) -> None:
    """A large body is no lever: the answer is at most some hundred characters."""
    content = json.dumps(body)
    response = client.post(CHAT, content=content, headers={"Content-Type": "application/json"})
    assert response.status_code in (400, 404)
    assert len(response.content) < 1000
    check_shape("ErrorResponse", response.json())


def test_our_types_say_the_same(client: TestClient) -> None:
    """The types in the OpenAPI document describe what is sent."""
    said = {**ask(), "logprobs": True, "top_logprobs": 1}
    ChatCompletion.model_validate(client.post(CHAT, json=said).json(), strict=True)
    for frame in frames_of(client.post(CHAT, json=said | {"stream": True}).text):
        ChatCompletionChunk.model_validate(frame, strict=True)
    text = {"model": "tiny", "prompt": [1, 2], "logprobs": 1, "echo": True}
    TextCompletion.model_validate(client.post(COMPLETIONS, json=text).json(), strict=True)
    ModelList.model_validate(client.get("/v1/models").json(), strict=True)
    ModelCard.model_validate(client.get("/v1/models/tiny").json(), strict=True)
    Tokenized.model_validate(client.post("/tokenize", json={"prompt": "a"}).json(), strict=True)
    Detokenized.model_validate(client.post("/detokenize", json={"tokens": [1]}).json())
    error = ErrorBody.model_validate(client.get("/nowhere").json(), strict=True).error
    assert error == ErrorMembers(
        message="Invalid URL (GET /nowhere)", type="invalid_request_error", param=None,
        code="unknown_url",
    )  # fmt: skip
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    assert {"ChatCompletionChunk", "ErrorBody", "ErrorMembers"} <= set(schemas)
    assert schemas["ChatRequest"]["properties"]["model"]["enum"] == ["tiny"]


def test_what_is_wrong_is_found() -> None:
    """The checks themselves: a missing and an unknown field fail."""
    card = {"id": "x", "object": "model", "created": 1, "owned_by": "me"}
    check_shape("Model", card)
    with pytest.raises(AssertionError, match="colour"):
        check_shape("Model", {**card, "colour": "red"})
    with pytest.raises(jsonschema.ValidationError, match="owned_by"):
        check_shape("Model", {name: card[name] for name in ("id", "object", "created")})

"""POST /tokenize and /detokenize."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient

from nanochat.server import serving
from nanochat.server.app import ServedModel, create_app
from nanochat.server.settings import ServerSettings
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.server.conftest import CONTEXT_LEN, ask
from tests.server.fakes import FakeEngine
from tests.server.test_app import CHAT, assert_error

pytestmark = pytest.mark.req("FR-080")


def test_there_and_back(client: TestClient, served: ServedModel) -> None:
    text = "the cats \u2603 <|bos|>"
    body = client.post("/tokenize", json={"prompt": text, "return_token_strs": True}).json()
    tokens = [served.tokenizer.bos, *served.tokenizer.encode(text)]
    assert body.pop("token_strs")[0] == "<|bos|>"
    assert body == {"count": len(tokens), "max_model_len": CONTEXT_LEN, "tokens": tokens}
    plain = {"model": "tiny", "prompt": text, "add_special_tokens": False}
    body = client.post("/tokenize", json=plain).json()
    assert body["tokens"] == tokens[1:]
    assert body["token_strs"] is None
    assert client.post("/detokenize", json={"tokens": tokens[1:]}).json() == {"prompt": text}
    assert client.post("/detokenize", json={"tokens": []}).json() == {"prompt": ""}


def test_a_conversation_as_chat_reads_it(client: TestClient, engine: FakeEngine) -> None:
    client.post(CHAT, json=ask("Hi", "Yes?", "No"))
    body = client.post("/tokenize", json={"messages": ask("Hi", "Yes?", "No")["messages"]}).json()
    assert body["tokens"] == list(engine.requests[-1].prompt_tokens)


def test_text_that_no_utf8_can_hold(client: TestClient, served: ServedModel) -> None:
    content = b'{"prompt": "\\ud800"}'
    response = client.post(
        "/tokenize", content=content, headers={"Content-Type": "application/json"}
    )
    tokens = response.json()["tokens"]
    assert client.post("/detokenize", json={"tokens": tokens[1:]}).json() == {"prompt": "\ufffd"}


def test_there_is_a_bound_of_how_many_at_once(served: ServedModel) -> None:
    app = create_app(FakeEngine(), served, ServerSettings(max_queue=0))
    is_begun, may_go_on = threading.Semaphore(0), threading.Event()

    def waiting(tokens: Any) -> str:
        is_begun.release()
        assert may_go_on.wait(60)
        return "x"

    with (
        pytest.MonkeyPatch.context() as patch,
        TestClient(app, base_url="http://localhost") as client,
        ThreadPoolExecutor(2) as threads,
    ):
        patch.setattr(serving, "MAX_TOKENIZING", 2)
        patch.setattr(Tokenizer, "decode", lambda self, tokens: waiting(tokens))
        asked = [threads.submit(client.post, "/detokenize", json={"tokens": [1]}) for _ in range(2)]
        assert is_begun.acquire(timeout=60) and is_begun.acquire(timeout=60)
        for path, body in (("/detokenize", {"tokens": [1]}), ("/tokenize", {"prompt": "a"})):
            response = client.post(path, json=body)
            assert_error(response, 429, "rate_limit_exceeded")
            assert response.headers["retry-after"] == "1"
        may_go_on.set()
        assert [each.result().status_code for each in asked] == [200, 200]
        assert client.post("/tokenize", json={"prompt": "a"}).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "param"),
    [
        ("/tokenize", {}, 400, "invalid_value", "prompt"),
        ("/tokenize", {"prompt": "a", **ask()}, 400, "invalid_value", "prompt"),
        ("/tokenize", {"prompt": 5}, 400, "invalid_type", "prompt"),
        ("/tokenize", {"prompt": "a", "model": "x"}, 404, "model_not_found", "model"),
        ("/detokenize", {}, 400, "missing_required_parameter", "tokens"),
        ("/detokenize", {"tokens": "a"}, 400, "invalid_type", "tokens"),
        ("/detokenize", {"tokens": [1, -1]}, 400, "invalid_type", "tokens"),
        ("/detokenize", {"tokens": [300]}, 400, "invalid_value", "tokens"),
        ("/detokenize", {"tokens": [1], "model": "x"}, 404, "model_not_found", "model"),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.req("FR-083")
def test_wrong_values(
    client: TestClient, path: str, body: dict[str, Any], status: int, code: str, param: str
) -> None:
    assert_error(client.post(path, json=body), status, code, param)

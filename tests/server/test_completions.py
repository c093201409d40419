"""POST /v1/completions with a real engine: what is echoed is how likely it is."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from nanochat.engine.engine import Engine
from nanochat.server.app import ServedModel, create_app
from nanochat.server.completions import prompt_tokens
from nanochat.server.frames import token_string
from nanochat.server.settings import ServerSettings
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.engine.conftest import CONTEXT_LEN, random_model
from tests.server.fakes import FakeEngine
from tests.server.test_app import assert_error

pytestmark = [pytest.mark.req("FR-080"), pytest.mark.req("FR-081")]

URL = "/v1/completions"
TEXT = "the cats and the \u2603 there"


@pytest.fixture(scope="module")
def engine(tiny_tokenizer: Tokenizer) -> Engine:
    return Engine(random_model(), tiny_tokenizer)


@pytest.fixture(scope="module")
def client(engine: Engine) -> TestClient:
    served = ServedModel(name="tiny", tokenizer=engine.tokenizer, context_len=CONTEXT_LEN)
    app = create_app(engine, served, ServerSettings(cache=None))
    return TestClient(app, base_url="http://localhost")


def post(client: TestClient, **fields: Any) -> dict[str, Any]:
    response = client.post(URL, json={"model": "tiny", "temperature": 0, **fields})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


@pytest.mark.parametrize("max_tokens", [0, 1, 5])
def test_an_echoed_text_is_as_likely_as_the_engine_says(
    client: TestClient, engine: Engine, max_tokens: int
) -> None:
    body = post(client, prompt=TEXT, echo=True, logprobs=2, max_tokens=max_tokens)
    [choice] = body["choices"]
    tokens = prompt_tokens(TEXT, engine.tokenizer)
    want = engine.score([(tokens, 1)])[0].logprobs
    logprobs = choice["logprobs"]
    assert choice["text"].startswith(TEXT) and (max_tokens > 0 or choice["text"] == TEXT)
    assert logprobs["token_logprobs"][: len(want)] == pytest.approx(want, abs=1e-4)
    assert len(logprobs["tokens"]) == len(tokens) - 1 + max_tokens  # <|bos|> is not the client's
    assert body["usage"]["prompt_tokens"] == len(tokens)
    assert body["usage"]["completion_tokens"] == max_tokens
    assert choice["finish_reason"] == "length"
    for token, logprob, top in zip(
        logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
    ):
        assert top[token] == logprob and 2 <= len(top) <= 3
    # A character of several tokens begins where its first does.
    snow = logprobs["tokens"].index("bytes:\\xe2")
    assert logprobs["text_offset"][snow : snow + 3] == [TEXT.index("\u2603")] * 3
    assert logprobs["text_offset"][-1] <= len(choice["text"])


def test_a_prompt_that_fills_the_context_is_scored_and_not_continued(
    client: TestClient, engine: Engine
) -> None:
    tokens = (engine.tokenizer.encode(TEXT) * CONTEXT_LEN)[:CONTEXT_LEN]
    fields: dict[str, Any] = {"prompt": tokens, "echo": True, "logprobs": 1}
    [choice] = post(client, **fields, max_tokens=0)["choices"]
    want = engine.score([(tokens, 1)])[0].logprobs
    assert choice["logprobs"]["token_logprobs"][1:] == pytest.approx(want, abs=1e-4)
    assert len(choice["logprobs"]["tokens"]) == CONTEXT_LEN
    streamed = client.post(URL, json={"model": "tiny", **fields, "max_tokens": 0, "stream": True})
    assert streamed.status_code == 200 and "context_length" not in streamed.text
    refused = {"model": "tiny", **fields, "max_tokens": 1}
    message = assert_error(client.post(URL, json=refused), 400, "context_length_exceeded", "prompt")
    asked = f"you requested {CONTEXT_LEN + 1} tokens ({CONTEXT_LEN} in the prompt, 1 in the"
    assert asked in message
    longer = {"model": "tiny", **fields, "prompt": [*tokens, 1], "max_tokens": 0}
    message = assert_error(client.post(URL, json=longer), 400, "context_length_exceeded", "prompt")
    assert f"resulted in {CONTEXT_LEN + 1} tokens" in message


@pytest.mark.req("FR-037")
def test_a_harness_scores_continuations(client: TestClient, engine: Engine) -> None:
    """As lm-evaluation-harness asks: lists of tokens, one token more than wanted, the first and
    the last entry dropped; greedy where every token is the likeliest."""
    tokenizer = engine.tokenizer
    context = tokenizer.encode("the cats")
    greedy = post(client, prompt=context, max_tokens=4, logprobs=0)["choices"][0]
    [first, *_] = greedy["logprobs"]["tokens"]
    likeliest = [
        next(each for each in range(tokenizer.vocab_size) if token_string(tokenizer, each) == first)
    ]
    texts = [context + likeliest, context + tokenizer.encode(" and"), [*context, 0]]
    body = post(client, prompt=texts, max_tokens=1, echo=True, logprobs=1, seed=5)
    is_greedy = []
    for tokens, choice in zip(texts, body["choices"], strict=True):
        logprobs = choice["logprobs"]
        assert len(logprobs["tokens"]) == len(tokens) + 1  # whatever the last one is
        assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
        found = logprobs["token_logprobs"][len(context) : -1]
        want = engine.score([(tokens, len(context))])[0]
        assert sum(found) == pytest.approx(sum(want.logprobs), abs=1e-4)
        tops = logprobs["top_logprobs"][len(context) : -1]
        is_greedy.append(all(p == max(top.values()) for p, top in zip(found, tops, strict=True)))
        assert is_greedy[-1] == all(want.is_greedy)
    assert is_greedy[0]


def test_texts_go_on_in_the_order_of_the_prompts(client: TestClient, engine: Engine) -> None:
    alone = [post(client, prompt=prompt, max_tokens=6)["choices"][0] for prompt in ("the", "cat")]
    both = post(client, prompt=["the", "cat"], max_tokens=6)["choices"]
    assert [choice["text"] for choice in both] == [choice["text"] for choice in alone]
    assert [choice["index"] for choice in both] == [0, 1]
    tokens = prompt_tokens("the", engine.tokenizer)
    assert tokens[0] == engine.tokenizer.bos
    assert post(client, prompt=tokens, max_tokens=6)["choices"][0]["text"] == alone[0]["text"]
    several = post(client, prompt=["the", "cat"], max_tokens=6, n=2, temperature=1, seed=3)
    texts = [choice["text"] for choice in several["choices"]]
    assert len(set(texts)) == 4
    again = post(client, prompt=["the", "cat"], max_tokens=6, n=2, temperature=1, seed=3)
    assert [choice["text"] for choice in again["choices"]] == texts


def test_stop_strings_and_the_usual_length(client: TestClient) -> None:
    text = post(client, prompt="the")["choices"][0]["text"]
    body = post(client, prompt="the", stop=[text[3:5], "no such thing"])
    assert body["choices"][0]["text"] == text[: text.index(text[3:5])]
    assert body["choices"][0]["finish_reason"] == "stop"
    assert post(client, prompt="the")["usage"]["completion_tokens"] <= 16
    nearly_full = [5] * (CONTEXT_LEN - 3)
    assert post(client, prompt=nearly_full)["usage"]["completion_tokens"] <= 3


def test_special_tokens_in_a_text_are_plain_text(client: TestClient, engine: Engine) -> None:
    names = "".join(engine.tokenizer.special_tokens)[:60]
    tokens = prompt_tokens(names, engine.tokenizer)
    assert not set(tokens[1:]) & set(engine.tokenizer.special_tokens.values())
    assert post(client, prompt=names, echo=True, max_tokens=0)["choices"][0]["text"] == names


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"prompt": None}, "invalid_type", "prompt"),
        ({"prompt": []}, "invalid_value", "prompt"),
        ({"prompt": [[]]}, "invalid_type", "prompt"),
        ({"prompt": ["a", 5]}, "invalid_type", "prompt"),
        ({"prompt": [1, -1]}, "invalid_type", "prompt"),
        ({"prompt": [1, True]}, "invalid_type", "prompt"),
        ({"prompt": [300]}, "invalid_value", "prompt"),
        ({"prompt": ["a"] * 129}, "invalid_value", "prompt"),
        ({"prompt": ["a"] * 65, "n": 2}, "invalid_value", "n"),
        ({"prompt": [5] * 200}, "context_length_exceeded", "prompt"),
        ({"prompt": "a" * 5000}, "context_length_exceeded", "prompt"),
        ({"max_tokens": 200}, "context_length_exceeded", "prompt"),
        ({"max_tokens": -1}, "integer_below_min_value", "max_tokens"),
        ({"suffix": "x"}, "unsupported_value", "suffix"),
        ({"best_of": 2}, "unsupported_value", "best_of"),
        ({"logprobs": 21}, "integer_above_max_value", "logprobs"),
        ({"logprobs": True}, "invalid_type", "logprobs"),
        ({"echo": 1}, "invalid_type", "echo"),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.req("FR-083")
def test_wrong_values(served: ServedModel, change: dict[str, Any], code: str, param: str) -> None:
    client = TestClient(create_app(FakeEngine(), served), base_url="http://localhost")
    body = {"model": "tiny", "prompt": "a", **change}
    assert_error(client.post(URL, json=body), 400, code, param)


def test_a_missing_prompt(served: ServedModel) -> None:
    client = TestClient(create_app(FakeEngine(), served), base_url="http://localhost")
    response = client.post(URL, json={"model": "tiny"})
    assert_error(response, 400, "missing_required_parameter", "prompt")

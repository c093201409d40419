"""chat.py, words.py: conversations as the model knows them, the calculator, schemas."""

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient

from nanochat.common.errors import ConfigError, DataError
from nanochat.common.messages import Message
from nanochat.engine.engine import Engine
from nanochat.engine.request import Request, TokenEvent
from nanochat.server.app import ServedModel, create_app
from nanochat.server.chat import conversation_of, schema_of
from nanochat.server.requests import ChatMessage, ChatRequest
from nanochat.server.words import Words
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.server.conftest import ask
from tests.server.fakes import FakeEngine, event
from tests.server.shapes import frames_of
from tests.server.test_app import CHAT, assert_error

pytestmark = [pytest.mark.req("FR-080"), pytest.mark.req("FR-051")]


def messages(*turns: str) -> list[ChatMessage]:
    """From "u Hi", "a Hello", "s Be kind."""
    roles = {"u": "user", "a": "assistant", "s": "system", "d": "developer"}
    return [
        ChatMessage.model_validate({"role": roles[turn[0]], "content": turn[2:]}) for turn in turns
    ]


@pytest.mark.parametrize(
    ("turns", "want"),
    [
        (["u Hi"], ["u Hi"]),
        (["s Be kind.", "u Hi"], ["u Be kind.\n\nHi"]),
        (["s One.", "d Two.", "u Hi"], ["u One.\n\nTwo.\n\nHi"]),
        (["u Hi", "u Yes?"], ["u Hi\n\nYes?"]),
        (["u Hi", "a Yes", "a ?", "u No"], ["u Hi", "a Yes\n\n?", "u No"]),
        (["u Hi", "a Yes", "s Be brief.", "u No"], ["u Hi", "a Yes", "u Be brief.\n\nNo"]),
        (["u Hi", "s Be brief."], ["u Hi\n\nBe brief."]),
        (["s Only this."], ["u Only this."]),
        (["u Hi", "a ", "u No"], ["u Hi", "a ", "u No"]),
    ],
    ids=str,
)
def test_whatever_the_order_no_word_is_lost(turns: list[str], want: list[str]) -> None:
    roles: dict[str, Any] = {"u": "user", "a": "assistant"}
    expected = tuple(Message(roles[turn[0]], turn[2:]) for turn in want)
    assert conversation_of(messages(*turns)) == expected


@pytest.mark.parametrize(
    ("turns", "problem"),
    [
        (["u Hi", "a Yes"], "message 1, the last, is from assistant"),
        (["a Yes", "u Hi"], "message 0 is from assistant, expected user"),
        (["s Be kind.", "a Yes", "u Hi"], "message 1 is from assistant"),
        (["u "], "the last message is empty"),
    ],
    ids=str,
)
def test_what_is_no_question(turns: list[str], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        conversation_of(messages(*turns))


@pytest.mark.req("FR-029")
def test_an_answer_goes_on_where_the_last_message_ends(
    client: TestClient, engine: FakeEngine, served: ServedModel
) -> None:
    body = ask("Hi", "It was a <|python_start|>", continue_final_message=True)
    answer = client.post(CHAT, json=body).json()
    assert answer["choices"][0]["message"]["content"] == "Hello"  # what is new alone
    prompt = list(engine.requests[-1].prompt_tokens)
    assert served.tokenizer.decode(prompt).endswith(
        "Hi<|user_end|><|assistant_start|>It was a <|python_start|>"
    )
    assert served.tokenizer.special("<|python_start|>") not in prompt  # its name is only text
    assert answer["usage"]["prompt_tokens"] == len(prompt)
    client.post(CHAT, json=ask("Hi", "", continue_final_message=True))
    client.post(CHAT, json=ask("Hi", continue_final_message=False))
    assert engine.requests[-1].prompt_tokens == engine.requests[-2].prompt_tokens


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"messages": ask("Hi")["messages"]}, "invalid_value", "continue_final_message"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "invalid_value", "messages"),
        ({"response_format": {"type": "json_object"}}, "unsupported_value", "response_format"),
    ],
    ids=["question", "nothing", "json"],
)
def test_what_cannot_go_on(
    client: TestClient, change: dict[str, Any], code: str, param: str
) -> None:
    body = ask("Hi", "It was", continue_final_message=True) | change
    assert_error(client.post(CHAT, json=body), 400, code, param)


def test_schemas_of_response_formats() -> None:
    def of(response_format: Any) -> str | None:
        body = ask(response_format=response_format)
        return schema_of(ChatRequest.model_validate(body))

    assert of(None) is None
    assert of({"type": "text"}) is None
    assert json.loads(of({"type": "json_object"}) or "") == {"type": "object"}
    named = {"type": "json_schema", "json_schema": {"name": "x"}}
    assert json.loads(of(named) or "") == {"type": "object"}
    named["json_schema"] = {"name": "x", "schema": {"type": "boolean"}, "strict": True}
    assert json.loads(of(named) or "") == {"type": "boolean"}


# -------------------------------------------------------------------------- the calculator


@pytest.fixture
def taught(tiny_tokenizer: Tokenizer) -> ServedModel:
    return ServedModel(name="tiny", tokenizer=tiny_tokenizer, context_len=200, has_tools=True)


def computing(tokenizer: Tokenizer) -> FakeEngine:
    """An engine whose model computes in mid-answer."""
    special = tokenizer.special
    return FakeEngine(
        (
            "It is ",
            ("", special("<|python_start|>")),
            "12*7",
            ("", special("<|python_end|>")),
            ("", special("<|output_start|>")),
            "84",
            ("", special("<|output_end|>")),
            "84.",
        )
    )


SHOWN = "It is <|python_start|>12*7<|python_end|><|output_start|>84<|output_end|>84."
CALCULATOR = {"tools": [{"type": "calculator"}]}


@pytest.mark.parametrize(
    ("options", "is_used", "content"),
    [
        ({}, True, "It is 84."),
        (CALCULATOR, True, SHOWN),
        ({**CALCULATOR, "tool_choice": "auto"}, True, SHOWN),
        ({**CALCULATOR, "tool_choice": "none"}, False, "It is 84."),
        ({"tool_choice": "none"}, False, "It is 84."),
        ({"response_format": {"type": "json_object"}}, False, "It is 84."),
    ],
    ids=str,
)
def test_who_asks_for_the_calculator_is_told_what_it_computes(
    taught: ServedModel, options: dict[str, Any], is_used: bool, content: str
) -> None:
    engine = computing(taught.tokenizer)
    client = TestClient(create_app(engine, taught), base_url="http://localhost")
    whole = client.post(CHAT, json=ask(**options, logprobs=True)).json()
    assert whole["choices"][0]["message"]["content"] == content
    assert whole["choices"][0]["finish_reason"] == "stop"
    assert engine.requests[-1].tools is is_used
    frames = frames_of(client.post(CHAT, json=ask(**options, stream=True)).text)
    assert "".join(f["choices"][0]["delta"].get("content", "") for f in frames) == content
    tokens = [each["token"] for each in whole["choices"][0]["logprobs"]["content"]]
    assert len(tokens) == (8 if content == SHOWN else 2)


def test_a_model_that_was_not_taught_computes_only_if_asked(
    client: TestClient, engine: FakeEngine
) -> None:
    client.post(CHAT, json=ask())
    client.post(CHAT, json=ask(**CALCULATOR))
    assert [request.tools for request in engine.requests] == [False, True]


def test_words_of_odd_answers(tiny_tokenizer: Tokenizer) -> None:
    """Brackets that are not closed, closed twice, or opened inside each other."""
    special = tiny_tokenizer.special
    request = Request(request_id="r", prompt_tokens=(1,))

    def of(*pieces: str, is_shown: bool = False) -> str:
        words = Words(tiny_tokenizer, is_shown=is_shown)
        names = tiny_tokenizer.special_tokens
        events: list[TokenEvent] = [
            event(request, "" if piece in names else piece, names.get(piece, 65))
            for piece in pieces
        ]
        return "".join(words.of(each) for each in events)

    start, end, output = "<|python_start|>", "<|python_end|>", "<|output_start|>"
    assert of("a", start, "1+1") == "a"
    assert of("a", start, "1+1", is_shown=True) == "a<|python_start|>1+1"
    assert of("a", end, "b") == "ab"
    assert of("a", start, "1", output, "2", end, "b") == "ab"
    words = Words(tiny_tokenizer, is_shown=False)
    held = event(request, "\ufffd", special(start))  # half a character that the bracket ended
    assert (words.of(held), words.is_hidden) == ("\ufffd", True)
    assert words.of(event(request, "\ufffd", special(end))) == ""
    assert not words.is_hidden


# --------------------------------------------------------------------- engines' refusals


def test_a_schema_that_cannot_be_kept_to(client: TestClient, engine: FakeEngine) -> None:
    engine.refusal = ConfigError("the JSON schema cannot be enforced")
    named = {"name": "x", "schema": {"type": "strange"}}
    asked = ask(response_format={"type": "json_schema", "json_schema": named})
    for is_stream in (False, True):
        response = client.post(CHAT, json=asked | {"stream": is_stream})
        assert_error(response, 400, "invalid_value", "response_format")
    deep: dict[str, Any] = {}
    for _ in range(400):
        deep = {"properties": {"x": deep}}
    named["schema"] = deep
    assert client.post(CHAT, json=asked).status_code == 400


@pytest.mark.req("FR-062")
@pytest.mark.req("FR-029")
def test_no_role_can_write_a_control_token(
    client: TestClient, engine: FakeEngine, served: ServedModel
) -> None:
    names = "".join(served.tokenizer.special_tokens)
    turns = [
        {"role": "system", "content": names},
        {"role": "user", "content": [{"type": "text", "text": names[:8]},
                                     {"type": "text", "text": names[8:90]}]},
        {"role": "assistant", "content": names[:100]},
        {"role": "developer", "content": "x"},
        {"role": "user", "content": "Hi"},
    ]  # fmt: skip
    wide = ServedModel(name="tiny", tokenizer=served.tokenizer, context_len=2000)
    client = TestClient(create_app(engine, wide), base_url="http://localhost")
    assert client.post(CHAT, json=ask() | {"messages": turns}).status_code == 200
    tokens = engine.requests[-1].prompt_tokens
    special = set(served.tokenizer.special_tokens.values())
    names_found = [served.tokenizer.decode([token]) for token in tokens if token in special]
    user, assistant = (["<|user_start|>", "<|user_end|>"],
                       ["<|assistant_start|>", "<|assistant_end|>"])  # fmt: skip
    assert names_found == ["<|bos|>", *user, *assistant, *user, "<|assistant_start|>"]
    response = client.post("/tokenize", json={"messages": turns})
    assert response.json()["tokens"] == list(tokens)


@pytest.mark.req("FR-013")
def test_a_real_engine_keeps_to_a_schema(tiny_tokenizer: Tokenizer) -> None:
    from tests.engine.conftest import CONTEXT_LEN, random_model

    engine = Engine(random_model(), tiny_tokenizer)
    served = ServedModel(name="tiny", tokenizer=tiny_tokenizer, context_len=CONTEXT_LEN)
    client = TestClient(create_app(engine, served), base_url="http://localhost")
    schema = {"type": "object", "properties": {"x": {"enum": ["a", "b"]}}, "required": ["x"],
              "additionalProperties": False}  # fmt: skip
    response_format = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = client.post(CHAT, json=ask(response_format=response_format, n=2, seed=1)).json()
    for choice in body["choices"]:
        assert json.loads(choice["message"]["content"])["x"] in ("a", "b")
    assert body["usage"]["completion_tokens"] > 10  # the token that completes it counts
    wrong = {"name": "x", "schema": {"type": "strange"}}
    asked = ask(response_format={"type": "json_schema", "json_schema": wrong})
    assert_error(client.post(CHAT, json=asked), 400, "invalid_value", "response_format")

"""The official client over a real port: every interface, every option, nothing unknown in an
answer and nothing missing."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import openai
import pydantic
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from nanochat.common.errors import DeadlineExceeded, EngineError, Overloaded, Unavailable
from nanochat.engine.engine import Engine
from nanochat.server.app import ServedModel, create_app
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.engine.conftest import CONTEXT_LEN, random_model
from tests.server.conftest import ask, live
from tests.server.fakes import FakeEngine
from tests.server.shapes import check_known, check_shape

pytestmark = [pytest.mark.req("SC-015"), pytest.mark.req("FR-053"), pytest.mark.req("FR-081")]

MESSAGES: Any = ask("the cats")["messages"]
YES = {"type": "object", "properties": {"is_cat": {"type": "boolean"}},
       "required": ["is_cat"], "additionalProperties": False}  # fmt: skip
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"n": 3, "seed": 1},
    {"logprobs": True, "top_logprobs": 3},
    {"stop": ["e", "x"], "temperature": 0.5, "top_p": 0.9},
    {"presence_penalty": 1.0, "frequency_penalty": 0.5, "logit_bias": {"101": -100}},
    {"response_format": {"type": "json_object"}, "temperature": 0},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "yes", "schema": YES}}},
    {"tools": [{"type": "calculator"}], "tool_choice": "auto"},
    {"tools": [{"type": "calculator"}], "tool_choice": "none"},
    {"messages": [{"role": "system", "content": "Be brief."}, *MESSAGES]},
    {"messages": [{"role": "developer", "content": "Be kind."}, *MESSAGES]},
    {"user": "me", "metadata": {"a": "b"}, "store": False, "max_tokens": None, "stop": None},
    {"extra_body": {"top_k": 3, "min_p": 0.1, "repetition_penalty": 1.1}},
)  # fmt: skip
COMPLETIONS: tuple[dict[str, Any], ...] = (
    {},
    {"prompt": ["the", "cat"], "logprobs": 2},
    {"echo": True, "logprobs": 2, "max_tokens": 0},
    {"echo": True, "logprobs": 1, "max_tokens": 1, "prompt": [[5, 6], [7]]},
    {"echo": True},
    {"n": 3, "best_of": 3},
    {"stop": ["e", "x"], "temperature": 0.5, "top_p": 0.9},
)  # fmt: skip


class Yes(pydantic.BaseModel):
    """What an answer can be made to be, however little a model knows."""

    model_config = pydantic.ConfigDict(extra="forbid")

    is_cat: bool


@pytest.fixture(scope="module")
def url(tiny_tokenizer: Tokenizer) -> Iterator[str]:
    """A real engine's server."""
    engine = Engine(random_model(), tiny_tokenizer, max_rows=16)
    served = ServedModel(
        name="org/tiny",
        aliases=("gpt-4o-mini",),
        tokenizer=tiny_tokenizer,
        context_len=CONTEXT_LEN,
        has_tools=True,
    )
    with live(create_app(engine, served)) as address:
        yield f"{address}/v1"
    assert engine.num_active == 0


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def chat(**options: Any) -> dict[str, Any]:
    fields = {"model": "org/tiny", "messages": MESSAGES, "max_completion_tokens": 12, **options}
    if "max_tokens" in options:
        del fields["max_completion_tokens"]
    return fields


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options) or "none")
def test_answers_whole_and_streamed(client: openai.OpenAI, options: dict[str, Any]) -> None:
    seeded = {"seed": 7, **options}
    whole = client.chat.completions.create(**chat(**seeded))
    assert isinstance(whole, ChatCompletion)
    check_known(whole)
    num_answers = options.get("n", 1)
    assert len(whole.choices) == num_answers
    assert whole.model == "org/tiny"
    texts = [""] * num_answers
    reasons: list[str | None] = [None] * num_answers
    usage = None
    more = {"stream": True, "stream_options": {"include_usage": True}}
    for chunk in client.chat.completions.create(**chat(**seeded, **more)):
        assert isinstance(chunk, ChatCompletionChunk)
        check_known(chunk)
        usage = chunk.usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert usage is not None and usage == whole.usage
    for choice in whole.choices:
        if options.get("logprobs"):
            assert choice.logprobs is not None and choice.logprobs.content
            assert all(len(each.top_logprobs) == 3 for each in choice.logprobs.content)
            told = b"".join(bytes(each.bytes or ()) for each in choice.logprobs.content)
            assert told.decode(errors="replace") == choice.message.content
        for stop in options.get("stop") or ():
            assert stop not in (choice.message.content or "")


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options) or "none")
def test_the_asynchronous_client(url: str, options: dict[str, Any]) -> None:
    seeded = {"seed": 3, **options}

    async def talk() -> None:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            whole, stream = await asyncio.gather(
                client.chat.completions.create(**chat(**seeded)),
                client.chat.completions.create(**chat(**seeded, stream=True)),
            )
            pieces = [chunk async for chunk in stream]
            check_known([whole, *pieces])
            texts = [""] * len(whole.choices)
            for choice in (choice for chunk in pieces for choice in chunk.choices):
                texts[choice.index] += choice.delta.content or ""
            assert texts == [choice.message.content for choice in whole.choices]

    asyncio.run(talk())


def test_the_asynchronous_clients_helpers(url: str) -> None:
    async def talk() -> None:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            whole = await client.chat.completions.create(**chat(seed=3))
            text = whole.choices[0].message.content
            async with client.chat.completions.stream(**chat(seed=3)) as events:
                async for _ in events:
                    pass
                final = events.current_completion_snapshot  # cut off, which is no final one to it
            assert final.choices[0].message.content == text
            models = [model.id async for model in client.models.list()]
            assert models == ["org/tiny", "gpt-4o-mini"]

    asyncio.run(talk())


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options) or "none")
def test_raw_and_streamed_responses(client: openai.OpenAI, options: dict[str, Any]) -> None:
    fields = chat(**{"seed": 1, **options})
    raw = client.chat.completions.with_raw_response.create(
        **fields, extra_headers={"X-Request-Id": "mine-1"}
    )
    assert raw.headers["x-request-id"] == "mine-1"
    assert raw.headers["content-type"] == "application/json"
    check_known(raw.parse())
    check_shape("CreateChatCompletionResponse", json.loads(raw.text))
    with client.chat.completions.with_streaming_response.create(**fields, stream=True) as response:
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    for line in lines[:-1]:
        check_shape("CreateChatCompletionStreamResponse", json.loads(line.removeprefix("data: ")))


def test_a_schema_is_kept_to(client: openai.OpenAI) -> None:
    asked = {"type": "json_schema", "json_schema": {"name": "yes", "strict": True, "schema": YES}}
    fields = chat(seed=2, response_format=asked, max_completion_tokens=40)
    whole = client.chat.completions.create(**fields)
    assert whole.choices[0].finish_reason == "stop"
    assert set(json.loads(whole.choices[0].message.content or "")) == {"is_cat"}


@pytest.mark.parametrize("options", COMPLETIONS, ids=lambda options: "+".join(options) or "none")
def test_completions_whole_streamed_and_asynchronous(url: str, options: dict[str, Any]) -> None:
    fields: Any = {"model": "org/tiny", "prompt": "the cat", "seed": 3, "max_tokens": 8, **options}
    prompts = fields["prompt"]
    num_prompts = len(prompts) if isinstance(prompts, list) else 1

    async def talk() -> None:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            whole, stream = await asyncio.gather(
                client.completions.create(**fields),
                client.completions.create(**fields, stream=True),
            )
            pieces = [chunk async for chunk in stream]
            check_known([whole, *pieces])
            texts = [""] * len(whole.choices)
            for choice in (choice for chunk in pieces for choice in chunk.choices):
                texts[choice.index] += choice.text
            assert texts == [choice.text for choice in whole.choices]
            assert len(texts) == num_prompts * options.get("n", 1)
            for choice in whole.choices:
                if options.get("echo") and isinstance(prompts, str):
                    assert choice.text.startswith(prompts)
                if fields["max_tokens"] == 0:
                    assert choice.text == prompts
                assert not any(stop in choice.text for stop in options.get("stop") or ())
                assert (choice.logprobs is not None) == ("logprobs" in options)
            assert whole.usage is not None
            most = fields["max_tokens"] * len(texts)
            assert 0 <= whole.usage.completion_tokens <= most

    asyncio.run(talk())


def test_structured_output(client: openai.OpenAI) -> None:
    """A random model answers in the shape that is asked for."""
    fields = {**chat(seed=2, response_format=Yes), "max_completion_tokens": 40}
    parsed = client.chat.completions.parse(**fields)
    message = parsed.choices[0].message
    assert isinstance(message.parsed, Yes)
    assert json.loads(message.content or "") == message.parsed.model_dump()
    assert parsed.choices[0].finish_reason == "stop"
    assert parsed.usage is not None and parsed.usage.completion_tokens > 0
    with client.chat.completions.stream(**fields) as events:
        for _ in events:
            pass
        final = events.get_final_completion()
    assert final.choices[0].message.parsed == message.parsed
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(**{**fields, "max_completion_tokens": 2})
    refused = {"name": "x", "schema": {"type": "object", "minProperties": "many"}}
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(
            **chat(response_format={"type": "json_schema", "json_schema": refused})
        )
    assert wrong.value.param == "response_format"


def test_completions_and_models(client: openai.OpenAI) -> None:
    whole = client.completions.create(
        model="gpt-4o-mini", prompt=["the", "cat"], logprobs=2, seed=1
    )
    assert isinstance(whole, Completion)
    check_known(whole)
    stream = client.completions.create(
        model="org/tiny", prompt=["the", "cat"], logprobs=2, seed=1, stream=True
    )
    texts = ["", ""]
    for chunk in stream:
        check_known(chunk)
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]
    check_known(client.models.retrieve("org/tiny"))
    assert client.models.retrieve("gpt-4o-mini").id == "gpt-4o-mini"
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("org/none")
    assert missing.value.code == "model_not_found"


def test_what_would_only_fail_again_is_asked_once(served: ServedModel) -> None:
    engine = FakeEngine()
    with (
        live(create_app(engine, served)) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="x", max_retries=2) as client,
    ):
        fields: Any = {"model": "tiny", "messages": MESSAGES}
        for error, num_requests in ((DeadlineExceeded("late"), 1), (EngineError("broken"), 3)):
            engine.requests.clear()
            engine.script = (error,)
            with pytest.raises(openai.InternalServerError):
                client.chat.completions.create(**fields)
            assert len(engine.requests) == num_requests


def test_errors_are_the_clients_exceptions(served: ServedModel) -> None:
    engine = FakeEngine()
    with (
        live(create_app(engine, served)) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="x", max_retries=0) as client,
    ):
        fields: Any = {"model": "tiny", "messages": MESSAGES}
        function: Any = {"type": "function", "function": {"name": "f", "parameters": {}}}
        for wrong, kind, code, param in [
            ({"temperature": 3}, openai.BadRequestError, "decimal_above_max_value", "temperature"),
            ({"tools": [function]}, openai.BadRequestError, "unsupported_value", "tools"),
            ({"model": "gpt-5"}, openai.NotFoundError, "model_not_found", "model"),
            ({"max_tokens": 10**6}, openai.BadRequestError, "context_length_exceeded", "messages"),
        ]:
            for is_stream in (False, True):
                with pytest.raises(kind) as raised:
                    client.chat.completions.create(**fields | wrong, stream=is_stream)
                assert (raised.value.code, raised.value.param) == (code, param)
                assert raised.value.request_id
        for refusal, kind, code in [
            (Overloaded("full"), openai.RateLimitError, "rate_limit_exceeded"),
            (Unavailable("not now"), openai.InternalServerError, "service_unavailable"),
            (EngineError("broken"), openai.InternalServerError, "engine_error"),
        ]:
            engine.refusal = refusal
            with pytest.raises(kind) as raised:
                client.chat.completions.create(**fields, stream=True)
            assert raised.value.code == code
        engine.refusal, engine.script = None, ("Hel", EngineError("broken"))
        with pytest.raises(openai.APIError, match="broken") as broken:
            list(client.chat.completions.create(**fields, stream=True))
        assert broken.value.code == "engine_error"
        engine.script = (EngineError("broken at once"),)
        with pytest.raises(openai.InternalServerError):  # nothing was told: a status still can
            client.chat.completions.create(**fields, stream=True)
        assert client.with_options(max_retries=2).models.list().data[0].id == "tiny"

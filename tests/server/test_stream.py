"""stream.py on a real port: OpenAI's own client, people who leave, a loop that never blocks."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI
from openai import BaseModel

from nanochat.common.errors import Aborted, EngineError
from nanochat.engine.engine import Engine
from nanochat.engine.request import Request, SamplingParams
from nanochat.server.app import ServedModel, create_app
from nanochat.server.cache_key import CachePolicy
from nanochat.server.gate import Gate
from nanochat.server.settings import ServerSettings
from nanochat.server.stream import Answers, EngineDoor, while_connected
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.engine.conftest import CONTEXT_LEN, random_model
from tests.patience import wait_until
from tests.server.conftest import ask, live
from tests.server.fakes import FakeEngine
from tests.server.test_app import CHAT


def assert_known_fields(value: Any) -> None:
    """Nothing in it that the official types do not know."""
    if isinstance(value, BaseModel):
        assert not value.model_extra, f"{type(value).__name__}: {value.model_extra}"
        for name in value.model_fields_set:
            assert_known_fields(getattr(value, name))
    elif isinstance(value, list):
        for item in value:
            assert_known_fields(item)


@pytest.mark.req("SC-015")
@pytest.mark.req("FR-053")
def test_the_official_client(app: FastAPI, engine: FakeEngine) -> None:
    conversation: Any = ask()["messages"]
    with live(app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        [model] = client.models.list().data
        assert model.id == "tiny"
        whole = client.chat.completions.create(model=model.id, messages=conversation)
        assert_known_fields(whole)
        assert whole.choices[0].message.content == "Hello"
        assert whole.choices[0].finish_reason == "stop"
        chunks = list(
            client.chat.completions.create(
                model=model.id,
                messages=conversation,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        assert_known_fields(chunks)
        assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == "Hello"
        assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 2
        with pytest.raises(openai.NotFoundError) as missing:
            client.chat.completions.create(model="other", messages=conversation)
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as wrong:
            client.chat.completions.create(model="tiny", messages=conversation, temperature=3)
        assert wrong.value.param == "temperature"
        engine.script = ("Hel", EngineError("broken"))
        with pytest.raises(openai.APIError, match="broken"):
            list(client.chat.completions.create(model="tiny", messages=conversation, stream=True))


@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.req("EC-10")
def test_who_goes_away_frees_the_engine(app: FastAPI, engine: FakeEngine, is_stream: bool) -> None:
    engine.gate.clear()  # the answer does not end by itself
    with live(app) as url, httpx.Client(timeout=60) as other:
        sent = other.build_request("POST", url + CHAT, json=ask(stream=is_stream))
        with socket.create_connection((sent.url.host, sent.url.port or 80), timeout=60) as leaver:
            head = [b"POST %s HTTP/1.1" % sent.url.raw_path]
            head += [b"%s: %s" % field for field in sent.headers.raw]
            leaver.sendall(b"\r\n".join([*head, b"", sent.content]))
            wait_until(lambda: engine.requests)
            if is_stream:
                assert leaver.recv(12) == b"HTTP/1.1 200"
        [request] = engine.requests
        wait_until(lambda: request.request_id in engine.cancelled)
        wait_until(lambda: other.get(f"{url}/health").json()["num_active"] == 0)


@pytest.mark.req("FR-052")
def test_the_event_loop_answers_while_answers_are_written(app: FastAPI, engine: FakeEngine) -> None:
    engine.gate.clear()
    num_streams = 20
    with live(app) as url:
        threads = [
            threading.Thread(
                target=httpx.post, args=(url + CHAT,), kwargs={"json": ask(), "timeout": 60}
            )
            for _ in range(num_streams)
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(engine.requests) == num_streams)
        # None of them ends before the gate opens: a loop that waited for one would not answer.
        assert httpx.get(f"{url}/health", timeout=30).json()["num_active"] == num_streams
        engine.gate.set()
        for thread in threads:
            thread.join()


async def longest_pause_s(work: Coroutine[Any, Any, Any]) -> tuple[float, float]:
    """The longest that the loop did nothing else, and how long the work took."""
    longest_s, begin_s = 0.0, time.perf_counter()

    async def tick() -> None:
        nonlocal longest_s
        last_s = time.perf_counter()
        while True:
            await asyncio.sleep(0)
            now_s = time.perf_counter()
            longest_s, last_s = max(longest_s, now_s - last_s), now_s

    ticking = asyncio.ensure_future(tick())
    await work
    ticking.cancel()
    return longest_s, time.perf_counter() - begin_s


@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.req("FR-052", "FR-055")
def test_nobody_waits_for_the_large_answer_of_another(
    tiny_tokenizer: Tokenizer, is_stream: bool
) -> None:
    """One from memory is there at once, and takes seconds to write."""
    served = ServedModel(name="tiny", tokenizer=tiny_tokenizer, context_len=4096)
    app = create_app(FakeEngine(["x"] * 300), served)
    body = ask(n=6, logprobs=True, top_logprobs=20, seed=1, max_tokens=1000, stream=is_stream)

    async def talk() -> tuple[float, float]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            first = await client.post(CHAT, json=body)
            again: list[httpx.Response] = []

            async def ask_again() -> None:
                again.append(await client.post(CHAT, json=body))

            pauses = await longest_pause_s(ask_again())
            assert again[0].headers["x-cache"] == "HIT"
            assert len(again[0].content) == len(first.content) > 1_000_000
            return pauses

    pause_s, took_s = asyncio.run(talk())
    assert pause_s < took_s / 3


@pytest.mark.req("SC-010")
@pytest.mark.req("FR-052")
@pytest.mark.req("FR-050")
def test_ten_users_of_a_real_engine_each_get_their_own_answer(tiny_tokenizer: Tokenizer) -> None:
    engine = Engine(random_model(), tiny_tokenizer, max_rows=4)
    served = ServedModel(name="tiny", tokenizer=tiny_tokenizer, context_len=CONTEXT_LEN)

    async def talk() -> list[tuple[str, str]]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:

            async def user(number: int) -> tuple[str, str]:
                fields: Any = {
                    "model": "tiny",
                    "messages": ask(f"the {number} cats")["messages"],
                    "seed": number,
                    "max_tokens": 20,
                }
                stream = await client.chat.completions.create(**fields, stream=True)
                pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
                whole = await client.chat.completions.create(**fields)
                return "".join(pieces), whole.choices[0].message.content or ""

            return await asyncio.gather(*(user(number) for number in range(10)))

    with live(create_app(engine, served)) as url:
        answers = asyncio.run(talk())
    assert all(streamed == whole for streamed, whole in answers)
    assert len(set(answers)) == 10
    assert engine.num_active == 0


def test_work_ends_when_the_client_leaves_or_with_its_own_result() -> None:
    async def never() -> dict[str, Any]:
        await asyncio.sleep(60)
        return {}

    def messages(*kinds: str) -> Callable[[], Any]:
        waiting = [{"type": kind} for kind in kinds]

        async def receive() -> dict[str, Any]:
            return waiting.pop(0) if waiting else await never()

        return receive

    async def five() -> int:
        await asyncio.sleep(0.01)
        return 5

    async def fail() -> int:
        raise ValueError("own")

    assert asyncio.run(while_connected(messages("http.request"), five())) == 5
    with pytest.raises(ValueError, match="own"):
        asyncio.run(while_connected(messages(), fail()))
    with pytest.raises(Aborted, match="went away"):
        asyncio.run(while_connected(messages("http.request", "http.disconnect"), never()))


def test_an_answer_counts_and_closes() -> None:
    engine = FakeEngine(("a", "b", "c"))
    door: EngineDoor = engine
    gate = Gate(door, ServerSettings(cache=None), model="tiny", model_hash="")
    policy = CachePolicy(reads=False, writes=False)

    async def read() -> None:
        sampling = SamplingParams(stop_tokens=(3,))
        request = Request(request_id="r", prompt_tokens=(1, 2), sampling=sampling)
        answers = Answers(gate, [request], policy=policy)
        assert answers.headers == {"X-Cache": "BYPASS"}
        await answers.begun(10.0)
        pieces = [piece async for group in answers.groups() for piece in group]
        assert "".join(piece.event.text for piece in pieces) == "abc"
        assert answers.usage.body() == {
            "prompt_tokens": 2,
            "completion_tokens": 3,
            "total_tokens": 5,
        }
        answers.close()

    asyncio.run(read())
    assert engine.cancelled == {"r"}

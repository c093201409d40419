"""logs.py: every request has an id and a line; no line has what was said, none can be forged."""

import asyncio
import io
import json
import logging
import threading
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from nanochat.server.app import ServedModel, create_app
from nanochat.server.limits import ENDED
from nanochat.server.logs import RequestLog, Structured, request_id, set_up_logs
from nanochat.server.metrics import Metrics
from tests.server.fakes import FakeEngine


class Route:
    path = "/v1/things/{id}"


def scope(**more: Any) -> dict[str, Any]:
    return {"type": "http", "method": "GET", "path": "/v1/things/7", "headers": []} | more


def serve(inner: Any, asked: dict[str, Any], metrics: Metrics | None = None) -> list[Message]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def main() -> None:
        await RequestLog(inner, metrics or Metrics())(asked, receive, send)

    asyncio.run(main())
    return sent


async def fine(scope: Scope, receive: Receive, send: Send) -> None:
    scope["route"] = Route()
    logging.getLogger("nanochat.server").info("inside")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"yes"})


async def broken(scope: Scope, receive: Receive, send: Send) -> None:
    raise ValueError("what a user said")


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_request_is_a_line_and_what_is_said_meanwhile_has_its_id() -> None:
    stream, metrics = io.StringIO(), Metrics()
    with set_up_logs("json", stream):
        asked = scope(headers=[(b"x-request-id", b"abc.1")], client=("10.0.0.9", 5))
        asked["state"] = {"log": {"prompt_tokens": 3}}
        sent = serve(fine, asked, metrics)
    inside, line = lines(stream)
    assert inside["event"] == "inside" and inside["request_id"] == line["request_id"] == "abc.1"
    assert line["event"] == "request" and line["level"] == "info"
    assert (line["method"], line["path"], line["status"]) == ("GET", "/v1/things/{id}", 200)
    assert line["client"] == "10.0.0.9" and line["prompt_tokens"] == 3
    assert line["duration_ms"] >= 0 and line["time"].endswith("Z")
    assert (b"x-request-id", b"abc.1") in sent[0]["headers"]
    labels = {"method": "GET", "path": "/v1/things/{id}"}
    assert metrics.value("http_requests_total", status="200", **labels) == 1
    assert metrics.value("http_request_duration_seconds_count", **labels) == 1
    assert request_id.get() == ""


@pytest.mark.parametrize("given", [b"", b"a b", b"x" * 200, b"\x1b[31m", b"a\nb", "ü".encode()])
def test_an_id_that_is_not_sane_is_replaced(given: bytes) -> None:
    sent = serve(fine, scope(headers=[(b"x-request-id", given)]))
    (made,) = [value for name, value in sent[0]["headers"] if name == b"x-request-id"]
    assert made.startswith(b"req-") and len(made) == 36


@pytest.mark.req("FR-083")
def test_what_nobody_caught_is_openais_500() -> None:
    stream, metrics = io.StringIO(), Metrics()
    with set_up_logs("json", stream):
        sent = serve(broken, scope(), metrics)
    assert sent[0]["status"] == 500
    error = json.loads(sent[1]["body"])["error"]
    assert (error["type"], error["code"]) == ("server_error", "internal_error")
    assert "said" not in error["message"]
    failed, line = lines(stream)
    assert "ValueError" in failed["exception"] and failed["level"] == "error"
    assert line["status"] == 500 and line["path"] == "unmatched"
    assert metrics.value("errors_total", type="ValueError") == 1


def test_half_an_answer_cannot_be_mended() -> None:
    async def late(scope: Scope, receive: Receive, send: Send) -> None:
        await fine(scope, receive, send)
        raise ValueError("too late")

    with set_up_logs("json", io.StringIO()), pytest.raises(ValueError, match="too late"):
        serve(late, scope())


def test_who_went_away_is_499_and_odd_methods_are_one() -> None:
    async def nothing(scope: Scope, receive: Receive, send: Send) -> None:
        pass

    async def late(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"][ENDED] = 408  # as deadlines.py does
        await fine(scope, receive, send)

    stream, metrics = io.StringIO(), Metrics()
    with set_up_logs("json", stream):
        serve(nothing, scope(method="BREW"), metrics)
        serve(nothing, {"type": "lifespan"}, metrics)
        serve(late, scope(), metrics)
    first, _, second = lines(stream)
    assert (first["method"], first["status"]) == ("OTHER", 499)
    assert second["status"] == 408


@pytest.mark.parametrize("is_answering", [False, True])
def test_a_client_that_leaves_before_its_answer_is_499(
    served: ServedModel, is_answering: bool
) -> None:
    engine = FakeEngine()
    engine.gate.clear()  # one piece, and no more
    body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}).encode()
    headers = [(b"content-type", b"application/json"), (b"host", b"localhost")]
    asked = scope(method="POST", path="/v1/chat/completions", headers=headers, query_string=b"",
                  http_version="1.1", scheme="http", client=("127.0.0.1", 5), root_path="",
                  raw_path=b"/v1/chat/completions", server=("localhost", 80))  # fmt: skip
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        while is_answering and not engine.requests:
            await asyncio.sleep(0.001)
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        pass

    async def main() -> None:
        await create_app(engine, served)(asked, receive, send)
        while any("_answer" in thread.name for thread in threading.enumerate()):
            await asyncio.sleep(0.001)  # it delivers its end to this loop

    stream = io.StringIO()
    with set_up_logs("json", stream):
        asyncio.run(main())
    statuses = [line["status"] for line in lines(stream) if "status" in line]
    assert statuses == [499] and bool(engine.requests) == is_answering


def test_machines_that_look_every_few_seconds_are_not_logged() -> None:
    class Health:
        path = "/health"

    async def health(scope: Scope, receive: Receive, send: Send) -> None:
        await fine(scope, receive, send)
        scope["route"] = Health()

    stream = io.StringIO()
    with set_up_logs("json", stream):
        serve(health, scope())
    assert [line["event"] for line in lines(stream)] == ["inside"]


@pytest.mark.req("FR-062")
@pytest.mark.parametrize("is_json", [True, False])
def test_no_line_can_be_forged(is_json: bool) -> None:
    record = logging.makeLogRecord(
        {"msg": "a\nb\x1b[31m\x9b", "name": "n", "levelname": "INFO", "detail": "\r\nforged\u2028"}
    )
    line = Structured(is_json=is_json).format(record)
    assert line.isprintable() and line.isascii()
    if is_json:
        assert json.loads(line)["detail"] == "\r\nforged\u2028"
    else:
        assert "a\\nb\\x1b[31m\\x9b" in line and "detail=\\r\\nforged\\u2028" in line


def test_a_traceback_is_one_line_and_logging_is_as_before() -> None:
    before = logging.getLogger().handlers
    stream = io.StringIO()
    with set_up_logs("auto", stream):  # no terminal: JSON
        try:
            raise RuntimeError("once")
        except RuntimeError:
            logging.getLogger("nanochat.engine").exception("a step failed")
        logging.getLogger("chatty.library").info("nobody asked")
        thread = threading.Thread(target=logging.warning, args=("from a thread",))
        thread.start()
        thread.join()
    first, second = lines(stream)
    assert "RuntimeError: once" in first["exception"] and "request_id" not in first
    assert second["event"] == "from a thread"
    assert logging.getLogger().handlers is before

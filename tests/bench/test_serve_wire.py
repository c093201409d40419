"""The client of the load generator against a server that does whatever a server can do."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.bench.load_client import (
    Answer,
    Ask,
    ChatDialect,
    Dialect,
    PrivateDialect,
    TokensDialect,
    ask,
)
from nanochat.bench.load_wire import (
    Address,
    Connection,
    EventParser,
    ResponseParser,
    WireError,
)

WANTED = Ask(words="one two", prompt_tokens=2, output_tokens=3)
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def frame(**body: object) -> bytes:
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def chunk(text: str, reason: str | None = None) -> bytes:
    return frame(choices=[{"index": 0, "delta": {"content": text}, "finish_reason": reason}])


USAGE = frame(choices=[], usage={"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8})
STREAM = [chunk(""), chunk("Héllo"), b": keep-alive\n\n", chunk(" you", "length"), USAGE,
          b"data: [DONE]\n\n"]  # fmt: skip


def chunked(*pieces: bytes, kept: str = "keep-alive") -> bytes:
    head = f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: {kept}\r\n\r\n".encode()
    return head + b"".join(b"%x;a=b\r\n%s\r\n" % (len(p), p) for p in pieces) + b"0\r\nX: y\r\n\r\n"


def whole(status: int, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


# ------------------------------------------------------------------------------------ parsers


@given(st.data(), st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_events_do_not_depend_on_cuts_and_line_ends(data: st.DataObject, end: bytes) -> None:
    stream = b"".join(STREAM).replace(b"\n", end)
    parser, events, place = EventParser(), [], 0
    while place < len(stream):
        size = data.draw(st.integers(1, 80))
        events += parser.feed(stream[place : place + size])
        place += size
    if end == b"\r":  # whether the last one is the first half of \r\n, only what follows tells
        events += parser.feed(b":")
    assert events == EventParser().feed(b"".join(STREAM)) and events[-1] == b"[DONE]"
    assert json.loads(events[1])["choices"][0]["delta"]["content"] == "Héllo"


def test_events_of_several_lines_and_other_fields() -> None:
    text = b"event: x\nid: 7\ndata:one\ndata: two\n\nretry: 5\n\n: nothing\n\ndata\n\ndata:\n\n"
    assert EventParser().feed(text) == [b"one\ntwo", b""]
    with pytest.raises(WireError, match="more than"):
        EventParser().feed(b"data: " + b"x" * (1 << 20))


@given(st.data())
def test_bodies_do_not_depend_on_cuts(data: st.DataObject) -> None:
    answers = {
        chunked(b"abc", b"\r\n0\r\n", b"x" * 300): b"abc\r\n0\r\n" + b"x" * 300,
        whole(200, b"hello"): b"hello",
        b"HTTP/1.1 100 Continue\r\n\r\n" + whole(404, b"gone"): b"gone",
    }
    answer = data.draw(st.sampled_from(sorted(answers)))
    parser, body, place = ResponseParser(), b"", 0
    while place < len(answer):
        assert not parser.is_done
        size = data.draw(st.integers(1, 120))
        body += parser.feed(answer[place : place + size])
        place += size
    parser.end()
    assert parser.is_done and parser.can_stay and body == answers[answer]


def test_bodies_until_the_end_and_none() -> None:
    parser = ResponseParser()
    assert parser.feed(b"HTTP/1.0 200 OK\r\nA: b\r\n\r\nab") + parser.feed(b"c") == b"abc"
    assert not parser.is_done
    parser.end()
    assert parser.is_done and parser.headers == {"a": "b"}
    empty = ResponseParser()
    assert empty.feed(b"HTTP/1.1 204 No\r\n\r\n") == b"" and empty.is_done
    closing = ResponseParser()
    closing.feed(whole(200, b"x", "Connection: close"))
    assert closing.is_done and not closing.can_stay
    more = ResponseParser()
    more.feed(whole(200, b"x") + b"and more")
    assert more.is_done and not more.can_stay


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"", "before an answer"),
        (b"HTTP/1.1 200 OK\r\n", "before an answer"),
        (whole(200, b"hello")[:-1], "in the middle"),
        (chunked(b"hello")[:-1], "in the middle"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "no HTTP"),
        (b"HTTP/1.1 20 OK\r\n\r\n", "no HTTP"),
        (b"x" * 70_000, "without an end"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "no size"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n", "longer than"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 2000, "without an end"),
    ],
)
def test_what_is_no_http(answer: bytes, text: str) -> None:
    parser = ResponseParser()
    with pytest.raises(WireError, match=text):
        parser.feed(answer)
        parser.end()


# ------------------------------------------------------------------------------ real sockets


def answers_to(handler: Handler, count: int = 1, dialect: Dialect | None = None) -> list[Answer]:
    """What so many requests, over one connection, get from a server with this handler."""

    async def run() -> list[Answer]:
        server = await asyncio.start_server(handler, "127.0.0.1", 0)
        address = Address(host="127.0.0.1", port=server.sockets[0].getsockname()[1])
        chosen = dialect or ChatDialect(model="m", fields={"seed": 1})
        async with server, Connection(address) as connection:
            answers = [await ask(connection, chosen, WANTED, timeout_s=5) for _ in range(count)]
            connection.close()
            await asyncio.sleep(0.01)  # the handler notices
            return answers

    return asyncio.run(run())


def says(
    answer: bytes, *, cut: int = 0, times: int = 1, bodies: list[bytes] | None = None
) -> Handler:
    """A handler that answers so many requests with these bytes, in pieces of `cut`, and closes."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(asyncio.IncompleteReadError):
            for _ in range(times):
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                body = await reader.readexactly(length)
                if bodies is not None:
                    bodies.append(body)
                for place in range(0, len(answer), cut or len(answer)):
                    writer.write(answer[place : place + (cut or len(answer))])
                    await writer.drain()
                    await asyncio.sleep(0)

    return handler


@pytest.mark.parametrize("cut", [0, 1, 7])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_stream_however_it_is_cut(cut: int, end: bytes) -> None:
    bodies: list[bytes] = []
    pieces = [piece.replace(b"\n", end) for piece in STREAM]
    (answer,) = answers_to(says(chunked(*pieces), cut=cut, bodies=bodies))
    assert answer.is_success and answer.error == "" and answer.finish_reason == "length"
    assert (answer.prompt_tokens, answer.output_tokens) == (5, 3)
    assert len(answer.times_s) == 2  # the empty one, the comment and the usage are no text
    assert answer.sent_s < answer.times_s[0] <= answer.times_s[1] == answer.end_s
    sent = json.loads(bodies[0])
    assert sent["stream_options"] == {"include_usage": True} and sent["seed"] == 1
    assert sent["max_tokens"] == 3 and sent["messages"][0]["content"] == "one two"


def test_a_connection_is_kept_and_opened_again_when_it_was_closed_while_idle() -> None:
    answers = answers_to(says(chunked(*STREAM), times=2), count=5)
    assert [answer.is_success for answer in answers] == [True] * 5


@pytest.mark.parametrize(
    ("answer", "status", "text"),
    [
        (whole(429, b'{"error": {"message": "full", "code": "x"}}', "Retry-After: 7"), 429, "full"),
        (whole(500, b"<h1>oops</h1>"), 500, "oops"),
        (whole(503, b""), 503, "empty error body"),
        (chunked(STREAM[1], frame(error={"message": "lost", "code": "x"}), STREAM[1]), 200, "lost"),
        (chunked(*STREAM[:3])[:-40], 0, "closed in the middle"),
        (chunked(*STREAM[:3]), 200, "before the answer did"),
        (chunked(STREAM[1], STREAM[5]), 200, "without usage"),
        (chunked(b"data: {oops\n\n", STREAM[5]), 0, "no JSON"),
        (chunked(b"data: [1]\n\n", STREAM[5]), 0, "no object"),
        (b"", 0, "before an answer"),
        (b"rubbish\r\n\r\n", 0, "no HTTP"),
    ],
)
def test_failures_are_told(answer: bytes, status: int, text: str) -> None:
    (got,) = answers_to(says(answer))
    assert not got.is_success and text in got.error and got.status == status
    assert got.end_s > got.sent_s
    assert got.retry_after_s == (7 if status == 429 else 0)


def test_nobody_listens_and_nobody_answers() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.3)
        writer.close()

    async def run() -> tuple[Answer, Answer]:
        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        address = Address(host="127.0.0.1", port=server.sockets[0].getsockname()[1])
        async with server, Connection(address) as connection:
            slow = await ask(connection, ChatDialect(model="m"), WANTED, timeout_s=0.05)
            await asyncio.sleep(0.3)
        async with Connection(address) as connection:
            return slow, await ask(connection, ChatDialect(model="m"), WANTED)

    slow, refused = asyncio.run(run())
    assert slow.error == "not complete after 0.05 s" and slow.status == 0
    assert "Error" in refused.error and not refused.is_success


def test_times_count_from_when_a_request_was_due() -> None:
    async def run() -> Answer:
        server = await asyncio.start_server(says(chunked(*STREAM)), "127.0.0.1", 0)
        address = Address(host="127.0.0.1", port=server.sockets[0].getsockname()[1])
        async with server, Connection(address) as connection:
            return await ask(connection, ChatDialect(model="m"), WANTED, due_s=1.5)

    assert asyncio.run(run()).sent_s == 1.5


def test_the_dialects_of_peers() -> None:
    bodies: list[bytes] = []
    text = frame(choices=[{"index": 0, "text": "a", "finish_reason": None}])
    stream = chunked(text, USAGE, b"data: [DONE]\n\n")
    dialect = TokensDialect(vocab_size=2000, fields={"ignore_eos": True})
    (answer,) = answers_to(says(stream, bodies=bodies), dialect=dialect)
    assert answer.is_success and answer.output_tokens == 3 and len(answer.times_s) == 1
    sent = json.loads(bodies[0])
    assert len(sent["prompt"]) == 2 and all(256 <= token < 2000 for token in sent["prompt"])
    assert sent["ignore_eos"] and sent["max_tokens"] == 3
    private = chunked(frame(token="a", gpu=0), frame(token="b", gpu=0), frame(done=True))
    (answer,) = answers_to(says(private, bodies=bodies), dialect=PrivateDialect())
    assert answer.is_success and len(answer.times_s) == 2
    assert (answer.prompt_tokens, answer.output_tokens) == (2, 3)
    assert "stream" not in json.loads(bodies[1])
    (broken,) = answers_to(says(chunked(frame(token="a", gpu=0))), dialect=PrivateDialect())
    assert "before the answer did" in broken.error

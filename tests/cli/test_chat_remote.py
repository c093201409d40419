"""chat_remote.py: our server and others, whole answers and broken ones, in one clear line each."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from nanochat.cli.chat_remote import RemoteBackend, api_base
from nanochat.cli.chat_talk import Settings, Talk
from nanochat.cli.main import main
from nanochat.common.errors import ConfigError, EngineError, Overloaded, RequestTooLong
from nanochat.common.messages import Message, Part
from nanochat.server.app import ServedModel, create_app
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.cli.chat_fakes import whole
from tests.patience import wait_until
from tests.server.conftest import live
from tests.server.fakes import FakeEngine

MODELS = '{"object": "list", "data": [{"id": "m", "max_model_len": 77}, {"id": "n"}]}'


@contextmanager
def serving(tokenizer: Tokenizer, engine: FakeEngine) -> Iterator[str]:
    """Our own server; its address without /v1."""
    model = ServedModel(name="tiny", tokenizer=tokenizer, context_len=200, created=7)
    with live(create_app(engine, model)) as url:
        yield url


class Raw:
    """A server that sends these bytes for each path, in pieces that are written one by one."""

    def __init__(self, answers: dict[str, list[bytes]]) -> None:
        self.answers, self.requests = answers, list[bytes]()
        self.is_closed_by_client = threading.Event()

    @contextmanager
    def running(self) -> Iterator[str]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            thread = threading.Thread(target=self._serve, args=(listener,), daemon=True)
            thread.start()
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        request = b""
        while not _is_whole(request):
            if not (data := connection.recv(2**16)):
                return
            request += data
        self.requests.append(request)
        path = request.split()[1].decode().removeprefix("/v1")
        for piece in self.answers[path]:
            if piece == b"wait":
                connection.settimeout(20)
                if connection.recv(1) == b"":
                    self.is_closed_by_client.set()
                return
            connection.sendall(piece)


def _is_whole(request: bytes) -> bool:
    head, end, body = request.partition(b"\r\n\r\n")
    length = next(
        (
            int(line.split(b":")[1])
            for line in head.lower().split(b"\r\n")
            if line.startswith(b"content-length")
        ),
        0,
    )
    return bool(end) and len(body) >= length


def http(body: str | bytes, status: str = "200 OK", headers: str = "") -> list[bytes]:
    body = body.encode() if isinstance(body, str) else body
    head = f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return [head.encode(), body]


def stream(*pieces: str | bytes) -> list[bytes]:
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: text/event-stream\r\n\r\n"
    return [head, *(piece.encode() if isinstance(piece, str) else piece for piece in pieces)]


def frame(text: str = "", reason: str | None = None) -> str:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason}
    return f"data: {json.dumps({'choices': [choice]}, ensure_ascii=False)}\n\n"


DONE = "data: [DONE]\n\n"


@contextmanager
def talk_to(answer: list[bytes], models: list[bytes] | None = None) -> Iterator[tuple[Talk, Raw]]:
    raw = Raw({"/models": models or http(MODELS), "/chat/completions": answer})
    with raw.running() as url:
        talk = Talk(RemoteBackend(url), Settings())
        yield talk, raw
        talk.backend.close()


# ------------------------------------------------------------------------------- our own server


@pytest.mark.req("SC-015", "FR-053")
def test_a_conversation_with_our_own_server(tiny_tokenizer: Tokenizer) -> None:
    engine = FakeEngine(("Hel", "lo \U0001f408"))
    with serving(tiny_tokenizer, engine) as url:
        talk = Talk(RemoteBackend(url), Settings(temperature=0.5, seed=3), system="S")
        assert talk.backend.count(()) is None  # only the server knows
        assert (talk.backend.name, talk.backend.context_len) == ("tiny", 200)
        assert talk.backend.place == f"{url}/v1"
        assert whole(talk.ask("Hi")) == "Hello \U0001f408"
        assert talk.last is not None and talk.last.finish_reason == "stop"
        assert talk.last.num_tokens == 2 and talk.last.num_prompt_tokens
        assert talk.num_context_tokens == talk.last.num_prompt_tokens + 2
        whole(talk.ask("again"))
        talk.backend.close()
    assert [request.sampling.seed for request in engine.requests] == [3, 4]
    assert engine.requests[0].sampling.temperature == 0.5
    prompt = tiny_tokenizer.decode(engine.requests[1].prompt_tokens)
    assert "S\n\nHi" in prompt and "Hello" in prompt and "again" in prompt


def test_leaving_an_answer_closes_the_connection_and_frees_the_server(
    tiny_tokenizer: Tokenizer,
) -> None:
    engine = FakeEngine(("Hel", "lo"))
    engine.gate.clear()
    with serving(tiny_tokenizer, engine) as url:
        talk = Talk(RemoteBackend(url), Settings())
        pieces = talk.ask("Hi")
        assert next(pieces).text == "Hel"
        pieces.close()
        wait_until(lambda: engine.cancelled)
        assert talk.turns[1] == Message("assistant", "Hel")
        engine.gate.set()
        assert whole(talk.ask("go on")) == "Hello"
        talk.backend.close()


def test_the_verb_speaks_to_a_server(
    tiny_tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(tiny_tokenizer, FakeEngine(("a\x1b[2J", "b"))) as url:
        assert main(["chat", "--url", url, "-p", "Hi", "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert (result["model"], result["text"]) == ("tiny", "a\x1b[2Jb")
        assert (result["tokens"], result["finish_reason"]) == (None, "stop")
        assert result["num_tokens"] == 2
        assert main(["chat", "no-such", "--url", url, "-p", "Hi"]) == 2
        assert "`no-such` does not exist" in (told := capsys.readouterr().err)
        assert "(it has tiny)" in told
        assert main(["chat", "--url", url, "-p", "x" * 500]) == 2
        assert "maximum context length is 200 tokens" in capsys.readouterr().err


# ------------------------------------------------------------------------------ any other server


def test_the_model_is_the_first_that_is_listed_and_the_key_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # is of no use on this machine
    monkeypatch.setenv("NANOCHAT_API_KEY", " sk-secret\n")
    answers = {"/models": http(MODELS), "/chat/completions": stream(frame("ok", "stop"), DONE)}
    raw = Raw(answers)
    with raw.running() as url:
        argv = ["chat", "--url", url, "-p", "Hi", "--top-k", "0", "--max-tokens", "5"]
        assert main(argv) == 0
    assert capsys.readouterr() == ("ok\n", "")
    assert all(
        b"authorization: bearer sk-secret\r\n" in request.lower() for request in raw.requests
    )
    body = json.loads(raw.requests[1].partition(b"\r\n\r\n")[2])
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "top_k": 0,
        "max_tokens": 5,
    }


def test_frames_cut_anywhere_are_read() -> None:
    usage = 'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 9}}\n\n'
    frames = [frame(), frame("caf\u00e9 "), frame("\U0001f408"), frame(reason="length")]
    data = "".join([": keep-alive\n\n", *frames, usage, DONE]).encode()
    pieces = [data[place : place + 7] for place in range(0, len(data), 7)]
    with talk_to(stream(*pieces)) as (talk, _):
        assert talk.backend.context_len == 77
        assert whole(talk.ask("Hi")) == "caf\u00e9 \U0001f408"
        assert talk.last is not None
        assert (talk.last.finish_reason, talk.last.num_tokens) == ("length", 9)
        assert talk.num_context_tokens == 12


def test_a_server_that_does_not_stream_is_read_too() -> None:
    answer = {"choices": [{"message": {"content": "all \ud800"}, "finish_reason": "stop"}]}
    headers = "Content-Type: application/json\r\n"
    with talk_to(http(json.dumps(answer), headers=headers)) as (talk, _):
        assert whole(talk.ask("Hi")) == "all \ufffd"
        assert talk.num_context_tokens is None


def test_of_a_calculators_turn_the_words_are_sent() -> None:
    with talk_to(stream(frame("ok", "stop"), DONE)) as (talk, raw):
        parts = (Part("text", "It is "), Part("python", "6*7"), Part("text", "42"))
        talk.load((Message("user", "6*7?"), Message("assistant", parts)))
        whole(talk.ask("sure?"))
    body = json.loads(raw.requests[-1].partition(b"\r\n\r\n")[2])
    assert body["messages"][1] == {"role": "assistant", "content": "It is 42"}


def error(message: str, code: str | None = None) -> str:
    return json.dumps({"error": {"message": message, "type": "x", "param": None, "code": code}})


BROKEN: list[tuple[list[bytes], type[Exception], str]] = [
    (http(error("Bad key"), "401 Unauthorized"), ConfigError,
     "refuses the key (401: Bad key): set NANOCHAT_API_KEY, or pass --api-key-env NAME"),
    (http(error("No model"), "404 Not Found"), ConfigError, "No model (it has m, n)"),
    (http("<html>", "404 Not Found"), EngineError, "answers 404 Not Found: expected an OpenAI-"),
    (http(error("Full"), "429 Too Many Requests", "Retry-After: 7\r\n"), Overloaded,
     "is busy (429: Full): try again in 7 s"),
    (http("", "429 Too Many Requests", "Retry-After: soon\r\n"), Overloaded, "try again later"),
    (http(error("Too long", "context_length_exceeded"), "400 Bad Request"), RequestTooLong,
     "Too long ("),
    (http(error("\x1b[2J" + "x" * 999), "500 Oops"), EngineError, "answers 500: \u241b[2Jxxx"),
    (http("", "503 Service Unavailable"), EngineError, "answers 503: Service Unavailable"),
    (http('{"error": "as text"}', "400 Bad Request"), EngineError, "answers 400: as text"),
    (http("", "302 Found", "Location: http://elsewhere/\r\n"), EngineError, "has moved to http://e"),
    (stream(f"data: {error('engine died')}\n\n"), EngineError, "broke the answer off: engine died"),
    (stream(f"data: {error('', 'context_length_exceeded')}\n\n"), RequestTooLong, "no reason"),
    (stream("data: what?\n\n"), EngineError, "the server sends 'what?'"),
    (stream("data: [1]\n\n"), EngineError, "the server sends [1]"),
    (stream(DONE), EngineError, "without saying that it is complete"),
    ([], EngineError, "the connection to http://127.0.0.1"),
    ([b"220 smtp ready\r\n"], EngineError, "the connection to http://127.0.0.1"),
    (http("x" * 2**21, "500 Oops"), EngineError, "larger than"),
]  # fmt: skip


@pytest.mark.req("FR-083")
@pytest.mark.parametrize(("answer", "kind", "message"), BROKEN, ids=range(len(BROKEN)))
def test_what_goes_wrong_is_one_clear_line(
    answer: list[bytes], kind: type[Exception], message: str
) -> None:
    with talk_to(answer) as (talk, _):
        with pytest.raises(kind) as caught:
            whole(talk.ask("Hi"))
        told = str(caught.value)
        assert message in told and "\n" not in told and "\x1b" not in told and len(told) < 600
        assert (talk.turns, talk.pending) == ((), "Hi")


@pytest.mark.parametrize(
    "end",
    [
        f"data: {error('engine died')}\n\n",
        "",
        'data: {"choices": [{"del',
        DONE,
    ],
)
def test_what_came_of_a_broken_answer_is_kept(end: str) -> None:
    with talk_to(stream(frame("half"), end)) as (talk, _):
        with pytest.raises(EngineError):
            whole(talk.ask("Hi"))
        assert talk.turns == (Message("user", "Hi"), Message("assistant", "half"))


def test_a_connection_that_breaks_in_the_middle_is_said() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 9999\r\n\r\n"
    with talk_to([head, frame("half").encode()]) as (talk, _):
        with pytest.raises(EngineError, match="the connection to .* broke"):
            whole(talk.ask("Hi"))
        assert talk.turns[1].content == "half"


def test_closing_an_answer_closes_the_connection() -> None:
    with talk_to(stream(frame("half"), b"wait")) as (talk, raw):
        pieces = talk.ask("Hi")
        assert next(pieces).text == "half"
        pieces.close()
        assert raw.is_closed_by_client.wait(20)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (http('{"data": []}'), "serves no model, expected at least one"),
        (http('{"data": 3}'), "is no list of models"),
        (http("<html>"), "the server sends '<html>'"),
        (http("", "404 Not Found"), "expected an OpenAI-compatible API there"),
        (http(error("Bad key"), "403 Forbidden"), "refuses the key (403: Bad key)"),
    ],
)
def test_a_server_without_a_model_is_refused(models: list[bytes], message: str) -> None:
    raw = Raw({"/models": models})
    with raw.running() as url, pytest.raises((EngineError, ConfigError)) as caught:
        RemoteBackend(url)
    assert message in str(caught.value)


def test_a_model_that_is_named_needs_no_list() -> None:
    raw = Raw({"/models": http("", "404 Not Found")})
    with raw.running() as url:
        backend = RemoteBackend(url, "mine\x1b")
        assert (backend.name, backend.context_len) == ("mine\u241b", None)
        assert backend.count(()) is None
        backend.close()


def test_nobody_at_the_address(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert main(["chat", "--url", f"http://127.0.0.1:{port}/v1", "-p", "Hi"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"cannot reach http://127.0.0.1:{port}/v1" in err
    assert "is the server running there?" in err


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://h:8000", "http://h:8000/v1"),
        (" http://h/ ", "http://h/v1"),
        ("https://h/openai/v1/", "https://h/openai/v1/"),
        ("http://h/v1?x=1#y", "http://h/v1"),
    ],
)
def test_addresses(url: str, base: str) -> None:
    assert str(api_base(url)) == base


@pytest.mark.parametrize(
    "url", ["", "h:8000", "ftp://h/v1", "http://", "http:///v1", "http://h:port"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="--url is"):
        api_base(url)


def test_a_key_that_no_header_can_hold_is_refused_and_not_shown() -> None:
    for key in ("two words", "line\nbreak", "caf\u00e9"):
        with pytest.raises(ConfigError, match="the API key has") as caught:
            RemoteBackend("http://127.0.0.1:9", "m", key)
        assert key not in str(caught.value)


def test_a_password_in_the_address_is_not_shown() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(EngineError) as caught:
        RemoteBackend(f"http://user:secret@127.0.0.1:{port}", "m")
    assert "secret" not in str(caught.value) and "user" not in str(caught.value)

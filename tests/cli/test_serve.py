"""serve.py and http_server.py: ready when it says so, gone when it is told to."""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request

from nanochat.cli import http_server, serve
from nanochat.cli.http_server import answering, reserve, serve_app
from nanochat.cli.main import main
from nanochat.common.errors import ConfigError
from nanochat.engine.load import EngineSpec
from nanochat.engine.worker import EngineProcess, WorkerModel
from nanochat.server.loading import loading_app
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.cli.models import save_model


@contextmanager
def once_ready(
    capsys: pytest.CaptureFixture[str], act: Callable[[str], None]
) -> Iterator[list[str]]:
    """Beside the block, in a thread: wait for the ready line, then act with it."""
    lines: list[str] = []

    def watch() -> None:
        end = time.monotonic() + 100
        while not lines and time.monotonic() < end:
            lines.extend(capsys.readouterr().out.splitlines())
            time.sleep(0.01)
        if lines:  # else there is nobody to take the signal but the test itself
            act(lines[0])

    thread = threading.Thread(target=watch)
    thread.start()
    yield lines
    thread.join()


def end_with(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.req("FR-054")
def test_a_served_model_answers_until_it_is_told_to_stop(
    home: Path, tiny_tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(home, tiny_tokenizer)
    answers: list[Any] = []

    def use(line: str) -> None:
        try:
            ready = json.loads(line)
            body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
            url = ready["url"]
            answers.append(ready["model"])
            answers.append(httpx.get(url).text[:15])
            chat = httpx.post(f"{url}/v1/chat/completions", json=body | {"max_tokens": 3})
            answers.append(chat.json()["usage"]["prompt_tokens"])
        finally:
            end_with(signal.SIGTERM)

    with once_ready(capsys, use):
        assert main(["serve", "tiny", "--port", "0", "--json"]) == 0
    assert answers == ["tiny", "<!doctype html>", 6]


def test_ctrl_c_ends_it_as_it_ends_everything(
    home: Path,
    tiny_tokenizer: Tokenizer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save_model(home, tiny_tokenizer, run="base", stage="pretrain")
    opened: list[str] = []
    monkeypatch.setattr(http_server.webbrowser, "open", opened.append)
    before = signal.getsignal(signal.SIGINT)
    with once_ready(capsys, lambda line: end_with(signal.SIGINT)) as lines:
        argv = ["serve", "base", "--host", "0.0.0.0", "--port", "0", "--open", "--name", "mine"]
        assert main([*argv, "--insecure-public"]) == 130
    assert lines[0].startswith("mine answers at http://0.0.0.0:")
    assert opened == [lines[0].split()[3]]
    assert signal.getsignal(signal.SIGINT) is before


def test_notices_of_a_public_base_model(
    home: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    save_model(home, tiny_tokenizer, run="base", stage="pretrain")
    monkeypatch.setattr(http_server, "serve_app", lambda *args, **kwargs: None)
    argv = ["serve", "base", "--host", "0.0.0.0", "--port", "0"]
    assert main([*argv, "--insecure-public"]) == 0
    err = capsys.readouterr().err
    assert "base is a base model" in err
    assert "anyone who can reach 0.0.0.0" in err


@pytest.mark.req("FR-054")
def test_a_port_in_use_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "tiny", "--port", str(port)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"nanochat: cannot serve on 127.0.0.1:{port} (Address already in use)")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--port", "70000"], "port is 70000, expected 0 to 65535"),
        (["--max-rows", "0"], "max_rows is 0, expected at least 1"),
        (["--temperature", "-1"], "temperature is -1.0"),
        (["--workers", "0"], "workers is 0, expected at least 1"),
        (["--num-workers", "0"], "workers is 0, expected at least 1"),
        (["--cache-entries", "-1"], "cache_entries is -1, expected at least 0"),
        (["--max-queue", "-1", "--port", "0"], "max_queue is -1: expected at least 0"),
        (["--drain-s", "-2", "--port", "0"], "drain_s is -2: expected at least 0"),
        (["--cache-bytes", "0"], "cache_bytes is 0, expected more than 0: --cache-entries 0"),
        (["--cache-ttl", "0"], "cache_ttl is 0, expected more than 0: --cache-entries 0"),
        (["--alias", ""], "an --alias is empty, expected a name"),
        (["--trusted-proxies", "nginx"], "expected an address such as 127.0.0.1, or a network"),
        (["--source", "tiny"], "both MODEL and --source are given, expected one"),
        (["--api-key-file", "absent", "--port", "0"], "--api-key-file absent: No such file"),
        (["--host", "0.0.0.0", "--port", "0"], "would be asked for no key: pass --api-key-file"),
    ],
)
def test_mistakes_are_one_line(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "tiny", *argv]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_a_model_has_to_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve"]) == 2
    assert "no model is given, expected one: nanochat serve d12" in capsys.readouterr().err


def used(
    home: Path, argv: list[str], capsys: Any, use: Callable[[str], None], *, ends: bool = True
) -> None:
    """Serve in this process, use it once it is ready, end it unless the use does."""

    def act(line: str) -> None:
        try:
            use(json.loads(line)["url"])
        finally:
            if ends:
                end_with(signal.SIGTERM)

    with once_ready(capsys, act):
        assert main(["serve", *argv, "--port", "0", "--json", "--home", str(home)]) == 0


@pytest.mark.req("FR-054")
def test_with_keys_from_a_file_or_the_environment(
    home: Path,
    tmp_path: Path,
    tiny_tokenizer: Tokenizer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save_model(home, tiny_tokenizer)
    (tmp_path / "keys").write_text("a-key-from-the-file\n")
    found: list[int] = []

    def ask(url: str) -> None:
        for key in ("a-key-from-the-file", "a-key-from-the-environment"):
            headers = {"Authorization": f"Bearer {key}"}
            found.append(httpx.get(f"{url}/v1/models", headers=headers).status_code)
        found.append(httpx.get(f"{url}/ready").status_code)

    monkeypatch.setenv("NANOCHAT_API_KEYS", "a-key-from-the-environment")
    used(home, ["tiny"], capsys, ask)
    keys = str(tmp_path / "keys")
    (tmp_path / "umlaut").write_text("schlüssel-mit-umlaut\n", encoding="utf-8")
    assert main(["serve", "tiny", "--api-key-file", str(tmp_path / "umlaut"), "--port", "0"]) == 2
    assert "a key has characters beyond ASCII" in capsys.readouterr().err
    public = ["--host", "0.0.0.0", "--api-key-file", keys]
    used(home, ["tiny", *public], capsys, ask)
    assert found == [401, 200, 200, 200, 401, 200]


@pytest.mark.req("FR-054")
def test_several_engines_and_nanochat_rs_spellings(
    home: Path, tmp_path: Path, tiny_tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(home, tiny_tokenizer)
    (tmp_path / "ui.html").write_text("<p>mine</p>")
    found: dict[str, Any] = {}

    def ask(url: str) -> None:
        found["page"] = httpx.get(url).text
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
        answers = [httpx.post(f"{url}/v1/chat/completions", json=body) for _ in range(3)]
        found["answers"] = [answer.status_code for answer in answers]
        found["stats"] = httpx.get(f"{url}/stats").json()
        host = {"Host": "chat.example.com"}
        found["host"] = httpx.get(f"{url}/health", headers=host).status_code

    argv = ["--source", "tiny", "--num-workers", "2", "--ui-path", str(tmp_path / "ui.html")]
    argv += ["--max-rows", "4", "--cache-entries", "0", "--device", "cpu"]
    used(home, [*argv, "--allowed-hosts", "chat.example.com"], capsys, ask)
    assert found["page"] == "<p>mine</p>" and found["answers"] == [200, 200, 200]
    stats = found["stats"]
    assert (stats["total_workers"], stats["available_workers"]) == (2, 2)
    assert stats["workers"] == [{"gpu_id": place, "device": "cpu"} for place in (0, 1)]
    assert stats["max_active"] == 8 and stats["cache"] is None and stats["model"] == "tiny"
    assert found["host"] == 200


@pytest.mark.req("FR-054")
def test_an_answer_that_runs_at_the_signal_is_written_to_its_end(
    home: Path, tiny_tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(home, tiny_tokenizer)
    lines: list[str] = []

    def ask(url: str) -> None:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
        try:
            with httpx.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
                end_with(signal.SIGTERM)
                lines.extend(line for line in response.iter_lines() if line)
        except httpx.HTTPError:
            end_with(signal.SIGTERM)
            raise

    used(home, ["tiny"], capsys, ask, ends=False)
    assert lines[-1] == "data: [DONE]"


def test_a_single_engine_may_have_a_process_of_its_own(
    home: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = WorkerModel(
        tokenizer=tiny_tokenizer, context_len=9, is_chat=True, model_hash="h", device="cpu"
    )
    monkeypatch.setattr(EngineProcess, "start", lambda self: model)
    closed: list[EngineSpec] = []
    monkeypatch.setattr(EngineProcess, "close", lambda self: closed.append(self.spec))
    served: dict[str, Any] = {}
    monkeypatch.setattr(http_server, "serve_app", lambda app, place, **more: served.update(more))
    argv = ["serve", "tiny", "--engine-process", "--kv-memory", "0.5", "--dtype", "int8"]
    assert main([*argv, "--port", "0", "--drain-s", "7", "--max-rows", "3"]) == 0
    assert served["drain_s"] == 7 and served["drains"].settings.max_active == 3
    [spec] = closed
    assert (spec.kv_memory_bytes, spec.format, spec.max_rows) == (1 << 29, "int8", 3)
    assert (spec.worker, spec.num_workers) == (0, 1)


@pytest.mark.req("FR-054")
def test_while_loading_everything_but_health_is_503_and_who_comes_then_is_served(
    home: Path,
    tiny_tokenizer: Tokenizer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save_model(home, tiny_tokenizer)
    answers: dict[str, httpx.Response] = {}
    urls: list[str] = []
    really_answering, really_load = http_server.answering, serve.served_here

    def answering(app: Any, place: Any) -> Any:
        urls.append(place.url)
        return really_answering(app, place)

    def load(config: Any) -> Any:
        assert capsys.readouterr().out == ""  # the line comes once it is ready
        for path in ("/health", "/ready", "/", "/v1/models"):
            answers[path] = httpx.get(urls[0] + path)
        answers["POST"] = httpx.post(f"{urls[0]}/v1/chat/completions", json={"model": "tiny"})
        return really_load(config)

    monkeypatch.setattr(http_server, "answering", answering)
    monkeypatch.setattr(serve, "served_here", load)
    used(home, ["tiny"], capsys, lambda url: answers.update(after=httpx.get(f"{url}/ready")))
    assert answers.pop("after").json() == {"status": "ready"}
    health = answers.pop("/health")
    assert (health.status_code, health.json()["ready"]) == (200, False)
    assert answers["/ready"].json() == {"status": "loading"}
    for path, answer in answers.items():
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5"), path
        assert "content-security-policy" in answer.headers
    assert answers["POST"].json()["error"]["code"] == "service_unavailable"


def test_who_comes_between_loading_and_serving_waits(capsys: pytest.CaptureFixture[str]) -> None:
    app, found = FastAPI(), []

    @app.get("/")
    async def served() -> str:
        return "served"

    with reserve("127.0.0.1", 0) as place:
        with answering(loading_app("tiny"), place):
            assert httpx.get(place.url).status_code == 503
        client = threading.Thread(target=lambda: found.append(httpx.get(place.url, timeout=60)))
        client.start()

        def end(line: str) -> None:
            client.join()
            end_with(signal.SIGTERM)

        with once_ready(capsys, end):
            serve_app(app, place, ready="here")
    assert found[0].json() == "served"


def test_a_model_that_cannot_be_loaded_is_one_line(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "absent", "--port", "0", "--home", str(home)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_place_is_free_afterwards() -> None:
    with reserve("localhost", 0) as place:
        assert place.url.startswith("http://localhost:")
    with reserve("127.0.0.1", int(place.url.rpartition(":")[2])) as again:
        assert again.url.rpartition(":")[2] == place.url.rpartition(":")[2]
    with (
        pytest.raises(ConfigError, match="cannot serve on nowhere.invalid:1"),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(socket, "getaddrinfo", unknown_host)
        with reserve("nowhere.invalid", 1):
            pass


@pytest.mark.req("FR-053", "FR-055")
def test_a_model_of_several_names_is_one_model(
    home: Path, tiny_tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(home, tiny_tokenizer)
    found: list[Any] = []

    def ask(url: str) -> None:
        found.append([model["id"] for model in httpx.get(f"{url}/v1/models").json()["data"]])
        body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "seed": 1}
        for name in ("tiny", "gpt-4o-mini", "other", "none"):
            answer = httpx.post(f"{url}/v1/chat/completions", json={**body, "model": name})
            found.append((answer.status_code, answer.headers.get("x-cache")))
        found.append(httpx.delete(f"{url}/admin/cache?model=other").json())

    used(home, ["tiny", "--alias", "gpt-4o-mini", "--alias", "other"], capsys, ask)
    assert found == [
        ["tiny", "gpt-4o-mini", "other"],
        (200, "MISS"),
        (200, "HIT"),
        (200, "HIT"),
        (404, None),
        {"removed": 1},
    ]


@pytest.mark.req("FR-062")
@pytest.mark.parametrize(
    ("proxies", "client"), [((), "127.0.0.1"), (("127.0.0.0/8",), "203.0.113.7")]
)
def test_who_asks_is_believed_from_a_named_proxy_alone(
    proxies: tuple[str, ...],
    client: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("FORWARDED_ALLOW_IPS", raising=False)
    servers: list[Any] = []
    app = FastAPI()
    told: list[str] = []

    @app.get("/who")
    async def who(request: Request) -> None:
        servers[0].should_exit = True
        assert request.client is not None
        told.append(request.client.host)

    with pytest.MonkeyPatch.context() as patch, reserve("127.0.0.1", 0) as place:
        patch.setattr(http_server._Server, "__init__", remember(servers))
        serving = partial(serve_app, app, place, ready="here", trusted_proxies=proxies)
        thread = threading.Thread(target=serving)
        forged = {"X-Forwarded-For": "203.0.113.7"}
        with once_ready(
            capsys, lambda line: httpx.get(f"{place.url}/who", headers=forged) and None
        ):
            thread.start()
            thread.join()
    assert told == [client]


def unknown_host(*args: Any, **kwargs: Any) -> Any:
    raise socket.gaierror(-2, "Name or service not known")


def test_an_app_can_be_served_from_a_thread(capsys: pytest.CaptureFixture[str]) -> None:
    """Signals belong to the main thread: elsewhere the app is served without taking them."""
    servers: list[Any] = []
    app = FastAPI()

    @app.get("/end")
    async def end() -> str:
        servers[0].should_exit = True
        return "bye"

    with pytest.MonkeyPatch.context() as patch, reserve("127.0.0.1", 0) as place:
        patch.setattr(http_server._Server, "__init__", remember(servers))
        thread = threading.Thread(target=lambda: serve_app(app, place, ready="here"))
        with once_ready(capsys, lambda line: httpx.get(f"{place.url}/end") and None):
            thread.start()
            thread.join()


def remember(servers: list[Any]) -> Any:
    original = http_server._Server.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        servers.append(self)
        original(self, *args, **kwargs)

    return init

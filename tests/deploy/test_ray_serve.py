"""deploy/ray_serve.py: two replicas behind one address, on a Ray of their own."""

import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy import ray_serve
from nanochat.common.errors import ConfigError
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.cli.models import save_model
from tests.conftest import REPOSITORY
from tests.deploy.jobs import PATIENCE_S
from tests.optional import needs_ray
from tests.patience import wait_until

QUESTION = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "Who are you?"}],
    "temperature": 0,
    "max_tokens": 8,
}


ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(REPOSITORY),
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_USAGE_STATS_ENABLED": "0",
}
pytestmark = pytest.mark.timeout(3 * PATIENCE_S)
TOO_BUSY = "timed out during startup"  # Ray gives its own processes 30 s, no more


def started(folder: Path, *more: str) -> "subprocess.Popen[str]":
    """The script with a tiny model in a folder; what it complains of is in the folder, too."""
    words = [sys.executable, str(REPOSITORY / "deploy" / "ray_serve.py"), "tiny", "--json"]
    words += ["--home", str(folder), "--replicas", "2", "--cpus", "0.5", "--cache-entries", "0"]
    with (folder / "errors").open("w") as errors:
        return subprocess.Popen(
            [*words, "--port", "0", *more],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=ENVIRONMENT,
            start_new_session=True,
        )


@contextlib.contextmanager
def ended(job: "subprocess.Popen[Any]") -> Iterator[None]:
    """Nothing is left of a job and of what it has started."""
    try:
        yield
    finally:
        job.terminate()  # Ray ends what it has started elsewhere
        with contextlib.suppress(subprocess.TimeoutExpired):
            job.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
        job.wait()
        if job.stdout is not None:
            job.stdout.close()


@pytest.fixture(scope="module")
def url(tiny_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    needs_ray()
    folder = tmp_path_factory.mktemp("ray")
    save_model(folder, tiny_tokenizer)
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            job = started(folder)
            stack.enter_context(ended(job))
            told = _first_json(job)
            said = (folder / "errors").read_text()[-3000:]
            if told is not None or TOO_BUSY not in said:
                break
        assert told is not None, said
        assert (told["model"], told["replicas"]) == ("tiny", 2)
        yield told["url"]
        job.send_signal(signal.SIGTERM)
        assert job.wait(PATIENCE_S) == 0, (folder / "errors").read_text()[-3000:]


def _first_json(job: "subprocess.Popen[str]") -> dict[str, Any] | None:
    assert job.stdout is not None
    for line in job.stdout:
        if line.startswith("{"):
            told: dict[str, Any] = json.loads(line)
            return told
    return None


@pytest.mark.req("FR-053", "FR-054", "SC-010")
def test_both_replicas_answer_alike(url: str) -> None:
    with httpx.Client(base_url=url, timeout=60) as client, ThreadPoolExecutor(8) as threads:
        answers = list(
            threads.map(lambda _: client.post("/v1/chat/completions", json=QUESTION), range(32))
        )
    assert [answer.status_code for answer in answers] == [200] * 32
    assert len({answer.headers["x-replica"] for answer in answers}) == 2
    texts = {answer.json()["choices"][0]["message"]["content"] for answer in answers}
    assert len(texts) == 1


@pytest.mark.req("FR-050", "FR-053", "FR-083")
def test_answers_stream_and_errors_and_the_page_are_ours(url: str) -> None:
    with httpx.Client(base_url=url, timeout=60) as client:
        asked = {**QUESTION, "stream": True}
        with client.stream("POST", "/v1/chat/completions", json=asked) as answer:
            frames = [line for line in answer.iter_lines() if line]
        assert frames[-1] == "data: [DONE]" and len(frames) > 2
        wrong = client.post("/v1/chat/completions", json={**QUESTION, "model": "other"})
        assert wrong.status_code == 404 and wrong.json()["error"]["code"] == "model_not_found"
        assert "<html" in client.get("/").text
        assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"


@pytest.mark.slow
@pytest.mark.req("FR-053", "FR-054")
def test_on_a_cluster_the_replicas_stay(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    needs_ray()
    save_model(tmp_path, tiny_tokenizer)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"]
    words += ["--port", str(port), "--include-dashboard", "false"]
    words += ["--num-cpus", "2", "--object-store-memory", str(80 << 20)]
    with (tmp_path / "head").open("w") as output:
        head = subprocess.Popen(
            words, stdout=output, stderr=output, env=ENVIRONMENT, start_new_session=True
        )

    def said() -> str:
        return (tmp_path / "head").read_text()

    with ended(head):
        wait_until(lambda: "Ray runtime started" in said() or head.poll(), PATIENCE_S)
        if TOO_BUSY in said():
            pytest.skip("the machine is too busy for Ray")
        job = started(tmp_path, "--address", f"127.0.0.1:{port}")
        with ended(job):
            told = _first_json(job)
            assert told is not None, (tmp_path / "errors").read_text()[-3000:]
            assert job.wait(PATIENCE_S) == 0
        answer = httpx.post(f"{told['url']}/v1/chat/completions", json=QUESTION, timeout=60)
        assert answer.status_code == 200 and answer.headers["x-replica"]


def test_flags_of_a_single_server_are_refused() -> None:
    for said, flag in (
        ({"workers": 2}, "workers"),
        ({"engine_process": True}, "engine-process"),
        ({"open": True}, "open"),
    ):
        with pytest.raises(ConfigError, match=f"--{flag} is not for replicas"):
            ray_serve.Config(model="tiny", **said)
    with pytest.raises(ConfigError, match="replicas is 0"):
        ray_serve.Config(model="tiny", replicas=0)


def test_what_is_wrong_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert ray_serve.main(["tiny"]) == 2
    assert "pip install 'nanochat[cluster]'" in capsys.readouterr().err
    assert ray_serve.main([]) == 2
    assert capsys.readouterr().err.startswith("ray_serve: no model is given")


def test_an_answer_says_which_replica_gave_it() -> None:
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b"hi"})

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(ray_serve.Named(app, "r1")({}, None, send))
    assert sent[0]["headers"] == [(b"a", b"b"), (b"x-replica", b"r1")]
    assert sent[1] == {"type": "http.response.body", "body": b"hi"}

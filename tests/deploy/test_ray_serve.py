"""deploy/ray_serve.py: two replicas behind one address, on a Ray of their own."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from deploy import ray_serve
from nanochat.common.errors import ConfigError
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.cli.models import save_model
from tests.conftest import REPOSITORY

QUESTION = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "Who are you?"}],
    "temperature": 0,
    "max_tokens": 8,
}


@pytest.fixture(scope="module")
def url(tiny_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("ray")
    folder = tmp_path_factory.mktemp("ray")
    save_model(folder, tiny_tokenizer)
    words = [sys.executable, str(REPOSITORY / "deploy" / "ray_serve.py"), "tiny", "--json"]
    words += ["--home", str(folder), "--port", "0", "--replicas", "2", "--cpus", "0.5"]
    words += ["--cache-entries", "0"]
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(REPOSITORY)}
    with (folder / "errors").open("w") as errors:
        job = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment,
            start_new_session=True,
        )  # fmt: skip
    try:
        told = _first_json(job)
        assert told is not None, (folder / "errors").read_text()[-3000:]
        assert (told["model"], told["replicas"]) == ("tiny", 2)
        yield told["url"]
        job.send_signal(signal.SIGTERM)
        assert job.wait(60) == 0, (folder / "errors").read_text()[-3000:]
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()
        if job.stdout is not None:
            job.stdout.close()


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

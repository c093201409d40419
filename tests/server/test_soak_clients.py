"""scripts/soak_clients.py in small, against a real engine: bad clients leave nothing behind."""

import asyncio
import json
import subprocess
from collections.abc import Iterator

import pytest

from nanochat.engine.engine import Engine
from nanochat.server.app import ServedModel, create_app
from nanochat.server.deadlines import Deadlines, connection_type
from nanochat.server.settings import ServerSettings
from nanochat.tokenizer.tokenizer import Tokenizer
from scripts import soak_clients as soak
from scripts.soak_serve import verdict
from tests.engine.conftest import CONTEXT_LEN, random_model
from tests.server.test_deadlines import serving

SHORT = Deadlines(head_s=2.0, body_s=2.0, write_s=2.0)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long it may take is measured by `make soak`; here others use the machine."""
    monkeypatch.setattr(soak, "ANSWER_S", 40.0)
    monkeypatch.setattr(soak, "SETTLE_S", 40.0)


@pytest.fixture(scope="module")
def url(tiny_tokenizer: Tokenizer) -> Iterator[str]:
    engine = Engine(random_model(), tiny_tokenizer, max_rows=8)
    served = ServedModel(name="tiny", tokenizer=tiny_tokenizer, context_len=CONTEXT_LEN)
    app = create_app(engine, served, ServerSettings(max_active=8, max_queue=400))
    with serving(app, connection_type(SHORT)) as server:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    assert engine.stats().num_free_blocks == engine.stats().num_blocks


@pytest.mark.req("EC-10")
@pytest.mark.req("FR-062")
def test_many_who_go_away_leave_nothing_behind(url: str) -> None:
    found = asyncio.run(soak.aborted(soak.Target(url=url, model="tiny"), 60, 0.05))
    assert found["status"] == 200 and not found["kv_usage"] and not found["running"]
    assert found["ok"], found


@pytest.mark.req("FR-062")
def test_slow_clients_hold_nobody_up_and_are_let_go(url: str) -> None:
    found = asyncio.run(soak.slow(soak.Target(url=url, model="tiny"), 10, 40.0))
    assert found["left"] == 0 and found["clients"] == 40
    assert found["ok"], found


def test_the_script_says_what_it_found(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--url", url, "--model", "tiny", "--aborted", "4", "--slow", "1", "--key", "unused"]
    assert soak.main([*argv, "--deadline-s", "40"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["aborted"]["ok"] and found["slow"]["clients"] == 4
    assert soak.main([*argv[:2], "--model", "other", *argv[4:], "--deadline-s", "5"]) == 1


def test_what_is_skipped_has_not_been_shown() -> None:
    passed = subprocess.CompletedProcess([], 0, ".\n1 passed in 2.00s\n", "")
    assert verdict(passed) == {"pytest": "1 passed in 2.00s", "ok": True}
    reason = "SKIPPED [1] test_clients.py:110: litellm cannot be installed"
    skipped = subprocess.CompletedProcess([], 0, f"s\n{reason}\n1 skipped in 2.00s\n", "")
    found = verdict(skipped)
    assert found == {"pytest": "1 skipped in 2.00s", "ok": False, "skipped": [reason]}
    assert not verdict(subprocess.CompletedProcess([], 4, "", "no such file\n"))["ok"]

"""One process at a time; who waits says for whom."""

import os
import threading
from pathlib import Path

import pytest

from nanochat.common import lock
from nanochat.common.lock import locked
from tests.patience import wait_until


@pytest.mark.req("FR-032")
def test_who_waits_says_for_whom(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def second(path: Path, *what: str) -> None:
        with locked(path, *what):
            assert path.read_text() == str(os.getpid())

    def said_one_more(count: int) -> bool:
        said.extend(capsys.readouterr().err.splitlines())
        return len(said) == count

    path = tmp_path / ".lock"
    monkeypatch.setattr(lock, "SAY_AFTER_S", 0.0)
    second(path)
    for number, what in enumerate([("loads climbmix",), ()], start=1):
        with locked(path):
            waiting = threading.Thread(target=second, args=(path, *what))
            waiting.start()
            wait_until(lambda number=number: said_one_more(number))
        waiting.join()
    who = f"waiting for process {os.getpid()}, which"
    assert said == [f"{who} loads climbmix", f"{who} has {path}"]
    assert not path.read_bytes()

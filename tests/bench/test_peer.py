"""A peer's figures, and how it can fail to have some."""

import sys

import pytest

from nanochat.bench import peer as peer_module
from nanochat.bench.peer import PeerFailed, peer_figures

ENVIRONMENT: dict[str, str] = {}


def figures_of(code: str) -> object:
    return peer_figures("it", [sys.executable, "-c", code], ENVIRONMENT)


@pytest.mark.req("FR-068")
def test_the_last_line_counts() -> None:
    assert figures_of("print('starting'); print('{\"wall_s\": 2.5}')") == {"wall_s": 2.5}


@pytest.mark.req("FR-068")
def test_failures_are_told_in_a_line() -> None:
    with pytest.raises(PeerFailed, match="it failed with code 3: nothing on stderr") as found:
        figures_of("raise SystemExit(3)")
    assert found.value.signal is None
    with pytest.raises(PeerFailed, match="it failed with code -15") as found:
        figures_of("import os; os.kill(os.getpid(), 15)")
    assert found.value.signal == 15


@pytest.mark.req("FR-068")
def test_one_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_module, "PEER_S", 0.2)
    with pytest.raises(PeerFailed, match=r"it had no figures after 0\.2 s: measure less of it"):
        figures_of("import time; time.sleep(60)")

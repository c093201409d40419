"""No attack gets out: each is run with namespaces and without, and looked for outside."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanochat.common.sandbox.box import Sandbox
from nanochat.common.sandbox.drivers import Driver, absent
from tests.common.attacks.attack import Attack, Outside, descendants, laid_out, run
from tests.common.attacks.files import READING, WRITING
from tests.common.attacks.machine import KERNEL, RESOURCES
from tests.common.attacks.processes import NETWORK, PROCESSES, SIGNALS
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the walls are Linux's")

ATTACKS = [*READING, *WRITING, *NETWORK, *PROCESSES, *SIGNALS, *KERNEL, *RESOURCES]


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outside]:
    with laid_out(tmp_path_factory.mktemp("outside")) as everything:
        yield everything


DRIVERS: list[Driver] = ["linux", "landlock"]
if not absent("bubblewrap"):
    DRIVERS.append("bubblewrap")


@pytest.fixture(scope="module", params=DRIVERS)
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    # The self-test has its own test; here every wall is attacked anyway.
    with Sandbox(request.param, unsafe=True) as opened:
        opened.run("")
        yield opened


def server_of(sandbox: Sandbox) -> int:
    assert sandbox._server is not None
    return sandbox._server.pid


def _still_running(server: int, before: set[int]) -> set[int]:
    """What is there that was not, once the watcher, which has replied, is gone too."""
    until_s = time.monotonic() + PATIENCE_S
    while (more := descendants(server) - before) and time.monotonic() < until_s:
        time.sleep(0.001)
    return more


@pytest.mark.req("FR-040")
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_is_contained(sandbox: Sandbox, outside: Outside, attack: Attack) -> None:
    server, before = server_of(sandbox), descendants(server_of(sandbox))
    outcome, over_s = run(sandbox, attack, outside)
    output = outcome.stdout + outcome.stderr
    assert outside.damage(output) == []
    assert attack.must_not_print not in output
    assert not attack.status or outcome.status == attack.status, outcome
    assert server_of(sandbox) == server, "the server had to be started anew"
    assert _still_running(server, before) == set()
    assert over_s < 20
    assert outcome.max_rss_bytes <= attack.limits.memory_bytes
    assert len(outcome.stdout) <= attack.limits.output_bytes
    assert len(outcome.stderr) <= attack.limits.output_bytes


def test_there_are_enough_attacks_and_each_has_its_name() -> None:
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS) >= 60


@pytest.mark.parametrize(
    "attack", [attack for attack in ATTACKS if attack.works_openly], ids=lambda attack: attack.name
)
def test_the_attack_is_real(outside: Outside, attack: Attack, tmp_path: Path) -> None:
    """Without walls it gets through: the checks above can fail."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", outside.preamble() + attack.program],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=30,
            check=False,
        )
        output = done.stdout + done.stderr
        assert outside.damage(output) or attack.must_not_print in output
    finally:
        outside.repair()

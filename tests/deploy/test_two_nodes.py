"""deploy/two_nodes.sh, and torchrun as everybody writes it."""

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import run as torchrun

from nanochat.cli import eval as evaluation
from nanochat.common.config import parse
from nanochat.train.config import MidtrainConfig, PretrainConfig, SftConfig
from tests.conftest import REPOSITORY
from tests.deploy.jobs import (
    PATIENCE_S,
    Undisturbed,
    paced,
    process_of_rank,
    running,
    stage_of,
    steps_done,
)
from tests.patience import wait_until
from tests.train.test_failures import losses_of

SCRIPT = REPOSITORY / "deploy" / "two_nodes.sh"
pytestmark = pytest.mark.timeout(3 * PATIENCE_S)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def environment(**said: str) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHON": sys.executable,
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "RANKS": "1",
        **said,
    }


@pytest.mark.parametrize(
    "loses_a_rank", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["calm", "one dies"]
)
@pytest.mark.req("FR-016", "FR-020", "EC-5", "SC-011")
def test_two_hosts_end_with_the_undisturbed_losses(
    loses_a_rank: bool, tmp_path: Path, expected: Undisturbed, warm_python: str
) -> None:
    """Two launchers that meet on the loopback address; a rank of the second one is killed."""
    home, output = tmp_path / "job", tmp_path / "output"
    said = environment(
        PORT=str(free_port()), OWN="127.0.0.1", PYTHON=warm_python, PYTHON_EXEC=warm_python
    )
    words = expected.words(home)
    if loses_a_rank:
        said |= paced(tmp_path / "hook")
    with contextlib.ExitStack() as stack:
        hosts = [
            stack.enter_context(running([str(SCRIPT), node, "127.0.0.1", *words], said, output))
            for node in ("0", "1")
        ]
        if loses_a_rank:
            wait_until(lambda: steps_done(home) >= 12, PATIENCE_S)
            os.kill(process_of_rank(home, 1), signal.SIGKILL)
        assert [host.wait(PATIENCE_S) for host in hosts] == [0, 0], output.read_text()
    assert losses_of(stage_of(home)) == pytest.approx(expected.losses, rel=1e-5)
    assert ("start 2" in (stage_of(home) / "log.txt").read_text()) == loses_a_rank


@contextlib.contextmanager
def two_namespaces() -> Iterator[list[str]]:
    """Names of two network namespaces with a cable between them, 10.77.0.1 and 10.77.0.2."""
    names = [f"nanochat{os.getpid()}{letter}" for letter in "ab"]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ends = ("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable")
        ip(*ends, "netns", names[1])
        for number, name in enumerate(names, start=1):
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces are not permitted here: {error}")
    else:
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


@pytest.mark.slow
@pytest.mark.req("FR-016", "SC-011")
def test_two_hosts_with_networks_of_their_own(tmp_path: Path, expected: Undisturbed) -> None:
    """Neither host knows the other's name: addresses and the interface are given."""
    home, output = tmp_path / "job", tmp_path / "output"
    with two_namespaces() as names, contextlib.ExitStack() as stack:
        hosts = []
        for node, name in enumerate(names):
            words = ["ip", "netns", "exec", name, str(SCRIPT), str(node), "10.77.0.1"]
            said = environment(INTERFACE="cable", OWN=f"10.77.0.{node + 1}")
            words += expected.words(home)
            hosts.append(stack.enter_context(running(words, said, output)))
        assert [host.wait(PATIENCE_S) for host in hosts] == [0, 0], output.read_text()
    assert losses_of(stage_of(home)) == pytest.approx(expected.losses, rel=1e-5)


# --------------------------------------------------------------------------- torchrun as written


def flags_of(config: Any) -> list[str]:
    return [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(config)]


@pytest.mark.parametrize(
    ("verb", "config"),
    [
        ("pretrain", PretrainConfig),
        ("midtrain", MidtrainConfig),
        ("sft", SftConfig),
        ("eval", evaluation.Config),
    ],
)
@pytest.mark.req("FR-016")
def test_torchrun_takes_none_of_our_flags_for_its_own(verb: str, config: Any) -> None:
    """Python 3.11 looks for torchrun's abbreviations behind -m nanochat too, and refuses those that
    could be two of its flags."""
    flags = [flag for flag in flags_of(config) if flag != "--run"]
    if "--run" in flags_of(config):
        flags.append("--run-name")
    for flag in flags:
        words = ["--nproc-per-node", "2", "-m", "nanochat", verb, flag, "1"]
        parsed = torchrun.parse_args(words)
        assert parsed.training_script_args == [verb, flag, "1"]
        assert (parsed.nproc_per_node, parsed.training_script) == ("2", "nanochat")
    with_dashes = ["--nproc-per-node", "2", "-m", "--", "nanochat", verb, "--run", "d12"]
    assert torchrun.parse_args(with_dashes).training_script_args[-2:] == ["--run", "d12"]


def test_run_has_a_name_that_torchrun_does_not_know() -> None:
    assert parse(PretrainConfig, ["--run-name", "d12"], prog="x").run == "d12"
    assert parse(PretrainConfig, ["--run", "d12"], prog="x").run == "d12"
    assert parse(SftConfig, ["d12", "--run-name", "other"], prog="x").run == "other"


def test_the_recipe_says_how_it_is_used() -> None:
    done = subprocess.run([str(SCRIPT), "0"], capture_output=True, text=True)
    assert done.returncode == 2 and "usage: " in done.stderr

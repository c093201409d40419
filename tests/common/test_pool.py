"""Results come in the order of the tasks, whoever works; nobody is left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nanochat.common.errors import ConfigError, DataError, NanochatError
from nanochat.common.pool import InTurn, Processes, num_cores, open_executor

pytestmark = pytest.mark.req("FR-032")


def slow_square(number: int) -> int:
    time.sleep(0.02 * (number % 3))
    return number * number


def fail_at_three(number: int) -> int:
    if number == 3:
        raise DataError("three, line 1: not JSON")
    return number


def own_pid(_: int) -> int:
    return os.getpid()


def end_at_once(number: int) -> int:
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_in_turn_is_this_process() -> None:
    executor = InTurn()
    assert list(executor.map(own_pid, [1, 2])) == [os.getpid()] * 2
    assert (executor.name, executor.num_workers) == ("1 process", 1)
    with pytest.raises(DataError, match="three"):
        list(executor.map(fail_at_three, range(5)))


def test_processes_keep_the_order_and_hand_on_errors() -> None:
    with Processes(2) as executor:
        assert executor.name == "2 processes"
        assert list(executor.map(slow_square, range(30))) == [n * n for n in range(30)]
        assert list(executor.map(own_pid, [])) == []
        others = set(executor.map(own_pid, range(4)))
        assert os.getpid() not in others and len(others) <= 2
        with pytest.raises(DataError, match="three, line 1: not JSON"):
            list(executor.map(fail_at_three, range(100)))
    with pytest.raises(ConfigError, match="workers is 0"):
        Processes(0)


def test_a_killed_process_is_told() -> None:
    with (
        pytest.raises(NanochatError, match="a process was killed"),
        Processes(1) as executor,
    ):
        list(executor.map(end_at_once, range(3)))


def test_who_works_is_as_asked_for() -> None:
    with open_executor(1, None) as executor:
        assert isinstance(executor, InTurn)
    with open_executor(3, None) as executor:
        assert isinstance(executor, Processes) and executor.num_workers == 3


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux alone ties to a processor")
def test_processors_that_may_not_be_used_are_not_counted() -> None:
    allowed = os.sched_getaffinity(0)
    assert num_cores() == len(allowed)
    try:
        os.sched_setaffinity(0, {min(allowed)})  # of this thread
        assert num_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


PARENT = """
import os, signal, sys, time
from nanochat.common.pool import Processes

def tell_and_wait(number):
    with open(sys.argv[1] if len(sys.argv) > 1 else os.environ["PIDS"], "a") as file:
        file.write(f"{os.getpid()}\\n")
    time.sleep(600)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    os.environ["PIDS"] = sys.argv[1]
    with Processes(2) as executor:
        list(executor.map(tell_and_wait, range(2)))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_processes_end_with_the_one_that_started_them(
    number: signal.Signals, tmp_path: Path
) -> None:
    script, told = tmp_path / "parent.py", tmp_path / "pids"
    script.write_text(PARENT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen(
        [sys.executable, str(script), str(told)], env=environment, stderr=subprocess.DEVNULL
    )
    try:
        pids = _awaited(told, 2)
        parent.send_signal(number)
        assert parent.wait(60) != 0
        end_s = time.monotonic() + 60
        while any(_is_alive(pid) for pid in pids):
            assert time.monotonic() < end_s, "a worker outlived its parent"
            time.sleep(0.05)
    finally:
        parent.kill()
        parent.wait()


def _awaited(path: Path, count: int) -> list[int]:
    end_s = time.monotonic() + 60
    while time.monotonic() < end_s:
        pids = path.read_text().split() if path.exists() else []
        if len(pids) == count:
            return [int(pid) for pid in pids]
        time.sleep(0.05)
    raise AssertionError("the workers did not begin")


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return not Path("/proc/self").exists()  # where there is no /proc, the signal says it
    return state != "Z"

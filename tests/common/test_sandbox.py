"""The sandbox: programs run, limits hold, what is missing is told, nothing is left behind."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanochat.common.errors import ConfigError, SandboxError
from nanochat.common.sandbox import (
    box,
    drivers,
    forkserver,
)
from nanochat.common.sandbox.box import Sandbox, run_program
from nanochat.common.sandbox.limits import SandboxLimits
from nanochat.common.sandbox.selftest import PROBES, SelfTest, Wall, self_test
from tests.common.attacks.attack import descendants
from tests.conftest import REPOSITORY
from tests.patience import wait_until
from tests.processes import is_alive

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the walls are Linux's")
pytestmark = pytest.mark.req("FR-040")


@pytest.fixture(scope="module", params=["linux", "landlock"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    if sys.platform != "linux":
        pytest.skip("the walls are Linux's")
    with Sandbox(request.param, unsafe=True) as opened:
        yield opened


# ------------------------------------------------------------------------- ordinary programs


def test_a_program_runs_to_its_end(sandbox: Sandbox) -> None:
    outcome = sandbox.run("import sys\nprint('out')\nprint('err', file=sys.stderr)")
    assert (outcome.status, outcome.exit_code) == ("finished", 0)
    assert (outcome.stdout, outcome.stderr) == ("out\n", "err\n")
    assert 0 < outcome.wall_s < 5 and outcome.cpu_s > 0 and outcome.max_rss_bytes > 1 << 20


def test_it_has_what_a_program_needs(sandbox: Sandbox) -> None:
    """Standard library, extension modules that were not loaded before, files, time, randomness."""
    outcome = sandbox.run(
        """
import array, base64, csv, hashlib, sqlite3, tempfile, unittest, uuid, zlib, statistics, pathlib
import dataclasses, doctest, os, random, shutil, sys, time
assert hashlib.sha256(b"x").hexdigest().startswith("2d71")
pathlib.Path("a").write_text("text \\u00e4")
shutil.copy("a", "b")
os.rename("b", "c")
assert sorted(os.listdir()) == ["a", "c"] and open("c").read() == "text \\u00e4"
with tempfile.TemporaryFile() as file:
    file.write(b"x")
os.remove("a")
open(os.devnull, "w").write("x")
time.sleep(0.01)
uuid.uuid4(), os.cpu_count(), random.random(), time.strftime("%Y")
assert sqlite3.connect(":memory:").execute("select 2 * 21").fetchone() == (42,)
@dataclasses.dataclass
class Point:
    x: int
assert __name__ == "__main__" and sys.modules["__main__"].Point is Point
assert sys.stdin.read() == "" and len(sys.argv) == 1
assert doctest.testmod().failed == 0
print("\\u00e4", len(os.environ))
""",
        SandboxLimits(wall_s=10),
    )
    assert outcome.stdout == "\u00e4 0\n", outcome


def test_programs_do_not_see_each_other(sandbox: Sandbox) -> None:
    sandbox.run(
        "open('left', 'w').write('x')\nimport builtins, math\nbuiltins.left = math.left = 1"
    )
    outcome = sandbox.run("import math, os\nprint(os.listdir(), hasattr(math, 'left'))\nleft")
    assert outcome.stdout == "[] False\n"
    assert outcome.detail == "NameError: name 'left' is not defined"


def test_verdicts_can_be_repeated(sandbox: Sandbox) -> None:
    """Sets of text have one order; random numbers are not repeated."""
    program = "import random\nprint(list({'a', 'b', 'c', 'd', 'e'}))\nprint(random.random())"
    first, second = (sandbox.run(program).stdout.split("\n") for _ in range(2))
    assert first[0] == second[0] and first[1] != second[1]


@pytest.mark.parametrize(
    ("program", "status", "detail"),
    [
        ("import sys; sys.exit()", "exited", "sys.exit(None)"),
        ("import sys; sys.exit('no')", "exited", "sys.exit('no')"),
        ("import os; os._exit(0)", "exited", "left with exit code 0"),
        ("import os; os._exit(7)", "exited", "left with exit code 7"),
        ("raise ValueError('no')", "raised", "ValueError: no"),
        ("raise ValueError", "raised", "ValueError"),
        ("class E(Exception):\n    def __str__(self): 1 / 0\nraise E", "raised", "E"),
        ("raise ValueError('\\ud800')", "raised", "ValueError: ?"),
        ("def", "raised", "SyntaxError: invalid syntax (<program>, line 1)"),
        ("import atexit\natexit.register(print, 'bye')", "finished", ""),
        ("import ctypes\nctypes.string_at(1)", "killed", "died of SIGSEGV"),
        ("import socket\nsocket.socket()", "forbidden", "PermissionError"),
    ],
)
def test_how_it_ended_is_told(sandbox: Sandbox, program: str, status: str, detail: str) -> None:
    outcome = sandbox.run(program)
    assert outcome.status == status, outcome
    assert outcome.detail.startswith(detail)


def test_a_traceback_shows_the_program_alone(sandbox: Sandbox) -> None:
    stderr = sandbox.run("def f():\n    1 / 0\nf()").stderr
    assert stderr.count("File") == 2 and "child.py" not in stderr
    assert 'File "<program>", line 2, in f' in stderr


def test_a_limit_is_a_number_above_zero() -> None:
    with pytest.raises(ConfigError, match="wall_s is -1, expected a number above 0"):
        SandboxLimits(wall_s=-1)
    assert SandboxLimits(wall_s=1.5).whole_cpu_s == 3
    assert SandboxLimits(cpu_s=9).whole_cpu_s == 9


def test_memory_time_and_descriptors_are_as_asked(sandbox: Sandbox) -> None:
    limits = SandboxLimits(wall_s=7, cpu_s=3, memory_bytes=99 << 20, num_descriptors=20)
    names = ("CPU", "AS", "NOFILE", "FSIZE", "CORE", "NPROC")
    show = "print([r.getrlimit(getattr(r, 'RLIMIT_' + name))[0] for name in names])"
    program = f"import resource as r\nnames = {names}\n{show}"
    assert sandbox.run(program, limits).stdout == f"[3, {99 << 20}, 20, {16 << 20}, 0, 0]\n"


# ------------------------------------------------------------------------- the process itself


@linux_only
def test_one_call_runs_one_program() -> None:
    assert run_program("print(6 * 7)", driver="landlock").stdout == "42\n"
    limits = SandboxLimits(wall_s=0.2)
    assert run_program("while True: pass", limits=limits, unsafe=True).status == "timeout"


@linux_only
def test_nothing_is_left_when_it_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(box.tempfile, "tempdir", str(tmp_path))
    for driver in ("linux", "landlock"):
        with Sandbox(driver, unsafe=True) as opened:  # type: ignore[arg-type]
            opened.run("open('x', 'w')")
            assert opened._server is not None
            processes = {opened._server.pid, *descendants(opened._server.pid)}
        wait_until(lambda processes=processes: not any(map(is_alive, processes)))
        assert list(tmp_path.iterdir()) == []
        opened.close()  # twice does no harm


@linux_only
def test_it_ends_with_the_process_that_opened_it() -> None:
    program = (
        "from nanochat.common.sandbox.box import Sandbox; import os, sys\n"
        "s = Sandbox(unsafe=True); s.run(''); print(s._server.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    wait_until(lambda: not is_alive(int(done.stdout)))


def test_a_killed_server_is_told_and_replaced(sandbox: Sandbox) -> None:
    sandbox.run("")
    assert sandbox._server is not None
    sandbox._server.kill()
    sandbox._server.wait()
    with pytest.raises(SandboxError, match="the next program starts another one"):
        sandbox.run("print(1)")
    assert sandbox.run("print(1)").stdout == "1\n"


def test_a_server_that_does_not_reply_is_killed(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox.run("")
    assert sandbox._server is not None
    stuck = [sandbox._server.pid, *descendants(sandbox._server.pid)]
    for pid in stuck:
        with contextlib.suppress(ProcessLookupError):  # what it ran may have gone meanwhile
            os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr(box, "REPLY_S", 0.1)
    with pytest.raises(SandboxError, match="no reply within"):
        sandbox.run("", SandboxLimits(wall_s=0.1))
    monkeypatch.undo()
    for pid in stuck:  # also without namespaces, where the kernel does not do it
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    assert sandbox.run("print(1)").stdout == "1\n"


def test_threads_take_turns(sandbox: Sandbox) -> None:
    printed: dict[int, str] = {}

    def work(number: int) -> None:
        printed[number] = sandbox.run(f"print({number})").stdout

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert printed == {number: f"{number}\n" for number in range(4)}


def test_the_sandbox_says_what_it_is_made_of(sandbox: Sandbox) -> None:
    sandbox.run("")
    assert "Landlock" in " ".join(sandbox.notes)


@linux_only
def test_without_walls_what_a_program_started_ends_with_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`unsafe` where the kernel has nothing: even then no process stays."""
    boot = forkserver.BOOT.replace(
        "main(sys.argv[2])",
        "from nanochat.common.sandbox import landlock, seccomp, walls; "
        "seccomp.install = landlock.restrict = walls._limit = lambda *a: None; main(sys.argv[2])",
    )
    monkeypatch.setattr(drivers, "BOOT", boot)
    program = (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        "        os.closerange(0, 99)\n        time.sleep(1000)\n    os._exit(0)\ntime.sleep(0.1)"
    )
    with Sandbox("landlock", unsafe=True) as opened:
        assert opened.run(program).status == "finished"
        assert opened._server is not None
        wait_until(lambda: not descendants(opened._server.pid))
    assert shutil.which("sleep")


# ------------------------------------------------------------------------- the self-test


@linux_only
@pytest.mark.parametrize("driver", ["auto", "landlock"])
def test_every_wall_holds(driver: drivers.Driver) -> None:
    found = self_test(driver)
    assert [wall for wall in found.walls if not wall.holds] == []
    assert len(found.walls) == len(PROBES) + 1
    assert found.holds
    found.demand()


BREAKS = {
    "seccomp.install = lambda *a: None": "no dangerous system call",
    "landlock.restrict = lambda *a: None": "files outside cannot be read",
    "walls._limit = lambda *a: None": "memory limit",
    "watch._keep_only = lambda ends, kept: (os.dup2(ends['stdout'], 1))": "no inherited descriptor",
    "folders.is_over = lambda *a: False": "number of files limit",
    "forkserver.os.environ.clear = lambda: None": "no environment",
    # Linux 5.19, taken for one that guards truncation
    "landlock.abi = lambda: 2; landlock.TRUNCATE_ABI = 2": "files outside cannot be emptied",
}


@linux_only
@pytest.mark.parametrize("version", [1, 2])
def test_every_wall_holds_on_an_older_kernel_too(
    version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that knows fewer rights: what it does not guard, seccomp refuses."""
    boot = forkserver.BOOT.replace(
        "main(sys.argv[2])",
        f"from nanochat.common.sandbox import landlock; landlock.abi = lambda: {version}; "
        "main(sys.argv[2])",
    )
    monkeypatch.setattr(drivers, "BOOT", boot)
    found = self_test("landlock")
    assert f"Landlock ABI {version}" in found.notes
    assert [wall for wall in found.walls if not wall.holds] == []


@linux_only
@pytest.mark.parametrize("taken_down", BREAKS)
def test_a_wall_that_is_down_is_found(taken_down: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is started with one wall taken down: the self-test notices, and nothing is run."""
    boot = forkserver.BOOT.replace(
        "main(sys.argv[2])",
        "import os; from nanochat.common.sandbox import folders, forkserver, landlock, seccomp, "
        f"walls, watch; {taken_down}; main(sys.argv[2])",
    )
    monkeypatch.setattr(drivers, "BOOT", boot)
    environment = {"PYTHONHASHSEED": "0", "HOME": "somewhere"}
    monkeypatch.setattr(drivers, "environment", lambda driver: environment)
    with pytest.raises(SandboxError, match="do not hold: .*" + BREAKS[taken_down]) as caught:
        Sandbox("landlock")
    assert "--unsafe-code" in str(caught.value)


def test_a_self_test_demands_every_wall() -> None:
    fine, broken = Wall("no network", True, "raised"), Wall("no thread", False, "finished")
    SelfTest("linux", (fine,), ()).demand()
    with pytest.raises(SandboxError, match=r"do not hold: no thread \(finished\)\.  no Landlock"):
        SelfTest("linux", (fine, broken), ("no Landlock",)).demand()


# ------------------------------------------------------------------------- drivers


def test_a_driver_that_is_not_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drivers.shutil, "which", lambda name: None)
    with pytest.raises(SandboxError, match="bwrap is not installed"):
        Sandbox("bubblewrap")
    with pytest.raises(SandboxError, match="neither podman nor docker is installed"):
        Sandbox("container")
    with pytest.raises(SandboxError, match="driver is 'jail', expected one of auto, linux"):
        Sandbox("jail")  # type: ignore[arg-type]


def test_elsewhere_than_on_linux_code_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drivers.sys, "platform", "darwin")
    with pytest.raises(SandboxError, match="the walls are Linux's, this is darwin.*container"):
        drivers.resolve("auto", unsafe=False)
    assert drivers.resolve("auto", unsafe=True) == "linux"


SETTINGS = forkserver.ServerSettings(scratch="/tmp/x", user=7, has_room=True, is_strict=True)


def test_drivers_start_the_same_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for driver in ("linux", "landlock", "bubblewrap", "container"):
        start = drivers.start(driver, SETTINGS)  # type: ignore[arg-type]
        assert json.loads(start.command[-1]) == dataclasses.asdict(start.settings)
        assert start.command[-3] == forkserver.BOOT
    bubble = drivers.start("bubblewrap", SETTINGS)
    assert {"--unshare-all", "--cap-drop", "--die-with-parent"} <= set(bubble.command)
    assert (bubble.settings.has_room, bubble.settings.user) == (False, None)
    container = drivers.start("container", SETTINGS, "an-image")
    assert {"--read-only", "none", "no-new-privileges", "an-image"} <= set(container.command)
    assert container.command[container.command.index("--env") + 1] == "PYTHONHASHSEED=0"
    name = container.command[container.command.index("--name") + 1]
    assert container.end[1:] == ["rm", "--force", name]


ENGINE = """#!{python}
import os, subprocess, sys
words = sys.argv[1:]
with open({log!r}, "a") as log:
    log.write(" ".join(words[:2]) + " " + words[-1][-40:] + "\\n")
    log.write(os.environ.get("DOCKER_HOST", "nowhere") + "\\n")
if words[:2] == ["image", "inspect"]:
    sys.exit(not os.path.exists({pulled!r}))
if words[0] == "pull":
    sys.exit("no such image") if words[1] == "absent" else open({pulled!r}, "w").close()
if words[0] == "run":  # a container that does not end when its command does
    stuck = words.index("python")
    inside = [{python!r}, *words[stuck + 1 : -2], {root!r}, words[-1]]
    print(subprocess.Popen(inside).wait(), file=sys.stderr)
    while True:
        os.read(os.pipe()[0], 1)
"""


@linux_only
def test_an_image_is_fetched_first_and_a_container_that_is_stuck_is_ended_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log, pulled = tmp_path / "log", tmp_path / "pulled"
    engine = tmp_path / "docker"
    engine.write_text(
        ENGINE.format(python=sys.executable, log=str(log), pulled=str(pulled), root=str(REPOSITORY))
    )
    engine.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("DOCKER_HOST", "tcp://there")
    with pytest.raises(SandboxError, match="docker pull absent failed.*--sandbox-image"):
        Sandbox("container", unsafe=True, image="absent").run("")
    with Sandbox("container", unsafe=True, image="one") as opened:
        assert opened.run("print(6 * 7)").stdout == "42\n"
    said = log.read_text().splitlines()[::2]
    assert [line.split()[0] for line in said] == ["image", "pull", "image", "pull", "run", "rm"]
    assert said[-1].startswith("rm --force nanochat-sandbox-")
    assert set(log.read_text().splitlines()[1::2]) == {"tcp://there"}


@linux_only
def test_bubblewrap_ends_with_the_process_that_opened_it_even_if_all_inside_is_stopped() -> None:
    if why := drivers.absent("bubblewrap"):
        pytest.skip(why)
    program = (
        "from nanochat.common.sandbox.box import Sandbox; import os\n"
        "from tests.common.attacks.attack import descendants\n"
        "s = Sandbox('bubblewrap', unsafe=True); s.run('')\n"
        "inside = [s._server.pid, *descendants(s._server.pid)]\n"
        "for pid in inside[1:]:\n"
        "    try: os.kill(pid, 19)\n"
        "    except ProcessLookupError: pass\n"  # what it ran may have gone meanwhile
        "print(*inside, flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=False, cwd=REPOSITORY
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    wait_until(lambda: not any(is_alive(int(pid)) for pid in done.stdout.split()))


@pytest.mark.parametrize("driver", ["bubblewrap", "container"])
def test_another_driver_holds_too(driver: drivers.Driver) -> None:
    if why := drivers.absent(driver):
        pytest.skip(why)
    if driver == "container":
        engine = drivers._engine() or ""
        here = subprocess.run([engine, "image", "inspect", drivers.IMAGE], capture_output=True)
        if here.returncode != 0:
            pytest.skip(f"{engine} does not run here, or lacks the image {drivers.IMAGE}")
    assert [wall for wall in self_test(driver).walls if not wall.holds] == []

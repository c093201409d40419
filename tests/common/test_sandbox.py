"""The sandbox: programs run, limits hold, what is missing is told, nothing is left behind."""

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nanochat.common.errors import ConfigError, SandboxError
from nanochat.common.sandbox import (
    box,
    child,
    drivers,
    folders,
    forkserver,
    frames,
    kernel,
    landlock,
    plain,
    seccomp,
    walls,
)
from nanochat.common.sandbox.box import Sandbox, run_program
from nanochat.common.sandbox.child import Checks, ProgramEnded
from nanochat.common.sandbox.ending import Process, outcome_of, printable, report_of
from nanochat.common.sandbox.limits import Outcome, SandboxLimits
from nanochat.common.sandbox.numbers import ALLOWED, ARCHITECTURES, DEADLY, NUMBERS, PRETENDED
from nanochat.common.sandbox.selftest import PROBES, SelfTest, Wall, self_test
from tests.common.bpf import decide
from tests.common.sandbox_attacks import descendants

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
        assert not any(os.path.exists(f"/proc/{pid}") for pid in processes)
        assert list(tmp_path.iterdir()) == []
        opened.close()  # twice does no harm


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@linux_only
def test_it_ends_with_the_process_that_opened_it() -> None:
    program = (
        "from nanochat.common.sandbox.box import Sandbox; import os, sys\n"
        "s = Sandbox(unsafe=True); s.run(''); print(s._server.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    pid, until_s = int(done.stdout), time.monotonic() + 10
    while is_alive(pid) and time.monotonic() < until_s:
        time.sleep(0.01)
    assert not is_alive(pid)


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
}


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
    monkeypatch.setattr(box, "_environment", lambda driver: environment)
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
    assert {"--unshare-all", "--cap-drop"} <= set(bubble.command)
    assert (bubble.settings.has_room, bubble.settings.user) == (False, None)
    container = drivers.start("container", SETTINGS, "an-image").command
    assert {"--read-only", "none", "no-new-privileges", "an-image"} <= set(container)


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


# ------------------------------------------------------------------------- walls by themselves

ALLOW, KILL, PRETEND, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x50000, 0x50001, 0x50026


@pytest.mark.parametrize("machine", sorted(NUMBERS))
def test_the_filter_decides_as_its_lists_say(machine: str) -> None:
    program, arch, numbers = (
        seccomp.filter_program(machine),
        ARCHITECTURES[machine],
        NUMBERS[machine],
    )

    def action(name: str, *arguments: int) -> int:
        return decide(program, arch, numbers[name], *arguments)

    special = {"fcntl", "ioctl", "prlimit64", "clone3"}
    for number in range(600):
        names = [name for name, known in numbers.items() if known == number and name not in special]
        wanted = EPERM
        if names:
            lists = {ALLOW: ALLOWED, KILL: DEADLY, PRETEND: PRETENDED}
            wanted = next((action for action, of in lists.items() if names[0] in of), EPERM)
        if not names and number in (numbers[name] for name in special):
            continue
        assert decide(program, arch, number) == wanted, (number, names)
    assert action("clone3") == ENOSYS
    assert action("fcntl", 0, 1) == action("fcntl", 0, 1030) == ALLOW
    assert action("fcntl", 0, 8) == action("fcntl", 0, 15) == EPERM  # F_SETOWN, F_SETOWN_EX
    assert action("ioctl", 0, 0x5401) == action("ioctl", 0, 0x5401 | 1 << 32) == ALLOW
    assert action("ioctl", 0, 0x5412) == EPERM  # TIOCSTI
    assert action("prlimit64", 0, 9, 0, 1) == ALLOW
    assert action("prlimit64", 1, 9, 0, 1) == action("prlimit64", 0, 9, 1 << 40, 0) == EPERM
    assert decide(program, arch, numbers["read"] + 0x40000000) == KILL
    assert decide(program, 0x40000003, numbers["read"]) == KILL  # 32-bit x86
    assert len(program) // 8 < 4096  # the kernel takes no longer one


def test_lists_of_calls_are_apart_and_known() -> None:
    assert not set(ALLOWED) & set(DEADLY)
    for name in (
        "clone",
        "fork",
        "execve",
        "socket",
        "kill",
        "setxattr",
        "symlink",
        "io_uring_setup",
    ):
        assert name not in ALLOWED
    assert set(ALLOWED) | set(DEADLY) <= set(NUMBERS["x86_64"])
    with pytest.raises(OSError, match="no list of system calls for sparc"):
        seccomp.install("sparc")


def in_a_child(body: Callable[[], object]) -> int:
    """The exit code of a process that runs this: 0, or 1 if it raised."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            body()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@linux_only
def test_landlock_alone_keeps_files_away(tmp_path: Path) -> None:
    if not landlock.abi():
        pytest.skip("the kernel has no Landlock")
    (tmp_path / "shown").mkdir()
    (tmp_path / "shown" / "file").write_text("x")
    (tmp_path / "hidden").write_text("x")

    def body() -> None:
        kernel.prctl("NO_NEW_PRIVS", 1)
        landlock.restrict([str(tmp_path / "shown"), "/does/not/exist"], [os.devnull])
        assert (tmp_path / "shown" / "file").read_text() == "x"
        for act in (
            lambda: (tmp_path / "hidden").read_text(),
            lambda: (tmp_path / "shown" / "file").write_text("y"),
            lambda: (tmp_path / "shown" / "new").touch(),
        ):
            with pytest.raises(PermissionError):
                act()
        Path(os.devnull).write_text("x")

    assert in_a_child(body) == 0
    assert (tmp_path / "shown" / "file").read_text() == "x"


@linux_only
def test_walls_stand_in_their_order(tmp_path: Path) -> None:
    parent = os.getpid()
    fence = walls.Walls(
        limits=SandboxLimits(),
        readable=("/usr/lib",),
        folder=str(tmp_path),
        can_write=True,
        user=None,
        is_strict=True,
    )

    def body() -> None:
        walls.put_up(fence, parent)
        Path("mine").write_text("x")
        with pytest.raises(PermissionError):
            os.fork()

    assert in_a_child(body) == 0
    assert (tmp_path / "mine").read_text() == "x"
    # A parent that is gone meanwhile: the child does not go on alone.
    assert in_a_child(lambda: walls.put_up(fence, parent + 1)) == 1


@linux_only
def test_a_wall_that_cannot_be_put_up_keeps_the_program_from_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise OSError(errno.ENOSYS, "no seccomp here")

    monkeypatch.setattr(walls.seccomp, "install", refuse)
    fence = walls.Walls(
        limits=SandboxLimits(),
        readable=(),
        folder=str(tmp_path),
        can_write=True,
        user=None,
        is_strict=True,
    )
    parent = os.getpid()
    assert in_a_child(lambda: walls.put_up(fence, parent)) == 1
    loose = dataclasses.replace(fence, is_strict=False)
    assert in_a_child(lambda: walls.put_up(loose, parent)) == 0


@linux_only
def test_the_kernels_refusal_is_an_error() -> None:
    assert kernel.call("getpid") == os.getpid()
    with pytest.raises(OSError, match="close") as caught:
        kernel.call("close", -1)
    assert caught.value.errno == errno.EBADF
    with pytest.raises(OSError, match="the C library has no never_heard_of"):
        kernel.call("never_heard_of")
    assert kernel.prctl("DUMPABLE", 1) == 0
    assert kernel.MACHINE and set(kernel.PRCTL) > {"SECCOMP"}


def test_an_interpreter_in_a_closed_folder_is_noticed(tmp_path: Path) -> None:
    assert forkserver.is_open_to_others("/usr")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    assert not forkserver.is_open_to_others(str(closed / ".." / "closed"))
    assert any("python" in path for path in forkserver.readable_paths())


# ------------------------------------------------------------------------- folders


def test_a_folder_is_measured(tmp_path: Path) -> None:
    limits = SandboxLimits(disk_bytes=100_000, num_files=10)
    assert not folders.is_over(str(tmp_path), limits)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(bytes(200_000))
    assert folders.is_over(str(tmp_path), limits)
    (tmp_path / "a" / "b").unlink()
    for number in range(10):
        (tmp_path / "a" / str(number)).touch()
    assert folders.is_over(str(tmp_path), limits)


def test_a_private_folder_is_gone_however_deep(tmp_path: Path) -> None:
    here = os.getcwd()
    limits = SandboxLimits()
    with folders.private(str(tmp_path), False, None, limits) as folder:
        os.chdir(folder)
        try:
            for _ in range(400):  # its path is longer than the kernel takes
                os.mkdir("d" * 20)
                os.chdir("d" * 20)
            Path("file").touch()
            os.symlink("/etc", "link")
            os.chmod(".", 0)
        finally:
            os.chdir(here)
        assert not folders.is_over(folder, limits)
    assert list(tmp_path.iterdir()) == []
    folder = tmp_path / "again"
    folder.mkdir()
    folders.remove(str(folder))
    assert not folder.exists()


# ------------------------------------------------------------------------- messages


def test_messages_pass_whole() -> None:
    read_end, write_end = os.pipe()
    frames.write_json(write_end, {"a": [1, "\u00e4"]})
    frames.write_frame(write_end, b"")
    assert frames.read_json(read_end) == {"a": [1, "\u00e4"]}
    assert frames.read_frame(read_end) == b""
    os.write(write_end, b"\0\0\0\5abc")
    os.close(write_end)
    assert frames.read_frame(read_end) is None  # cut off
    assert frames.read_json(read_end) is None
    os.close(read_end)


def test_a_message_too_long_is_not_read() -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, b"\xff\xff\xff\xff")
    with pytest.raises(ValueError, match="a message of 4294967295 bytes, expected at most"):
        frames.read_frame(read_end)
    with pytest.raises(ValueError, match="expected at most"):
        frames.write_frame(write_end, bytes(frames.MOST_BYTES + 1))
    os.close(read_end)
    with pytest.raises(BrokenPipeError):
        frames.write_frame(write_end, b"x")
    os.close(write_end)


class Sly(int):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__


def test_values_arrive_as_pythons_own() -> None:
    for value in (Sly(3), [Sly(3)], {"a": Sly(3)}, {Sly(3)}, (Sly(3),)):
        again = plain.decode(plain.encode(value))
        assert again != 4 and "Sly" not in repr(again)
        assert type(again) in (int, list, dict, set, tuple)
    assert type(plain.decode(plain.encode(Sly(3)))) is int
    assert list(plain.decode(plain.encode(iter([1, 2])))) == [1, 2]
    opaque = plain.decode(plain.encode(object()))
    assert isinstance(opaque, plain.Opaque) and opaque != object() and opaque.type_name == "object"
    assert repr(opaque) == "<object, which is not plain data>"


@pytest.mark.parametrize(
    "text",
    [b"", b"{}", b'{"a": 1}', b'{"int": 1}', b'{"int": "x"}', b'{"set": [[]]}', b'{"dict": [1]}',
     b'{"dict": [[[], 1]]}', b'{"tuple": 1}', b'{"bytes": "x"}', b'{"complex": []}',
     b'{"range": ["a"]}', b'{"set": [], "list": []}', b"9" * 5000, b"\xff",
     b'{"complex": [1e999, 9' + b"9" * 400 + b"]}"],
)  # fmt: skip
def test_what_is_no_answer_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError):
        plain.decode(text)


def test_a_value_nested_too_deep_is_refused() -> None:
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(RecursionError):
        plain.encode(deep)
    with pytest.raises(RecursionError):
        plain.decode(b"[" * 100_000 + b"]" * 100_000)


# ------------------------------------------------------------------------- children, in process


def test_names_are_found_inside_functions() -> None:
    code = compile("def f():\n    return [g(x) for x in h]\nclass A:\n    y = i", "x", "exec")
    assert {"g", "h", "i", "f", "A"} <= child.names_loaded(code)


def converse(source: str, checks: Checks) -> tuple[dict[str, str], str]:
    """What the checks report, and the verdict: both halves without processes or walls."""
    to_program, from_program, report, verdict = (os.pipe() for _ in range(4))

    def serve() -> None:
        child.answer(source, to_program[0], from_program[1], os.open(os.devnull, os.O_WRONLY))
        os.close(from_program[1])  # as its end would

    main_module, serving = sys.modules["__main__"], threading.Thread(target=serve)
    serving.start()
    child.check(checks, child.Asked(to_program[1], from_program[0]), report[1], verdict[1])
    os.close(to_program[1])
    serving.join()
    sys.modules["__main__"] = main_module
    os.close(verdict[1])
    try:
        return frames.read_json(report[0]), os.read(verdict[0], 100).decode()
    finally:
        for descriptor in (to_program[0], from_program[0], *report, verdict[0]):
            os.close(descriptor)


@pytest.mark.parametrize(
    ("source", "tests", "reason"),
    [
        ("def f(x): return x + 1", "assert f(1) == 2", "passed"),
        ("def f(x): return given(x)", "assert f(1) == given(1)", "exception"),
        ("def f(x): return x", "assert f(1) == given(0)", "passed"),
        ("def f(x): return x", "assert f(1) == 2", "wrong"),
        ("def f(x): return x.y", "f(1)", "exception"),
        ("def f(x): raise UnicodeDecodeError('utf-8', b'', 0, 1, 'no')", "f(1)", "exception"),
        ("def f(x): raise MemoryError", "f(1)", "memory"),
        ("def f(x): raise PermissionError", "f(1)", "forbidden"),
        ("def f(x): raise SystemExit", "f(1)", "exited"),
        ("def f(x): raise SystemExit", "try:\n    f(1)\nexcept:\n    pass", "exited"),
        ("def f(x): raise SystemExit", "try:\n    f(1)\nexcept:\n    f(2)", "exited"),
        ("def f(", "f(1)", "syntax"),
        ("raise SystemExit", "f(1)", "exited"),
        ("g = 1", "f(1)", "exception"),
        ("def f(x): return x", "f(", "checks"),
    ],
)
def test_checks_ask_and_the_program_answers(source: str, tests: str, reason: str) -> None:
    prelude = "def given(x): return x + 1"
    checks = Checks(tests=tests, entry_point="f", prelude=prelude, nonce="a nonce")
    report, verdict = converse(source, checks)
    assert report["reason"] == reason, report
    assert verdict == ("a nonce" if reason == "passed" else "")


@pytest.mark.parametrize("said", [b"", b"[]", b'{"ready": 1}', b'{"raised": 1}', b"{}"])
def test_a_program_that_says_something_else_has_not_passed(said: bytes) -> None:
    answers = os.pipe()
    frames.write_frame(answers[1], said)
    os.close(answers[1])
    questions = os.open(os.devnull, os.O_WRONLY)
    asked = child.Asked(questions, answers[0])
    try:
        with pytest.raises((ProgramEnded, ValueError)):
            asked.names()
            asked.function("f")(1)
            raise AssertionError("it was answered")
        if asked.ended:
            with pytest.raises(ProgramEnded):
                asked.function("f")(1)
    finally:
        os.close(questions)
        os.close(answers[0])


def test_a_program_reports_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child.atexit, "_run_exitfuncs", lambda: None)
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    for source, code, end in (
        ("x = 1", 0, "finished"),
        ("raise SystemExit(3)", 3, "exited"),
        ("raise SystemExit('no')", 1, "exited"),
        ("1 / 0", 1, "raised"),
    ):
        read_end, write_end = os.pipe()
        assert child.run(source, write_end) == code
        assert frames.read_json(read_end)["end"] == end
        os.close(read_end)
        os.close(write_end)


def ended(wait_status: int, report: bytes = b"", **more: object) -> Process:
    written = {"stdout": bytearray(), "stderr": bytearray(b"\xff"), "report": bytearray(report)}
    return Process(1, {}, {}, 0.0, written, ending=(wait_status, 0.5, 1), **more)  # type: ignore[arg-type]


def test_an_ending_is_read_with_care() -> None:
    """A report may be anything: the program can write to its pipe."""
    for report in (b"", b"1234", b"1234[]", b"1234{", b"1234" + b"[" * 100_000, b"\xff" * 99):
        assert report_of(ended(0, report)) == {}
        assert outcome_of(ended(0, report)).status == "exited"
    assert outcome_of(ended(0, b'1234{"end": "finished"}')).status == "finished"
    assert outcome_of(ended(256, b'1234{"end": "finished"}')).status == "exited"
    assert outcome_of(ended(0, b'1234{"end": {"a": 1}, "detail": [1]}')).status == "exited"
    assert outcome_of(ended(9)).detail == "CPU time ran out (SIGKILL)"
    assert outcome_of(ended(31)).status == "forbidden"
    assert outcome_of(ended(40)).detail == "died of SIGRT_6" or outcome_of(ended(40))
    assert outcome_of(ended(9, stopped="disk")).status == "disk"
    assert outcome_of(ended(9, stopped="finished")).status == "finished"
    assert outcome_of(ended(0)).stderr == "\ufffd"


def test_half_a_character_can_be_printed() -> None:
    assert printable("a\ud800\u00e4") == "a?\u00e4"


def test_an_outcome_is_read_back() -> None:
    outcome = Outcome(status="raised", detail="x", exit_code=1)
    assert Outcome.from_json(dataclasses.asdict(outcome)) == outcome
    with pytest.raises(ValueError, match="status 'well'"):
        Outcome.from_json({"status": "well"})
    with pytest.raises(TypeError):
        Outcome.from_json({"status": "raised", "more": 1})


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
        until_s = time.monotonic() + 5
        while (left := descendants(opened._server.pid)) and time.monotonic() < until_s:
            time.sleep(0.001)
        assert left == set()
    assert shutil.which("sleep")

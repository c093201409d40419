"""The sandbox's walls and folders, each by itself."""

import dataclasses
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nanochat.common.sandbox import (
    folders,
    forkserver,
    kernel,
    landlock,
    seccomp,
    walls,
)
from nanochat.common.sandbox.limits import SandboxLimits
from nanochat.common.sandbox.numbers import ALLOWED, ARCHITECTURES, DEADLY, NUMBERS, PRETENDED
from tests.common.bpf import decide

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the walls are Linux's")
pytestmark = pytest.mark.req("FR-040")


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


@pytest.mark.parametrize("machine", sorted(NUMBERS))
def test_files_are_emptied_by_path_only_where_landlock_is_asked(machine: str) -> None:
    """Below its ABI 3 nobody asks Landlock about truncate, nor about O_TRUNC without writing."""
    numbers, arch = NUMBERS[machine], ARCHITECTURES[machine]

    def action(guards: bool, name: str, *arguments: int) -> int:
        program = seccomp.filter_program(machine, guards)
        return decide(program, arch, numbers[name], *arguments)

    assert action(False, "truncate") == EPERM and action(True, "truncate") == ALLOW
    assert action(False, "ftruncate") == ALLOW
    for name, before in (("open", (0,)), ("openat", (0, 0))):
        if name not in numbers:
            continue
        for flags in range(4):  # read, write, both, and 3: neither, for ioctl
            assert action(False, name, *before, flags) == ALLOW
            is_written = flags in (1, 2)
            for more in (os.O_TRUNC, os.O_TRUNC | os.O_CREAT | os.O_CLOEXEC):
                wanted = ALLOW if is_written else EPERM
                assert action(False, name, *before, flags | more) == wanted, (name, flags)
                assert action(True, name, *before, flags | more) == ALLOW


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
    def refuse(*_: object) -> None:
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

"""Programs that want out.   in: nothing   out: Attack, and what stands outside to be attacked
who calls: the lists beside this file, tests/common/test_sandbox_attacks.py

Each program knows more than a real one could: where the secret lies, whom to kill, the ports.  It
prints GOT where it believes to have got through.  What counts is looked at outside afterwards.
"""

import dataclasses
import os
import platform
import resource
import secrets
import select
import socket
import subprocess
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat.common.sandbox.box import Sandbox
from nanochat.common.sandbox.limits import Outcome, SandboxLimits
from nanochat.common.sandbox.numbers import NUMBERS
from tests.conftest import REPOSITORY

__all__ = [
    "HURRIED",
    "LIMITS",
    "MARK",
    "Attack",
    "Outside",
    "attack",
    "descendants",
    "gets",
    "laid_out",
    "run",
]

LIMITS = SandboxLimits(
    wall_s=2.0,
    cpu_s=1,
    memory_bytes=128 << 20,
    disk_bytes=2 << 20,
    num_files=100,
    num_descriptors=32,
    output_bytes=1 << 16,
)
HURRIED = SandboxLimits(wall_s=0.4, memory_bytes=128 << 20, output_bytes=1 << 16)
CALLS = NUMBERS["aarch64" if platform.machine() in ("aarch64", "arm64") else "x86_64"]


@dataclass(frozen=True)
class Attack:
    """One program."""

    name: str
    program: str
    limits: SandboxLimits = LIMITS
    must_not_print: str = "GOT"
    status: str = ""
    """How it must end; empty: in any way."""
    works_openly: bool = False
    """Harmless enough to be run without walls, where it must get through: the check can fail."""


@dataclass(frozen=True)
class Outside:
    """What is laid out, and how it looked before."""

    folder: Path
    secret: str
    victim: "subprocess.Popen[bytes]"
    tcp: socket.socket
    udp: socket.socket
    unix: socket.socket
    abstract: socket.socket

    def preamble(self) -> str:
        """What every attack knows."""
        values = {
            "FOLDER": str(self.folder),
            "SECRET": str(self.folder / "secret"),
            "PROJECT": str(REPOSITORY),
            "HOME": os.path.expanduser("~"),
            "VICTIM": self.victim.pid,
            "PARENT": os.getpid(),
            "TCP": self.tcp.getsockname(),
            "UDP": self.udp.getsockname(),
            "UNIX": self.unix.getsockname(),
            "ABSTRACT": self.abstract.getsockname(),
            "CALL": CALLS,
        }
        imports = "import ctypes, os, signal, socket, sys, time\n"
        tools = "libc = ctypes.CDLL(None, use_errno=True)\n"
        tools += "def call(name, *a): return libc.syscall(CALL.get(name, name), *a)\n"
        return imports + "".join(f"{name} = {value!r}\n" for name, value in values.items()) + tools

    def damage(self, output: str) -> list[str]:
        """What an attack has done, seen from outside."""
        found = []
        if self.secret in output:
            found.append("the secret was read")
        if any(name in output for name in os.listdir(self.folder) if name.startswith("hidden")):
            found.append("a folder was listed")
        found += [f"folder: {line}" for line in self._folder_differences()]
        found += [f"victim: {line}" for line in self._victim_differences()]
        for name in ("tcp", "unix", "abstract", "udp"):
            if select.select([getattr(self, name)], [], [], 0)[0]:
                found.append(f"somebody reached the {name} socket")
        found += [f"{path} exists" for path in ESCAPED if os.path.lexists(path)]
        return found

    def _folder_differences(self) -> list[str]:
        wanted = {"secret", "unix", next(n for n in os.listdir(self.folder) if n[:6] == "hidden")}
        differences = sorted(set(os.listdir(self.folder)) ^ wanted)
        path = self.folder / "secret"
        if not path.is_file() or path.read_text() != self.secret:
            return [*differences, "the secret was changed"]
        state = path.stat()
        if (state.st_mode & 0o7777, state.st_mtime, state.st_nlink) != (0o666, 1e9, 1):
            differences.append("mode, time or links of the secret were changed")
        if os.listxattr(path):
            differences.append("an attribute was set")
        return differences

    def _victim_differences(self) -> list[str]:
        if self.victim.poll() is not None:
            return [f"ended with {self.victim.returncode}"]
        fields = Path(f"/proc/{self.victim.pid}/status").read_text()
        differences = []
        if "TracerPid:\t0" not in fields or "\nState:\tS" not in fields:
            differences.append("is traced or stopped")
        if resource.prlimit(self.victim.pid, resource.RLIMIT_NOFILE)[0] == 7:
            differences.append("its limits were changed")
        if os.getpriority(os.PRIO_PROCESS, self.victim.pid) != os.getpriority(os.PRIO_PROCESS, 0):
            differences.append("its priority was changed")
        return differences

    def repair(self) -> None:
        """As before, after an attack that was let through on purpose."""
        for name in os.listdir(self.folder):
            if name not in ("unix",) and not name.startswith("hidden"):
                (self.folder / name).unlink()
        _write_secret(self.folder, self.secret)
        for listener in (self.tcp, self.unix, self.abstract):
            while select.select([listener], [], [], 0)[0]:
                listener.accept()[0].close()
        while select.select([self.udp], [], [], 0)[0]:
            self.udp.recv(100)
        for path in ESCAPED:
            Path(path).unlink(missing_ok=True)


# Where an attack writes besides the folder outside; the name is nobody else's.
MARK = f"nanochat-escaped-{os.getpid()}"
ESCAPED = (f"/dev/shm/{MARK}", f"/tmp/{MARK}", f"/var/tmp/{MARK}")


def _write_secret(folder: Path, secret: str) -> None:
    path = folder / "secret"
    path.write_text(secret)
    path.chmod(0o666)
    os.utime(path, (1e9, 1e9))


@contextmanager
def laid_out(folder: Path) -> Iterator[Outside]:
    """Everything there is to attack; only walls keep anybody from it."""
    secret = secrets.token_hex(16)
    for directory in (folder, *list(folder.parents)[:2]):
        directory.chmod(0o777)
    _write_secret(folder, secret)
    (folder / f"hidden-{secrets.token_hex(8)}").touch()
    with ExitStack() as stack:
        sockets = []
        for family, kind, address in (
            (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
            (socket.AF_UNIX, socket.SOCK_STREAM, str(folder / "unix")),
            (socket.AF_UNIX, socket.SOCK_STREAM, f"\0{secrets.token_hex(8)}"),
        ):
            listener = stack.enter_context(socket.socket(family, kind))
            listener.bind(address)
            if kind == socket.SOCK_STREAM:
                listener.listen()
            sockets.append(listener)
        (folder / "unix").chmod(0o777)
        with open(folder / "secret") as opened:
            victim = subprocess.Popen(
                ["sleep", "1000"], stdin=opened, env={"SECRET": secret, "PATH": os.defpath}
            )
        try:
            yield Outside(folder, secret, victim, *sockets)
        finally:
            victim.kill()
            victim.wait()


def descendants(pid: int) -> set[int]:
    """The processes below a process."""
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        try:
            children = Path(f"/proc/{waiting[-1]}/task/{waiting.pop()}/children").read_text()
        except OSError:  # ended meanwhile
            continue
        waiting += (more := [int(child) for child in children.split()])
        found |= set(more)
    return found


def run(sandbox: Sandbox, tried: Attack, outside: Outside) -> tuple[Outcome, float]:
    """What became of an attack, and the seconds it took over its time."""
    limits = tried.limits
    if tried.status not in ("", "timeout"):  # on a busy machine it is to come to that all the same
        limits = dataclasses.replace(limits, wall_s=30.0)
    started_s = time.monotonic()
    outcome = sandbox.run(outside.preamble() + tried.program, limits)
    return outcome, time.monotonic() - started_s - limits.wall_s


def attack(name: str, program: str, **more: Any) -> Attack:
    """An attack, its program as it stands indented in a list."""
    return Attack(name, textwrap.dedent(program), **more)


def gets(name: str, expression: str, **more: Any) -> Attack:
    """Prints GOT if the expression, often a raw system call, gives 0 or more."""
    return Attack(name, f"if ({expression}) >= 0: print('GOT')\n", **more)

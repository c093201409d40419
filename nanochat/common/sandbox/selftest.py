"""Does each wall hold here?   in: a driver   out: a list of walls, from trying them
who calls: box.py (before anything else is run)

A wall is judged by its effect, not by what the kernel says it has: something is laid out outside
(a file, a folder, sockets that listen, this process), a program in a real sandbox goes for it, and
what is outside is looked at afterwards.  The CPU limit alone is read and not run into, since the
kernel counts whole seconds; the long form runs into it.
Read next: tests/common/attacks/ (the long form of this).
"""

import os
import secrets
import select
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from nanochat.common.errors import SandboxError
from nanochat.common.sandbox.drivers import IMAGE, Driver
from nanochat.common.sandbox.limits import Outcome, SandboxLimits

if TYPE_CHECKING:
    from nanochat.common.sandbox.box import Sandbox

__all__ = ["SelfTest", "Wall", "self_test"]

# Small, so that trying the limits takes no time.
LIMITS = SandboxLimits(
    wall_s=10.0,  # only a machine that is very busy needs it
    cpu_s=3,
    memory_bytes=128 << 20,
    disk_bytes=1 << 20,
    num_files=50,
    num_descriptors=32,
    output_bytes=1 << 16,
)
SHORT = SandboxLimits(wall_s=0.3)


class Wall(NamedTuple):
    """One wall, as it was found."""

    name: str
    holds: bool
    found: str
    """What came of trying it."""


@dataclass(frozen=True, slots=True)
class SelfTest:
    """All walls of a driver on this machine."""

    driver: Driver
    walls: tuple[Wall, ...]
    notes: tuple[str, ...]
    """What the sandbox is made of here."""

    @property
    def holds(self) -> bool:
        """Whether every wall does."""
        return all(wall.holds for wall in self.walls)

    def demand(self) -> None:
        """Nothing, where every wall holds.

        Raises: SandboxError naming those that do not.
        """
        broken = [f"{wall.name} ({wall.found})" for wall in self.walls if not wall.holds]
        if broken:
            raise SandboxError(
                f"a model's code is not run here, because with the driver {self.driver!r} these "
                f"walls do not hold: {', '.join(broken)}.  {'; '.join(self.notes)}.  Use another "
                "driver (bubblewrap, container), or --unsafe-code if you trust the model"
            )


@dataclass(frozen=True, slots=True)
class _Outside:
    """What is laid out for the probes."""

    folder: str
    token: str
    listeners: tuple[socket.socket, ...]
    addresses: tuple[Any, ...]
    """Of TCP, a Unix socket, an abstract one; of a kind that is not here, where it would be."""

    @property
    def written(self) -> str:
        return os.path.join(self.folder, "written")

    @property
    def precious(self) -> str:
        """A file that anybody may write."""
        return os.path.join(self.folder, "precious")

    def preamble(self) -> str:
        """What a probe knows; more than any real program could."""
        tcp, unix, abstract = self.addresses
        return (
            f"import os, socket, sys\nTOKEN = {self.token!r}\nFOLDER = {self.folder!r}\n"
            f"TCP, UNIX, ABSTRACT, PARENT = {tcp!r}, {unix!r}, {abstract!r}, {os.getpid()}\n"
        )

    def is_called(self) -> bool:
        """Whether somebody has connected."""
        return bool(select.select(self.listeners, [], [], 0)[0])


class _Probe(NamedTuple):
    name: str
    program: str
    limits: SandboxLimits = LIMITS
    is_broken: Callable[[Outcome, _Outside], bool] = lambda outcome, outside: (
        outside.token in outcome.stdout
    )


def self_test(driver: Driver = "auto", *, image: str = IMAGE) -> SelfTest:
    """Which walls hold on this machine; takes about half a second.

    Raises: SandboxError where the driver is not here at all, or does not start.
    """
    from nanochat.common.sandbox.box import Sandbox
    from nanochat.common.sandbox.drivers import resolve

    driver = resolve(driver, unsafe=False)
    with _laid_out() as outside, Sandbox(driver, unsafe=True, image=image) as sandbox:
        works = sandbox.run("print(6 * 7)", LIMITS)
        walls = [Wall("programs run", works.stdout == "42\n", works.status)]
        walls += [_tried(probe, sandbox, outside) for probe in PROBES]
        return SelfTest(driver, tuple(walls), sandbox.notes)


def _tried(probe: _Probe, sandbox: "Sandbox", outside: _Outside) -> Wall:
    outcome = sandbox.run(outside.preamble() + probe.program, probe.limits)
    is_broken = probe.is_broken(outcome, outside)
    found = f"{outcome.status} {outcome.detail}".strip()
    return Wall(probe.name, not is_broken, found)


@contextmanager
def _laid_out() -> Iterator[_Outside]:
    token = secrets.token_hex(16)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="nanochat-walls-"))
        os.chmod(folder, 0o777)  # only a wall may keep the program out
        for name in ("secret", "precious"):
            with open(os.path.join(folder, name), "w") as file:
                file.write(token)
        os.chmod(os.path.join(folder, "precious"), 0o666)  # again, only a wall
        listeners, addresses = [], []
        for family, address in (
            (socket.AF_INET, ("127.0.0.1", 0)),
            (socket.AF_UNIX, os.path.join(folder, "socket")),
            (socket.AF_UNIX, f"\0{token}"),
        ):
            listener = stack.enter_context(socket.socket(family))
            with suppress(
                OSError
            ):  # a container may have no loopback: then nobody is reached there
                listener.bind(address)
                listener.listen()
                listeners.append(listener)
                address = listener.getsockname()
            addresses.append(address)
        os.chmod(os.path.join(folder, "socket"), 0o777)
        yield _Outside(folder, token, tuple(listeners), tuple(addresses))


_READ = "print(open(FOLDER + '/secret').read())"
_WRITE = "open(FOLDER + '/written', 'w').write('x')"
_EMPTY = """
path = FOLDER + '/precious'
for empty in (lambda: os.truncate(path, 0), lambda: os.open(path, os.O_TRUNC),
              lambda: os.open(path, 3 | os.O_TRUNC), lambda: os.open(path, 1 | os.O_TRUNC)):
    try:
        empty()
    except OSError:
        pass
"""
_NETWORK = """
for family, address in ((2, TCP), (1, UNIX), (1, ABSTRACT)):
    try:
        socket.socket(family).connect(address)
    except OSError:
        pass
"""
_EXEC = """
for path in ("/bin/sh", "/usr/bin/env", sys.executable):
    try:
        os.execv(path, [path, "-c", "echo " + TOKEN] if path == "/bin/sh" else [path])
    except OSError:
        pass
print("no", end="")
"""
_PROCESSES = """
try:
    pid = os.fork()
except OSError:
    pid = -1
if pid >= 0:
    print(TOKEN)
"""
_THREADS = """
import threading
threading.Thread(target=print, args=(TOKEN,)).start()
"""
_SIGNALS = "os.kill(PARENT, 0)\nprint(TOKEN)"
_CALLS = """
import ctypes
libc = ctypes.CDLL(None)
if libc.ptrace(0, 0, 0, 0) == 0:
    print(TOKEN)
"""
_DESCRIPTORS = """
import stat
found = []
for number in range(3, 4096):
    try:
        found.append(stat.S_ISFIFO(os.fstat(number).st_mode))
    except OSError:
        pass
if found != [True]:
    print(TOKEN)
"""
_ENVIRONMENT = """
import ctypes
libc = ctypes.CDLL(None)
libc.getenv.restype = ctypes.c_char_p
if os.environ or libc.getenv(b"PATH") or libc.getenv(b"HOME"):
    print(TOKEN)
"""
_MEMORY = "block = bytearray(256 << 20)\nprint(TOKEN)"
_CPU = "import resource\nif not 0 < resource.getrlimit(resource.RLIMIT_CPU)[1] < 10: print(TOKEN)"
_FILE_SIZE = "open('large', 'wb').write(bytes(4 << 20))\nprint(TOKEN)"
_FILES = """
import time
for number in range(400):
    os.mkdir(str(number))
time.sleep(0.5)
print(TOKEN)
"""
_OUTPUT = "print('x' * (1 << 20))"
_TIME = "import time\ntime.sleep(2)\nprint(TOKEN, flush=True)"

PROBES = (
    _Probe("files outside cannot be read", _READ),
    _Probe(
        "files outside cannot be written",
        _WRITE,
        is_broken=lambda outcome, outside: os.path.exists(outside.written),
    ),
    _Probe(
        "files outside cannot be emptied",
        _EMPTY,
        is_broken=lambda outcome, outside: os.path.getsize(outside.precious) == 0,
    ),
    _Probe("no network", _NETWORK, is_broken=lambda outcome, outside: outside.is_called()),
    _Probe(
        "no other program",
        _EXEC,
        is_broken=lambda outcome, outside: outcome.stdout != "no",
    ),
    _Probe("no new process", _PROCESSES),
    _Probe("no thread", _THREADS),
    _Probe("no signal to others", _SIGNALS),
    _Probe("no dangerous system call", _CALLS),
    _Probe("no inherited descriptor", _DESCRIPTORS),
    _Probe("no environment", _ENVIRONMENT),
    _Probe("memory limit", _MEMORY),
    _Probe("CPU limit", _CPU),
    _Probe("file size limit", _FILE_SIZE),
    _Probe("number of files limit", _FILES),
    _Probe(
        "output limit",
        _OUTPUT,
        is_broken=lambda outcome, outside: outcome.status != "output",
    ),
    _Probe("time limit", _TIME, SHORT),
)

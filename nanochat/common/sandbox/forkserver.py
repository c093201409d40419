"""One warm interpreter; a fresh child of it for every program.   in: jobs   out: replies
who calls: box.py, as a process of its own:  python -s -S -P -B -c BOOT ROOT SETTINGS

Starting an interpreter costs 15 ms and more, forking one 1 ms.  This process never reads a job: it
forks a watcher as soon as something is in the pipe, and that one does.  So nothing of one program,
its tests or its nonce is ever in the memory another one inherits.
Read next: watch.py (one job), rooms.py (the namespaces this process moves into).
"""

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import stat
import sys
import sysconfig
from dataclasses import dataclass

from nanochat.common.sandbox import kernel, landlock, rooms
from nanochat.common.sandbox.frames import write_json
from nanochat.common.sandbox.watch import Place, serve_job

__all__ = ["BOOT", "ServerSettings", "is_open_to_others", "main", "readable_paths"]

BOOT = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from nanochat.common.sandbox.forkserver import main; main(sys.argv[2])"
)
CONTROL_IN, CONTROL_OUT = 0, 1

# Imported once here instead of in every child: what solutions to exercises import.
WARM = (
    "bisect collections copy dataclasses datetime decimal enum fractions functools heapq itertools "
    "json math numbers operator random re statistics string textwrap typing"
)
# Where the shared libraries of the interpreter's extension modules lie.
SYSTEM_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerSettings:
    """What box.py tells the server it starts."""

    scratch: str
    """A directory for private folders."""
    user: int | None
    """What programs should become, where we are root."""
    has_room: bool
    """Whether namespaces are tried; a driver that made some already does without."""
    is_strict: bool


def main(settings: str) -> None:
    """Serves jobs until the pipe ends."""
    wanted = ServerSettings(**json.loads(settings))
    del sys.path[0], sys.argv[1:]
    os.environ.clear()
    for name in WARM.split():
        importlib.import_module(name)
    readable = readable_paths()
    notes: list[str] = []
    has_room = wanted.has_room and _move_into_room(readable, wanted.scratch, notes)
    user = wanted.user if _can_become(wanted.user, has_room, notes) else None
    place = Place(
        readable=readable,
        scratch=wanted.scratch,
        has_room=has_room,
        user=user,
        is_strict=wanted.is_strict,
    )
    notes.append(f"Landlock ABI {landlock.abi()}" if landlock.abi() else "no Landlock")
    write_json(CONTROL_OUT, {"room": has_room, "user": user, "notes": notes})
    gc.freeze()
    _serve(place)


def readable_paths() -> tuple[str, ...]:
    """The interpreter's own files: its library, the libraries it links to, nothing else."""
    library = os.path.realpath(sysconfig.get_path("stdlib"))
    base = os.path.realpath(sys.base_prefix)
    own = [library, os.path.dirname(library)] if base not in ("/", "/usr") else [library]
    return tuple(dict.fromkeys(path for path in (*SYSTEM_LIBRARIES, *reversed(own)) if path))


def is_open_to_others(path: str) -> bool:
    """Whether any user may read a directory: an interpreter in root's home is not for others."""
    while True:
        mode = os.stat(path).st_mode
        if not mode & stat.S_IXOTH:
            return False
        if path == "/":
            return True
        path = os.path.dirname(path)


def _move_into_room(readable: tuple[str, ...], scratch: str, notes: list[str]) -> bool:
    """Whether this process is now the first of new namespaces; its parent waits for it."""
    if sys.platform != "linux":
        return False
    try:
        rooms.enter(readable, scratch)
    except OSError as error:
        notes.append(f"no namespaces ({error})")
        return False
    pid = os.fork()
    if pid:
        os.close(CONTROL_IN)
        os.close(CONTROL_OUT)
        _, status = os.waitpid(pid, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    with contextlib.suppress(OSError):
        kernel.prctl("PDEATHSIG", int(signal.SIGKILL))
    return True


def _can_become(user: int | None, has_room: bool, notes: list[str]) -> bool:
    if user is None or os.geteuid() != 0:
        return False
    if not has_room and not is_open_to_others(os.path.realpath(sysconfig.get_path("stdlib"))):
        notes.append("stays root, without capabilities: others may not read this interpreter")
        return False
    pid = os.fork()  # a user namespace or a container may lack the number
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(user + 1, user + 1, user + 1)
            os.setresuid(user + 1, user + 1, user + 1)
        except OSError:
            os._exit(1)
        os._exit(0)
    is_possible = os.waitpid(pid, 0)[1] == 0
    if not is_possible:
        notes.append("keeps its user, without capabilities: the kernel grants it no other")
    return is_possible


def _serve(place: Place) -> None:
    """A watcher for every job; ends when one of them says that there are no more."""
    while True:
        select.select([CONTROL_IN], [], [])
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                serve_job(CONTROL_IN, CONTROL_OUT, place)
                code = 0
            except EOFError:
                code = 2
            finally:
                if code == 1:
                    sys.excepthook(*sys.exc_info())
                    sys.stderr.flush()
                os._exit(code)
        if os.waitpid(pid, 0)[1] != 0:
            return

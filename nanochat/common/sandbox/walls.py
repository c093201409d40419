"""What a child puts around itself before a model's code runs.   in: Walls   out: a fenced process
who calls: watch.py, in the child

The order matters: limits and the folder while we still may, then the user, then what cannot be
taken back: no_new_privs, Landlock, and seccomp last, because it forbids the calls of all others.
Read next: landlock.py, seccomp.py; selftest.py (whether it holds).
"""

import ctypes
import functools
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass

from nanochat.common.sandbox import kernel, landlock, seccomp
from nanochat.common.sandbox.limits import SandboxLimits

__all__ = ["Walls", "put_up"]

CAPABILITIES_V3 = 0x20080522
MOST_CAPABILITIES = 63
STACK_BYTES = 8 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Walls:
    """What stands around one program."""

    limits: SandboxLimits
    readable: tuple[str, ...]
    """The interpreter's own files."""
    folder: str
    """Its working directory."""
    can_write: bool
    """Whether it may write there; checks may not."""
    user: int | None
    """The user and group it becomes.  None: stays who it is, without capabilities."""
    is_strict: bool
    """Whether all of it must stand; only `unsafe` runs code otherwise."""


def put_up(walls: Walls, parent: int) -> None:
    """From here on this process is fenced in; `parent` dying ends it.

    Raises: OSError where the system refuses a wall and `walls.is_strict`: the program must not run.
    """
    os.umask(0o077)
    os.chdir(walls.folder)
    steps: list[Callable[[], object]] = [functools.partial(_limit, walls.limits)]
    if sys.platform == "linux":
        steps += [
            functools.partial(_become, walls.user),
            functools.partial(_die_with, parent),
            functools.partial(kernel.prctl, "DUMPABLE", 0),
            functools.partial(kernel.prctl, "NO_NEW_PRIVS", 1),
            functools.partial(_guard_files, walls),
            functools.partial(
                seccomp.install, kernel.MACHINE, landlock.abi() >= landlock.TRUNCATE_ABI
            ),
        ]
    for step in steps:
        try:
            step()
        except (OSError, ValueError):
            if walls.is_strict:
                raise


def _die_with(parent: int) -> None:
    kernel.prctl("PDEATHSIG", int(signal.SIGKILL))  # a change of user clears it: after that
    if os.getppid() != parent:
        os._exit(1)


def _guard_files(walls: Walls) -> None:
    if landlock.abi():  # absent: the self-test sees whether a room keeps files away instead
        writable = [walls.folder] if walls.can_write else []
        landlock.restrict(walls.readable, [*writable, "/dev/null"])


def _limit(limits: SandboxLimits) -> None:
    cpu_s = limits.whole_cpu_s
    _set_limit(resource.RLIMIT_CPU, cpu_s, cpu_s + 1)  # SIGXCPU first, then SIGKILL
    _set_limit(resource.RLIMIT_CORE, 0)
    _set_limit(resource.RLIMIT_FSIZE, limits.disk_bytes)
    _set_limit(resource.RLIMIT_NOFILE, limits.num_descriptors)
    _set_limit(resource.RLIMIT_STACK, STACK_BYTES)
    if sys.platform == "linux":  # elsewhere these are refused or mean something else
        _set_limit(resource.RLIMIT_NPROC, 0)
        _set_limit(resource.RLIMIT_MEMLOCK, 0)
        _set_limit(resource.RLIMIT_MSGQUEUE, 0)
        _set_limit(resource.RLIMIT_AS, limits.memory_bytes)
        _set_limit(resource.RLIMIT_DATA, limits.memory_bytes)


def _set_limit(which: int, soft: int, hard: int | None = None) -> None:
    """Both limits, or the hard one of the user where that is lower."""
    ceiling = resource.getrlimit(which)[1]
    bounded = [
        value if ceiling == resource.RLIM_INFINITY else min(value, ceiling)
        for value in (soft, soft if hard is None else hard)
    ]
    resource.setrlimit(which, (bounded[0], bounded[1]))


def _become(user: int | None) -> None:
    """Another user and group, and no capability that could bring back what was given up."""
    for capability in range(MOST_CAPABILITIES + 1):
        try:
            kernel.prctl("CAPBSET_DROP", capability)
        except OSError:  # beyond the kernel's last one, or not ours to drop: then we have none
            break
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    header = struct.pack("<Ii", CAPABILITIES_V3, 0)
    kernel.call(
        "capset", ctypes.create_string_buffer(header, len(header)), ctypes.create_string_buffer(24)
    )

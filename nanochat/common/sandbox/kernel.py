"""System calls that Python does not offer.   in: numbers   out: what the kernel answers, or OSError
who calls: walls, landlock, seccomp, rooms, forkserver

Through ctypes, so that neither a compiler nor a package is needed.
Read next: seccomp.py (which calls are left to a program).
"""

import ctypes
import os
import platform
from typing import Any

__all__ = ["MACHINE", "PRCTL", "call", "prctl"]

MACHINE = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())

# include/uapi/linux/prctl.h
PRCTL = {
    "PDEATHSIG": 1,
    "DUMPABLE": 4,
    "SECCOMP": 22,
    "CAPBSET_DROP": 24,
    "CHILD_SUBREAPER": 36,
    "NO_NEW_PRIVS": 38,
    "CAP_AMBIENT": 47,
}

_libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: Any) -> int:
    """What a function of the C library returns (`syscall` included).

    Raises: OSError with the kernel's reason, or ENOSYS where the library lacks the function.
    """
    try:
        function = getattr(_libc, name)
    except AttributeError:
        raise OSError(38, f"the C library has no {name}") from None
    # The others return 32 bits: read as 64, their -1 would be 4294967295, and no failure seen.
    function.restype = ctypes.c_long if name == "syscall" else ctypes.c_int
    ctypes.set_errno(0)
    result: int = function(*(_as_word(argument) for argument in arguments))
    if result == -1 and ctypes.get_errno():
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return result


def prctl(option: str, *values: Any) -> int:
    """What prctl answers to one of `PRCTL`, the values left out being 0.

    Raises: OSError with the kernel's reason.
    """
    padded = (*values, 0, 0, 0, 0)[:4]
    return call("prctl", PRCTL[option], *padded)


def _as_word(argument: Any) -> Any:
    """Whole machine words: ctypes would pass 32 bits."""
    return ctypes.c_long(argument) if isinstance(argument, int) else argument

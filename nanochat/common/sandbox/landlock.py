"""Paths a program may read and write -> a wall in the kernel.   in: paths   out: no other opens
who calls: walls.py

Landlock (Linux 5.13) lets a process take rights away from itself, for good.  Everything the running
kernel can guard is guarded; what is granted is reading below some paths and all but devices,
sockets and links below others.  From ABI 4 it also stops TCP, from ABI 6 abstract sockets and
signals to processes outside.  Not guarded by it: stat, chmod, utime, and below ABI 3 truncate;
seccomp forbids all but the first.
Source: Documentation/userspace-api/landlock.rst, include/uapi/linux/landlock.h.
Read next: seccomp.py (which system calls).
"""

import contextlib
import ctypes
import os
import stat
import struct
import sys
from collections.abc import Iterable

from nanochat.common.sandbox import kernel
from nanochat.common.sandbox.numbers import NUMBERS

__all__ = ["TRUNCATE_ABI", "abi", "restrict"]

# LANDLOCK_ACCESS_FS_*
WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 5
MAKE_DIR, MAKE_REG, REFER, TRUNCATE = 1 << 7, 1 << 8, 1 << 13, 1 << 14
READ = READ_FILE | READ_DIR
WRITE = READ | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | REFER | TRUNCATE
OF_A_FILE = READ_FILE | WRITE_FILE | TRUNCATE  # the rights that may be granted on a single file

TRUNCATE_ABI = 3
"""From here on (Linux 6.2) emptying a file is a right of its own; below, nobody is asked."""

# How many rights each ABI knows: (of files, of the network, of scopes), as numbers of bits.
KNOWN_BITS = {1: (13, 0, 0), 2: (14, 0, 0), 3: (15, 0, 0), 4: (15, 2, 0), 5: (16, 2, 0)}
NEWEST_BITS = (16, 2, 2)

RULE_PATH_BENEATH = 1
ASK_VERSION = 1


def abi() -> int:
    """The version of Landlock in this kernel, 0 where there is none."""
    if sys.platform != "linux":
        return 0
    try:
        return _call("landlock_create_ruleset", None, 0, ASK_VERSION)
    except (OSError, KeyError):
        return 0


def restrict(readable: Iterable[str], writable: Iterable[str]) -> None:
    """From here on this process opens nothing but these files and what is below these directories.

    Paths that do not exist are passed over.
    Raises: OSError where the kernel has no Landlock; no_new_privs must be set.
    """
    version = abi()
    if not version:
        raise OSError(38, "the kernel has no Landlock")
    file_bits, net_bits, scope_bits = KNOWN_BITS.get(version, NEWEST_BITS)
    handled = (1 << file_bits) - 1
    words = struct.pack("<QQQ", handled, (1 << net_bits) - 1, (1 << scope_bits) - 1)
    size = 24 if scope_bits else 16 if net_bits else 8
    ruleset = _call(
        "landlock_create_ruleset", ctypes.create_string_buffer(words[:size], size), size, 0
    )
    try:
        for paths, rights in ((readable, READ), (writable, WRITE)):
            for path in paths:
                with contextlib.suppress(FileNotFoundError):
                    _grant(ruleset, path, rights & handled)
        _call("landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)


def _grant(ruleset: int, path: str, rights: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= OF_A_FILE
        rule = struct.pack("<Qi", rights, descriptor)
        buffer = ctypes.create_string_buffer(rule, len(rule))
        _call("landlock_add_rule", ruleset, RULE_PATH_BENEATH, buffer, 0)
    finally:
        os.close(descriptor)


def _call(name: str, *arguments: object) -> int:
    return kernel.call("syscall", NUMBERS[kernel.MACHINE][name], *arguments)

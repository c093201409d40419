"""The list of system calls a program may make -> a filter in the kernel.   in: a machine   out: BPF
who calls: walls.py

An allow list: what is not named here does not exist for the program, also what a later kernel adds.
Left out on purpose, though harmless in themselves: threads (clone altogether), links and extended
attributes (Landlock does not guard them), fcntl's F_SETOWN (sends signals), ioctl but for five
questions.  chmod and utime, which Landlock does not guard either, answer 0 and do nothing, so that
shutil.copy goes on.  Where Landlock does not guard truncation (below ABI 3), truncate is left out,
and opening empties a file only where it opens it for writing, which Landlock guards everywhere.
A call that no honest program makes ends it at once (SIGSYS), so that it is told apart; every other
one fails with EPERM, and clone3 with ENOSYS, to which the C library answers with clone.
Source: linux/seccomp.h, linux/filter.h, arch/x86/entry/syscalls, include/uapi/asm-generic/unistd.h.
Read next: landlock.py (which files), walls.py (order).
"""

import ctypes
import struct
from typing import NamedTuple

from nanochat.common.sandbox import kernel
from nanochat.common.sandbox.numbers import (
    ALLOWED,
    ARCHITECTURES,
    DEADLY,
    NUMBERS,
    PRETENDED,
    TRUNCATING,
)

__all__ = ["filter_program", "install"]

# linux/bpf_common.h: LD|W|ABS, JMP|JEQ|K, JMP|JGE|K, JMP|JSET|K, ALU|AND|K, RET|K
LOAD, EQUAL, AT_LEAST, HAS_BITS, AND, RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
ALLOW, KILL = 0x7FFF0000, 0x80000000
PRETEND, REFUSE, UNKNOWN = 0x00050000, 0x00050000 | 1, 0x00050000 | 38  # 0, EPERM, ENOSYS

# struct seccomp_data: nr, arch, instruction pointer, six arguments of 8 bytes, little endian
AT_NUMBER, AT_ARCH = 0, 4
X32_CALLS = 0x40000000

# F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC
FCNTL_COMMANDS = (0, 1, 2, 3, 4, 1030)
# TCGETS, TIOCGWINSZ, FIONREAD, FIONCLEX, FIOCLEX: what opening a file and asking isatty() need
IOCTL_COMMANDS = (0x5401, 0x5413, 0x541B, 0x5450, 0x5451)
SECCOMP_MODE_FILTER = 2
# Which argument of a call has the flags to open with; asm-generic/fcntl.h
FLAGS_OF = {"open": 1, "openat": 2}
ACCESS_MODE, WRITE_ONLY, READ_WRITE, TRUNCATE = 3, 1, 2, 0o1000


class _Instruction(NamedTuple):
    code: int
    if_true: int
    if_false: int
    value: int

    def packed(self) -> bytes:
        return struct.pack("<HBBI", *self)


def filter_program(machine: str, guards_truncation: bool = False) -> bytes:
    """The filter in the kernel's form, 8 bytes an instruction.

    guards_truncation: whether Landlock does, so that this need not.
    Raises: KeyError for a machine other than x86_64 and aarch64.
    """
    numbers = NUMBERS[machine]
    program = [
        _load(AT_ARCH),
        _Instruction(EQUAL, 1, 0, ARCHITECTURES[machine]),
        _return(KILL),
        _load(AT_NUMBER),
        _Instruction(AT_LEAST, 0, 1, X32_CALLS),
        _return(KILL),
    ]
    allowed = (*ALLOWED, *TRUNCATING) if guards_truncation else ALLOWED
    if not guards_truncation:
        for name, argument in FLAGS_OF.items():
            if name in numbers:
                program += _when_number(numbers[name], _emptied_only_for_writing(argument))
    for names, action in ((allowed, ALLOW), (DEADLY, KILL), (PRETENDED, PRETEND)):
        for name in names:
            if name in numbers:  # aarch64 lacks the older ones
                program += _when_number(numbers[name], [_return(action)])
    program += _when_number(numbers["fcntl"], _only_commands(FCNTL_COMMANDS))
    program += _when_number(numbers["ioctl"], _only_commands(IOCTL_COMMANDS))
    program += _when_number(numbers["prlimit64"], _only_asking_about_itself())
    program += _when_number(numbers["clone3"], [_return(UNKNOWN)])
    program.append(_return(REFUSE))
    return b"".join(instruction.packed() for instruction in program)


def install(machine: str = kernel.MACHINE, guards_truncation: bool = False) -> None:
    """From here on this process, for good, makes only the calls allowed.

    Raises: OSError where the kernel has no seccomp or the machine is another one; no_new_privs must
    be set.
    """
    if machine not in NUMBERS:
        raise OSError(38, f"no list of system calls for {machine}, expected {' or '.join(NUMBERS)}")
    code = filter_program(machine, guards_truncation)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("<HxxxxxxQ", len(code) // 8, ctypes.addressof(buffer))
    kernel.prctl("SECCOMP", SECCOMP_MODE_FILTER, ctypes.create_string_buffer(header, len(header)))


def _load(offset: int) -> _Instruction:
    return _Instruction(LOAD, 0, 0, offset)


def _return(action: int) -> _Instruction:
    return _Instruction(RETURN, 0, 0, action)


def _low(argument: int) -> int:
    return 16 + 8 * argument


def _high(argument: int) -> int:
    return 20 + 8 * argument


def _when_number(number: int, body: list[_Instruction]) -> list[_Instruction]:
    """`body` for this call; it must end in a return, because it overwrites the number."""
    return [_Instruction(EQUAL, 0, len(body), number), *body]


def _only_commands(commands: tuple[int, ...]) -> list[_Instruction]:
    """Allowed when the second argument is one of these; the kernel too reads 32 bits of it."""
    checks = [
        step
        for command in commands
        for step in (_Instruction(EQUAL, 0, 1, command), _return(ALLOW))
    ]
    return [_load(_low(1)), *checks, _return(REFUSE)]


def _emptied_only_for_writing(argument: int) -> list[_Instruction]:
    """Allowed, but for O_TRUNC with an access mode that Landlock does not take for writing."""
    return [
        _load(_low(argument)),
        _Instruction(HAS_BITS, 0, 4, TRUNCATE),
        _Instruction(AND, 0, 0, ACCESS_MODE),
        _Instruction(EQUAL, 2, 0, WRITE_ONLY),
        _Instruction(EQUAL, 1, 0, READ_WRITE),
        _return(REFUSE),
        _return(ALLOW),
    ]


def _only_asking_about_itself() -> list[_Instruction]:
    """prlimit64(0, which, NULL, old): reads a limit of this process, sets none."""
    zeros = [step for word in (_low(0), _low(2), _high(2)) for step in _zero_or_refuse(word)]
    return [*zeros, _return(ALLOW)]


def _zero_or_refuse(offset: int) -> list[_Instruction]:
    return [_load(offset), _Instruction(EQUAL, 1, 0, 0), _return(REFUSE)]

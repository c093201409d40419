"""A seccomp filter, interpreted.   in: a program, a system call   out: what the kernel would do
who calls: tests/common/test_sandbox.py

The six instructions ours are made of, so that the filter for the other machine is tested too.
Source: Documentation/networking/filter.rst, include/uapi/linux/seccomp.h.
"""

import struct

__all__ = ["decide"]


def decide(program: bytes, arch: int, number: int, *arguments: int) -> int:
    """The action (with its data) for one call."""
    words = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
    data = struct.pack("<IIQ6Q", number, arch, 0, *(word & (2**64 - 1) for word in words))
    instructions = list(struct.iter_unpack("<HBBI", program))
    position, loaded = 0, 0
    while True:
        code, if_true, if_false, value = instructions[position]
        position += 1
        if code == 0x20:
            (loaded,) = struct.unpack_from("<I", data, value)
        elif code == 0x15:
            position += if_true if loaded == value else if_false
        elif code == 0x35:
            position += if_true if loaded >= value else if_false
        elif code == 0x45:
            position += if_true if loaded & value else if_false
        elif code == 0x54:
            loaded &= value
        elif code == 0x06:
            return value
        else:
            raise AssertionError(f"instruction {code:#x}")

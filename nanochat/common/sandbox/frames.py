"""Messages of known length through a pipe.   in: a descriptor   out: bytes, or None at its end
who calls: box, forkserver, watch, child

Four bytes of length, big endian, then the content: whoever reads never takes a byte of the next
one, which a process forked later may be meant to read.
Read next: watch.py (what is sent).
"""

import json
import os
import struct
from typing import Any

__all__ = ["MOST_BYTES", "read_frame", "read_json", "write_frame", "write_json"]

MOST_BYTES = 64 << 20
"""Nothing longer is read: a peer must not fill our memory by announcing a length."""


def read_frame(descriptor: int, most_bytes: int = MOST_BYTES) -> bytes | None:
    """The next message, or None where the pipe ended before it.

    Raises: ValueError for one that announces more than `most_bytes`.
    """
    head = _read_exactly(descriptor, 4)
    if head is None:
        return None
    (length,) = struct.unpack(">I", head)
    if length > most_bytes:
        raise ValueError(f"a message of {length} bytes, expected at most {most_bytes}")
    return _read_exactly(descriptor, length)


def write_frame(descriptor: int, content: bytes) -> None:
    """The message is in the pipe as a whole.

    Raises: BrokenPipeError where nobody reads; ValueError for one that would not be read.
    """
    if len(content) > MOST_BYTES:
        raise ValueError(f"a message of {len(content)} bytes, expected at most {MOST_BYTES}")
    rest = memoryview(struct.pack(">I", len(content)) + content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def read_json(descriptor: int, most_bytes: int = MOST_BYTES) -> Any:
    """The next message as JSON, or None at the end.

    Raises: ValueError for text that is not JSON.
    """
    frame = read_frame(descriptor, most_bytes)
    return None if frame is None else json.loads(frame)


def write_json(descriptor: int, value: Any) -> None:
    """The value as one message."""
    write_frame(descriptor, json.dumps(value).encode())


def _read_exactly(descriptor: int, length: int) -> bytes | None:
    pieces = []
    while length:
        piece = os.read(descriptor, min(length, 1 << 20))
        if not piece:
            return None
        pieces.append(piece)
        length -= len(piece)
    return b"".join(pieces)

"""A pickle's bytes -> its instructions, one by one.   in: bytes, the instructions that are needed
out: names with their arguments; nothing is carried out   who calls: tokenizer/reference.py,
checkpoint/torch_file.py

A pickle is a program for a small machine that may import and call anything.  Who reads one here
names the few instructions its files need; at the first other one reading ends, and not even that
one's argument is looked at.
Read next: tokenizer/reference.py, checkpoint/torch_file.py (the machines that obey them).
"""

import io
import pickletools
from collections.abc import Iterator
from typing import Any

from nanochat.common.errors import DataError

__all__ = ["read_instructions"]

_INSTRUCTIONS = {code.code.encode("latin-1"): code for code in pickletools.opcodes}


def read_instructions(
    data: bytes, needed: frozenset[str], *, most: int, what: str
) -> Iterator[tuple[str, Any]]:
    """Each instruction's name and argument, up to and with STOP.

    `what` is who needs them, as in "a tokenizer".
    Raises: DataError for an instruction outside `needed`, for more than `most`, for bytes that are
            no pickle, and for bytes after STOP.
    """
    stream = io.BytesIO(data)
    for _ in range(most):
        instruction = _INSTRUCTIONS.get(stream.read(1))
        if instruction is None:
            raise DataError("is not a whole pickle")
        if instruction.name not in needed:
            raise DataError(
                f"holds the pickle instruction {instruction.name}, which {what} does not need and "
                "which may run a program: refused; do not open this file with anything else"
            )
        try:
            argument = instruction.arg.reader(stream) if instruction.arg else None
        except ValueError as error:
            raise DataError(f"is not a whole pickle ({error})") from None
        yield instruction.name, argument
        if instruction.name == "STOP":
            if stream.read(1):
                raise DataError("holds more than one pickle: refused")
            return
    raise DataError(f"has more than {most} instructions: refused")

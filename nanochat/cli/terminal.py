"""Text -> a terminal that nobody can steer.   in: text of a model   out: text safe to print
who calls: cli/generate.py, cli/chat.py

A model may write anything, escape sequences included: those could recolour, clear or retitle the
terminal, or hide what was said.
Read next: chat.py.
"""

import sys
from typing import TextIO

__all__ = ["neutralize", "notice", "print_answer"]

# C0 without tab and line feed, DEL, C1, and the marks that reorder text: shown as Unicode's
# pictures of controls where there are any, else as the replacement character.
_PICTURES = {code: 0x2400 + code for code in range(0x20) if code not in (0x09, 0x0A)}
_REPLACED = [0x7F, *range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_TABLE = _PICTURES | dict.fromkeys(_REPLACED, 0xFFFD)


def neutralize(text: str) -> str:
    """The text with each control character made visible; line breaks and tabs stay."""
    return text.translate(_TABLE)


def print_answer(text: str, stream: TextIO | None = None) -> None:
    """A piece of a model's text, at once: as it is into a pipe, harmless on a terminal."""
    stream = stream or sys.stdout
    stream.write(neutralize(text) if stream.isatty() else text)
    stream.flush()


def notice(text: str) -> None:
    """One line for the person, beside the answer and not in it."""
    print(f"nanochat: {text}", file=sys.stderr, flush=True)

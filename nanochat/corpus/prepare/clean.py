"""A text -> the same text, clean, or why it is left out.   in: a text, rules   out: text, reason
who calls: batches/prepare_piece.py

Whatever the language: NFC, line ends are line feeds, no control characters, no invisible ones, no
blanks at the ends of lines, at most two empty lines together.  Nothing a reader would see is
changed.  Then the length, and where `quality` is asked for three rules that know no language.
A text that is clean already costs a few searches and is returned itself.
Source: the limits of repeated lines and of letters are near those of Gopher (Rae et al.,
    arXiv:2112.11446, table A1), without its lists of English words.
Read next: words.py (what of a text is compared).
"""

import re
import unicodedata
from dataclasses import dataclass

from nanochat.common.errors import ConfigError

__all__ = ["CleanRules", "clean", "reason_against"]

MOST_REPEATED_LINES = 0.3  # of the characters, in lines that were there before
LEAST_LETTERS = 0.5  # of what is not a blank
MOST_RUN_BYTES = 1000  # of ASCII without a blank: packed programs, base64

# All of ASCII's, but tab and line feed; carriage return is a line end, or nothing.
_CONTROLS = bytes(code for code in (*range(0x20), 0x7F) if code not in (0x09, 0x0A))
_ODD = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\xa0\xad\u1680\u2000-\u200b\u2028\u2029\u202f\u205f\u2060\ufeff"
    "\ud800-\udfff]"
)
_LINE_ENDS = "\r\x0b\x0c\x85\u2028\u2029"
_SPACES = "\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f"

_BLANKS = b" \t\n"
_LETTERS = bytes([*range(65, 91), *range(97, 123), *range(0x80, 0x100)])
_LONG_RUN = re.compile(rb"[!-~]{%d}" % MOST_RUN_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanRules:
    """What is left out.  Raises: ConfigError where no text could fit."""

    min_chars: int = 20
    max_chars: int = 1_000_000
    """Longer ones are lists, tables and dumps as a rule."""
    has_quality: bool = False
    """Whether the three rules about repeated lines, letters and runs apply."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_chars <= self.max_chars:
            raise ConfigError(
                f"min_chars is {self.min_chars} and max_chars {self.max_chars}: expected at least "
                "1, and no less than the other"
            )


def clean(text: str) -> str:
    """The text in NFC, without what cannot be seen; `clean(clean(text)) == clean(text)`."""
    if not text.isascii():
        text = _without_odd(text)
        # Last: what was taken out may have stood between a letter and its accent.
        if not unicodedata.is_normalized("NFC", text):
            text = unicodedata.normalize("NFC", text)
    elif len(text.encode().translate(None, _CONTROLS)) != len(text):
        text = _without_odd(text)
    if " \n" in text or "\t\n" in text:
        text = "\n".join(line.rstrip(" \t") for line in text.split("\n"))
    while "\n\n\n\n" in text:  # a quarter less each time
        text = text.replace("\n\n\n\n", "\n\n\n")
    return text.rstrip(" \t\n").lstrip("\n")


def reason_against(text: str, rules: CleanRules) -> str | None:
    """Why a clean text is left out; None if it is not."""
    if not text:
        return "empty"
    if len(text) < rules.min_chars:
        return f"shorter than {rules.min_chars:,} characters"
    if len(text) > rules.max_chars:
        return f"longer than {rules.max_chars:,} characters"
    return _bad_quality(text) if rules.has_quality else None


def _without_odd(text: str) -> str:
    """Of each kind that is there, all at once: ten times faster than a table of all kinds."""
    odd = set(_ODD.findall(text))
    if any("\ud800" <= each <= "\udfff" for each in odd):
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if "\r" in odd:
        text = text.replace("\r\n", "\n")
    for each in odd:
        if not "\ud800" <= each <= "\udfff":
            text = text.replace(each, "\n" if each in _LINE_ENDS else " " * (each in _SPACES))
    return text


def _bad_quality(text: str) -> str | None:
    data = text.encode()
    visible = data.translate(None, _BLANKS)
    letters = len(visible) - len(visible.translate(None, _LETTERS))
    if letters < LEAST_LETTERS * len(visible):
        return f"fewer than {LEAST_LETTERS:.0%} letters"
    if _LONG_RUN.search(data):
        return f"{MOST_RUN_BYTES:,} characters without a blank"
    seen: set[bytes] = set()
    repeated = 0
    for line in data.split(b"\n"):
        repeated += len(line) if line in seen else 0
        seen.add(line)
    if repeated > MOST_REPEATED_LINES * len(data):
        return f"more than {MOST_REPEATED_LINES:.0%} in repeated lines"
    return None

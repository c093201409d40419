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
    "[\x80-\xa0\xad\u1680\u2000-\u200b\u2028\u2029\u202f\u205f\u2060\ufeff\ud800-\udfff]"
)
_LINE_END = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_REMOVED = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if code not in (0x09, 0x0A)}
_REMOVED |= dict.fromkeys((0xAD, 0x200B, 0x2060, 0xFEFF))  # soft hyphen, zero widths, byte order
_SPACES = dict.fromkeys((0xA0, 0x1680, *range(0x2000, 0x200B), 0x202F, 0x205F), " ")
_TABLE = _REMOVED | _SPACES
# The look-behind keeps it linear: a run of blanks is tried once, not from each of its places.
_LINE_BLANKS = re.compile(r"(?<![ \t])[ \t]++\n")
_EMPTY_LINES = re.compile(r"\n{4,}")

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
        text = _clean_unicode(text)
    elif len(text.encode().translate(None, _CONTROLS)) != len(text):
        text = _LINE_END.sub("\n", text).translate(_TABLE)
    if " \n" in text or "\t\n" in text:
        text = _LINE_BLANKS.sub("\n", text)
    text = text.rstrip(" \t\n").lstrip("\n")
    return _EMPTY_LINES.sub("\n\n\n", text) if "\n\n\n\n" in text else text


def reason_against(text: str, rules: CleanRules) -> str | None:
    """Why a clean text is left out; None if it is not."""
    if not text:
        return "empty"
    if len(text) < rules.min_chars:
        return f"shorter than {rules.min_chars:,} characters"
    if len(text) > rules.max_chars:
        return f"longer than {rules.max_chars:,} characters"
    return _bad_quality(text) if rules.has_quality else None


def _clean_unicode(text: str) -> str:
    if (found := _ODD.search(text)) or not _has_no_controls(text):
        if found and any("\ud800" <= character <= "\udfff" for character in text):
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        text = _LINE_END.sub("\n", text).translate(_TABLE)
    # Last: what was taken out may have stood between a letter and its accent.
    if not unicodedata.is_normalized("NFC", text):
        text = unicodedata.normalize("NFC", text)
    return text


def _has_no_controls(text: str) -> bool:
    data = text.encode("utf-8", "surrogatepass")
    return len(data.translate(None, _CONTROLS)) == len(data)


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

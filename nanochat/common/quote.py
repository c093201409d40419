"""A value in an error message.   in: anything   out: a few words   who calls: whoever raises"""

__all__ = ["quoted"]

MOST_CHARS = 60


def quoted(value: object) -> str:
    """The value as Python writes it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= MOST_CHARS else text[: MOST_CHARS - 3] + "..."

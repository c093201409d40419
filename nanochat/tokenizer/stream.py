"""Tokens, one at a time -> text.   in: token ids as they are sampled   out: text safe to show
who calls: engine, cli, server, through Tokenizer.stream_decoder

A character of UTF-8 takes up to four bytes and a token may end within one, so text is held back
until it is whole.
Read next: tokenizer.py (what a token's bytes are).
"""

import codecs
from collections.abc import Callable

__all__ = ["StreamDecoder"]


class StreamDecoder:
    """Turns tokens into text without ever showing half a character.

    All that `feed` and `flush` return, joined, equals `Tokenizer.decode` of all the tokens.
    Example: decoder = tokenizer.stream_decoder(); text = decoder.feed(token) ... + decoder.flush()
    """

    def __init__(self, bytes_of: Callable[[int], bytes]) -> None:
        self._bytes_of = bytes_of
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        """What this token adds to the text; empty while a character is incomplete.

        Raises: TokenizerError for a number outside the vocabulary; what is held back stays as it
                was.
        """
        return self._decoder.decode(self._bytes_of(token))

    def flush(self) -> str:
        """What is left at the end: nothing, or U+FFFD for half a character; starts afresh."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest

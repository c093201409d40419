"""Bytes -> server-sent events.   in: pieces of a body, cut anywhere   out: the data of each event
who calls: chat_remote.py

Lines may end in LF, CR or CRLF, and a piece may end within a line end or a character.
Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
Read next: chat_remote.py.
"""

import codecs
from collections.abc import Iterator

from nanochat.common.errors import EngineError

__all__ = ["EventParser"]

MAX_EVENT_LENGTH = 2**20  # characters; a token's frame has a few hundred


class EventParser:
    """Feed it the body piece by piece; comments and fields other than data say nothing to us."""

    def __init__(self) -> None:
        # utf-8-sig: a byte order mark may come first
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._line: list[str] = []
        self._line_length = 0
        self._data: list[str] = []
        self._after_return = False

    def feed(self, data: bytes) -> Iterator[str]:
        """The data of each event that is complete now.

        Raises: EngineError for one that grows without end.
        """
        yield from self._text(self._decoder.decode(data))

    def close(self) -> Iterator[str]:
        """What the end of the body completes: servers leave the last empty line out at times."""
        yield from self._text(self._decoder.decode(b"", final=True))
        yield from self._end_line()
        yield from self._end_line()

    def _text(self, text: str) -> Iterator[str]:
        start = 0
        for place, character in enumerate(text):
            if character not in "\r\n":
                self._after_return = False
                continue
            self._hold(text[start:place])
            start = place + 1
            if character == "\n" and self._after_return:  # the second half of CRLF
                self._after_return = False
                continue
            self._after_return = character == "\r"
            yield from self._end_line()
        self._hold(text[start:])

    def _hold(self, text: str) -> None:
        self._line.append(text)
        self._line_length += len(text)
        if self._line_length + sum(map(len, self._data)) > MAX_EVENT_LENGTH:
            raise EngineError(
                f"the server sends an event of more than {MAX_EVENT_LENGTH} characters: "
                "expected an OpenAI-compatible stream"
            )

    def _end_line(self) -> Iterator[str]:
        line, self._line, self._line_length = "".join(self._line), [], 0
        if not line:
            if self._data:
                data, self._data = "\n".join(self._data), []
                yield data
            return
        name, _, value = line.partition(":")
        if name == "data":
            self._data.append(value.removeprefix(" "))

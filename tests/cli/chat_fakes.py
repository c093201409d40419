"""What the tests of the chat share: an engine and a backend with a script, a terminal."""

import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import Any

from nanochat.cli.chat_talk import Piece, Reply, Settings
from nanochat.common.errors import RequestTooLong
from nanochat.common.messages import Conversation, Message
from nanochat.engine.request import Request, SamplingParams, TokenEvent
from nanochat.tokenizer.tokenizer import Tokenizer

__all__ = ["Parrot", "Scripted", "Terminal"]

Script = Sequence[Sequence[str | BaseException]]


class Parrot:
    """An engine that answers with its script, then with "ok"; an exception in it is raised.

    A piece such as <|python_start|> is that token.
    """

    context_len = 60

    def __init__(self, tokenizer: Tokenizer, script: Script = ()) -> None:
        self.tokenizer, self.script = tokenizer, list(script)
        self.requests: list[Request] = []
        self.closed = 0

    @property
    def prompts(self) -> list[str]:
        return [self.tokenizer.decode(request.prompt_tokens) for request in self.requests]

    def stream(self, request: Request) -> "Parrot.Events":
        self.requests.append(request)
        return Parrot.Events(self, self.script.pop(0) if self.script else ["ok"])

    class Events:
        def __init__(self, parrot: "Parrot", pieces: Sequence[str | BaseException]) -> None:
            self.parrot, self.pieces = parrot, pieces

        def __iter__(self) -> Iterator[TokenEvent]:
            tokenizer = self.parrot.tokenizer
            for piece in self.pieces:
                if isinstance(piece, BaseException):
                    raise piece
                if piece in tokenizer.special_tokens:
                    yield self.event(tokenizer.special(piece), "")
                    continue
                for token in tokenizer.encode(piece):
                    yield self.event(token, tokenizer.decode([token]))
            yield self.event(tokenizer.special("<|assistant_end|>"), "", "stop")

        def event(self, token: int, text: str, reason: Any = None) -> TokenEvent:
            return TokenEvent(
                request_id="chat", token=token, text=text, logprob=0.0, finish_reason=reason
            )

        def close(self) -> None:
            self.parrot.closed += 1


class Scripted:
    """A backend that answers with its script, then with "ok"; a token is a character."""

    name, place = "scripted", "nowhere"
    defaults: SamplingParams | None = SamplingParams()

    def __init__(self, script: Script = (), context_len: int | None = None) -> None:
        self.script, self.context_len = list(script), context_len
        self.asked: list[Conversation] = []
        self.settings: list[Settings] = []
        self.does_count = context_len is not None
        self.closed = 0

    def stream(
        self, conversation: Conversation, settings: Settings, reply: Reply
    ) -> Generator[Piece, None, None]:
        self.asked.append(conversation)
        self.settings.append(settings)
        said = ""
        try:
            for piece in self.script.pop(0) if self.script else ["ok"]:
                if isinstance(piece, BaseException):
                    raise piece
                said += piece
                reply.has_begun, reply.num_tokens = True, len(said)
                yield Piece("text", piece)
            reply.has_begun, reply.finish_reason = True, "stop"
            reply.num_prompt_tokens = sum(len(str(message.content)) for message in conversation)
        finally:
            reply.message = Message("assistant", said)

    def count(self, conversation: Conversation) -> int | None:
        length = sum(len(str(message.content)) for message in conversation)
        return length if self.does_count else None

    def close(self) -> None:
        self.closed += 1


def whole(pieces: Generator[Piece, None, None]) -> str:
    """All the words of an answer."""
    with closing(pieces):
        return "".join(piece.text for piece in pieces if piece.kind == "text")


TOO_LONG = RequestTooLong("too long")


class Terminal:
    """What a screen of this size shows after some output: wraps, scrolls, and obeys a few escapes.

    Any other control character is a mistake of the program that wrote it.
    """

    def __init__(self, width: int = 40, height: int = 12) -> None:
        self.width, self.height = width, height
        self.rows: list[list[str]] = [[]]
        self.row = self.column = 0
        self.is_cursor_shown = True

    def write(self, text: str) -> int:
        for match in re.finditer(r"\x1b\[([?\d;]*)([A-Za-z])|([\x00-\x1f\x7f-\x9f])|(.)", text):
            arguments, final, control, character = match.groups()
            if final:
                self._escape(arguments, final)
            elif control:
                assert control in "\r\n", f"control character {control!r} in {text!r}"
                self.column = 0
                if control == "\n":
                    self._next_row()
            else:
                self._put(character)
        return len(text)

    def flush(self) -> None:
        pass

    @property
    def text(self) -> str:
        """All rows, those that have scrolled away too, without blanks at the ends."""
        return "\n".join("".join(row).rstrip() for row in self.rows).rstrip("\n")

    def _escape(self, arguments: str, final: str) -> None:
        row = self.rows[self.row]
        if final == "A":
            up = int(arguments or 1)
            assert self.row - up >= len(self.rows) - self.height, "above the first row on screen"
            self.row -= up
        elif final == "K":
            del row[self.column :]
        elif final == "J":
            del row[self.column :]
            del self.rows[self.row + 1 :]
        elif (final, arguments) in (("h", "?25"), ("l", "?25")):
            self.is_cursor_shown = final == "h"
        else:
            assert final == "m", f"escape {arguments}{final}"

    def _put(self, character: str) -> None:
        if self.column == self.width:
            self.column = 0
            self._next_row()
        row = self.rows[self.row]
        row += [" "] * (self.column + 1 - len(row))
        row[self.column] = character
        self.column += 1

    def _next_row(self) -> None:
        self.row += 1
        if self.row == len(self.rows):
            self.rows.append([])

"""Tokens -> completions in OpenAI's older shape.   in: pieces of answers   out: frames, bodies
who calls: completions.py

With `echo` the prompt comes first, in the text and in the log-probabilities, so that a program that
only reads completions can learn how likely a text is.
Read next: frames.py (the newer shape), completions.py.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from json.encoder import encode_basestring
from typing import NamedTuple

from nanochat.engine.request import NO_TOKEN, PromptLogprob, TokenEvent
from nanochat.server.frames import (
    DONE,
    Head,
    Piece,
    as_json,
    as_number,
    frame_of,
    token_string,
    whole_of,
)
from nanochat.server.responses import Usage
from nanochat.tokenizer.tokenizer import Tokenizer

__all__ = ["CompletionFrames", "Echo"]

KIND = "text_completion"


class Echo(NamedTuple):
    """A prompt that is told again."""

    text: str
    num_added: int
    """Tokens at its beginning that the client did not write."""


class _Told(NamedTuple):
    """A token in `logprobs`."""

    token: str
    logprob: float | None
    top: dict[str, float] | None
    offset: int


class _Columns:
    """`logprobs` of one answer: a list for each member of a _Told, as JSON a token at a time; one
    call for all of it would hold Python's lock for long."""

    def __init__(self, told: Iterable[_Told] = ()) -> None:
        self._lists: tuple[list[bytes], ...] = ([], [], [], [])
        self.add(told)

    def add(self, told: Iterable[_Told]) -> None:
        """More tokens."""
        for each in told:
            for values, value in zip(self._lists, each, strict=True):
                values.append(as_json(value))

    def json(self) -> bytes:
        """All of them."""
        return b'{"tokens":[%s],"token_logprobs":[%s],"top_logprobs":[%s],"text_offset":[%s]}' % (
            tuple(map(b",".join, self._lists))
        )


@dataclass(slots=True)
class _Choice:
    """What is known of one answer so far."""

    length: int = 0
    """Characters told."""
    texts: list[str] = field(default_factory=list)
    logprobs: _Columns = field(default_factory=_Columns)
    reason: str | None = None
    is_begun: bool = False


class CompletionFrames:
    """Completions of one or several prompts, `num_samples` of each."""

    def __init__(
        self,
        head: Head,
        tokenizer: Tokenizer,
        *,
        echoes: Sequence[Echo | None],
        num_samples: int = 1,
        has_logprobs: bool = False,
        has_answer: bool = True,
        has_usage_frame: bool = False,
    ) -> None:
        self._head, self._tokenizer = head, tokenizer
        self._echoes, self._num_samples = echoes, num_samples
        self._has_logprobs, self._has_answer = has_logprobs, has_answer
        self._has_usage_frame = has_usage_frame
        self._choices = [_Choice() for _ in range(len(echoes) * num_samples)]
        self._prompts: dict[int, tuple[PromptLogprob, ...]] = {}
        self._begin = head.begin(KIND)
        self._end = b'}],"usage":null}\n\n' if has_usage_frame else b"}]}\n\n"

    def first(self) -> bytes:
        """Nothing."""
        return b""

    def of(self, piece: Piece) -> bytes:
        """A frame, if there is anything to tell."""
        text, told, reason = self._told(piece)
        if not (text or told or reason):
            return b""
        logprobs = _Columns(told).json() if self._has_logprobs else b"null"
        return b'%s%d,"text":%s,"logprobs":%s,"finish_reason":%s%s' % (
            self._begin, piece.choice, encode_basestring(text).encode(), logprobs,
            b'"%s"' % reason.encode() if reason else b"null", self._end,
        )  # fmt: skip

    def last(self, usage: Usage) -> bytes:
        """The tokens, if they are asked for, and [DONE]."""
        if not self._has_usage_frame:
            return DONE
        usage = self._counted(usage)
        body = {**self._head.body(KIND), "choices": [], "usage": usage.body()}
        return frame_of(body) + DONE

    def add(self, piece: Piece) -> None:
        """One more token of a text_completion."""
        text, told, reason = self._told(piece)
        choice = self._choices[piece.choice]
        choice.texts.append(text)
        choice.logprobs.add(told)
        choice.reason = reason

    def whole(self, usage: Usage) -> bytes:
        """A text_completion."""
        choices = [
            b'{"index":%d,"text":%s,"logprobs":%s,"finish_reason":%s}' % (
                index,
                as_json("".join(choice.texts)),
                choice.logprobs.json() if self._has_logprobs else b"null",
                as_json(choice.reason),
            )
            for index, choice in enumerate(self._choices)
        ]  # fmt: skip
        return whole_of(self._head.body(KIND), choices, self._counted(usage))

    def _counted(self, usage: Usage) -> Usage:
        return usage if self._has_answer else Usage(usage.prompt_tokens, 0)

    def _told(self, piece: Piece) -> tuple[str, list[_Told], str | None]:
        """What a token adds: text, log-probabilities, and why it is the last."""
        index, event = piece
        choice, text, told = self._choices[index], "", list[_Told]()
        if event.prompt_logprobs:
            self._prompts[index // self._num_samples] = event.prompt_logprobs
        if not choice.is_begun:
            choice.is_begun = True
            text, told = self._echoed(index // self._num_samples)
            choice.length = len(text)
        if self._has_answer:
            # A token that ends the answer is told too, as vLLM does: whoever asks for one token
            # and drops the last entry finds the prompt's.
            if self._has_logprobs and event.token != NO_TOKEN:
                told.append(self._of_token(event, choice.length))
            text += event.text
            choice.length += len(event.text)
        reason = event.finish_reason
        return text, told, reason if reason is None or self._has_answer else "length"

    def _echoed(self, place: int) -> tuple[str, list[_Told]]:
        echo = self._echoes[place]
        if echo is None:
            return "", []
        prompt = self._prompts.get(place, ()) if self._has_logprobs else ()
        return echo.text, list(self._of_prompt(prompt[echo.num_added :]))

    def _of_prompt(self, prompt: Iterable[PromptLogprob]) -> Iterator[_Told]:
        decoder, offset = self._tokenizer.stream_decoder(), 0
        for token, logprob, top in prompt:
            if logprob is None:
                yield _Told(token_string(self._tokenizer, token), None, None, offset)
            else:
                yield self._told_of(token, logprob, top, offset)
            offset += len(decoder.feed(token))

    def _of_token(self, event: TokenEvent, offset: int) -> _Told:
        return self._told_of(event.token, event.logprob, event.top_logprobs, offset)

    def _told_of(
        self, token: int, logprob: float, top: Iterable[tuple[int, float]], offset: int
    ) -> _Told:
        name = token_string(self._tokenizer, token)
        likeliest = {token_string(self._tokenizer, each): as_number(p) for each, p in top}
        return _Told(name, as_number(logprob), {**likeliest, name: as_number(logprob)}, offset)

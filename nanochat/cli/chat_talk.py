"""A conversation that goes on.   in: questions, a Backend   out: pieces of answers
who calls: chat.py, chat_commands.py, chat_loop.py

Knows turns and settings, and nothing of screens, keys, engines or servers.  What does not fit the
context is refused with the numbers, or forgotten oldest first where that was asked for; in both
cases it is said.
Read next: chat_local.py and chat_remote.py (the two backends), chat_commands.py.
"""

import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple, Protocol

from nanochat.common.errors import DataError, RequestTooLong
from nanochat.common.messages import Conversation, Message, PartKind
from nanochat.engine.request import SamplingParams
from nanochat.tokenizer.tokenizer import replace_surrogates

__all__ = [
    "Backend",
    "Piece",
    "Reply",
    "Settings",
    "Talk",
    "WhenFull",
    "check_turns",
    "fit_conversation",
]

WhenFull = Literal["refuse", "drop"]
"""What happens to a conversation beyond the context: refuse the question, or drop oldest turns."""

LEAST_ROOM_SHARE = 4  # dropping keeps up to a quarter of the context free for the answer


class Piece(NamedTuple):
    """Some text of an answer: words, or what the model gave the calculator and got from it."""

    kind: PartKind
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How answers are written; None: the default of whoever answers.

    Raises: ConfigError listing everything out of range.
    """

    temperature: float | None = None
    top_k: int | None = None
    """0: all tokens."""
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_tokens: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        self.sampling()

    def given(self) -> dict[str, Any]:
        """What is not left to the default, by name."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def sampling(self) -> SamplingParams:
        """The parameters for an engine of ours; a seed that was not given is 0 here."""
        given = self.given()
        if given.get("top_k") == 0:
            given["top_k"] = None
        return SamplingParams(**given)


@dataclass(slots=True)
class Reply:
    """What is known of one answer while it is written, and after."""

    message: Message = field(default_factory=lambda: Message("assistant", ""))
    """All of it, once the stream has ended or was broken off."""
    finish_reason: str | None = None
    """None: it was broken off."""
    tokens: list[int] | None = None
    """Its ids, where the backend knows them."""
    num_tokens: int | None = None
    num_prompt_tokens: int | None = None
    has_begun: bool = False
    """Whether anything of it came, be it an end without words."""
    asked_s: float = 0.0
    first_s: float = 0.0
    last_s: float = 0.0
    """When it was asked for, began, and went on, by time.perf_counter."""

    @property
    def tokens_per_s(self) -> float | None:
        """Speed of writing: the tokens after the first, over the time they took."""
        if not self.num_tokens or self.num_tokens < 2 or self.last_s <= self.first_s:
            return None
        return (self.num_tokens - 1) / (self.last_s - self.first_s)


class Backend(Protocol):
    """Who answers: an engine in this process, or a server."""

    name: str
    """The model, safe to print."""
    place: str
    """Where it runs, for the person."""
    context_len: int | None
    """Tokens of question and answer together; None: not known."""
    defaults: SamplingParams | None
    """What settings that are None stand for; None: only the server knows."""

    def stream(
        self, conversation: Conversation, settings: Settings, reply: Reply
    ) -> Generator[Piece, None, None]:
        """The pieces of the answer as they come, and all about it in `reply`; closing cancels it.

        Raises: RequestTooLong beyond the context; NanochatError for what else goes wrong.
        """

    def count(self, conversation: Conversation) -> int | None:
        """Tokens of the conversation; None where only the answerer knows."""

    def close(self) -> None:
        """Let go of what it holds."""


class Talk:
    """One conversation.  `turns` are whole: each question has its answer."""

    def __init__(
        self,
        backend: Backend,
        settings: Settings,
        *,
        system: str = "",
        when_full: WhenFull = "refuse",
        remedy: str = "--when-full drop forgets the oldest turns instead",
        announce: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.backend, self.settings, self.system = backend, settings, system
        self.when_full, self.remedy, self.announce = when_full, remedy, announce
        self.turns: Conversation = ()
        self.pending: str | None = None
        """A question that has no answer yet: refused, failed, or stopped before a word."""
        self.last: Reply | None = None
        self.num_asked = 0
        self.num_context_tokens: int | None = 0

    @property
    def conversation(self) -> Conversation:
        """Everything said, after the system message."""
        return self._with_system(self.turns)

    def ask(self, question: str) -> Generator[Piece, None, None]:
        """Pieces of the answer; what came of a broken one is kept as the answer.

        Raises: RequestTooLong with the numbers, and what the backend raises; the question is then
                `pending`.
        """
        self.pending = replace_surrogates(question)
        turns = (*self.turns, Message("user", self.pending))
        yield from self._answer(self._fitted(turns))

    def retry(self) -> Generator[Piece, None, None]:
        """Another answer to the last question; the one before it stays if nothing comes.

        Raises: DataError if nothing was asked, and as `ask`.
        """
        before = self.turns
        question = self.pending if self.pending is not None else self.undo()
        try:
            yield from self.ask(question)
        finally:
            if self.pending is not None and len(before) > len(self.turns):
                self.turns, self.pending = before, None
                self._recount()

    def undo(self) -> str:
        """Take the last question and its answer back; the question.

        Raises: DataError if nothing was asked.
        """
        if self.pending is not None:
            question, self.pending = self.pending, None
            return question
        if not self.turns:
            raise DataError("nothing was asked yet")
        question, self.turns = str(self.turns[-2].content), self.turns[:-2]
        self._recount()
        return question

    def drop(self, num_turns: int | None = None) -> int:
        """Forget this many of the oldest questions with their answers; how many were forgotten.

        None: as many as the pending question needs, or the next answer; one where nobody knows.
        """
        if num_turns is None:
            num_turns = self._num_too_many()
        num_turns = min(num_turns, len(self.turns) // 2)
        self.turns = self.turns[2 * num_turns :]
        self._recount()
        return num_turns

    def clear(self) -> None:
        """Forget what was said; the system message and the settings stay."""
        self.turns, self.pending = (), None
        self._recount()

    def load(self, conversation: Conversation) -> None:
        """Go on from another conversation; a question at its end is pending.

        Raises: DataError if user and assistant do not take turns.
        """
        check_turns(conversation)
        has_system = conversation[:1] != () and conversation[0].role == "system"
        self.system = str(conversation[0].content) if has_system else ""
        turns = conversation[1:] if has_system else conversation
        self.pending = None
        if turns and turns[-1].role == "user":
            self.pending, turns = str(turns[-1].content), turns[:-1]
        self.turns = turns
        self._recount()

    def _answer(self, asked: Conversation) -> Generator[Piece, None, None]:
        while True:
            reply = self.last = Reply(asked_s=time.perf_counter())
            try:
                yield from self._stream(asked, reply)
            except RequestTooLong as error:  # of a server: we could not count
                if self.when_full == "drop" and len(asked) > 1 and not reply.has_begun:
                    asked = asked[2:]
                    self._say_forgotten(2)
                    continue
                raise RequestTooLong(f"{error} ({self.remedy})") from None
            return

    def _stream(self, asked: Conversation, reply: Reply) -> Generator[Piece, None, None]:
        settings = self.settings
        if settings.seed is not None:
            # Another for each answer, or the same chances would be drawn again.
            settings = replace(settings, seed=(settings.seed + self.num_asked) % 2**63)
        self.num_asked += 1
        try:
            with closing(self.backend.stream(self._with_system(asked), settings, reply)) as pieces:
                for piece in pieces:
                    now = time.perf_counter()
                    reply.first_s = reply.first_s or now
                    reply.last_s = now
                    yield piece
        finally:
            if reply.has_begun:
                self.turns, self.pending = (*asked, reply.message), None
                self._recount(reply)

    def _fitted(self, turns: Conversation) -> Conversation:
        """The turns as they can be asked: all of them, or the newest.

        Raises: RequestTooLong where they do not fit, or the question alone does not.
        """
        count, context_len = self._count(turns), self.backend.context_len
        if count is None or context_len is None:
            return turns
        if self.when_full == "drop":
            fitted = fit_conversation(turns, self._room(context_len), self._count)
            if forgotten := len(turns) - len(fitted):
                self._say_forgotten(forgotten)
            turns, count = fitted, self._count(fitted) or 0
        if count + 1 <= context_len:
            return turns
        alone = self._count(turns[-1:]) or 0
        if alone + 1 > context_len:
            raise RequestTooLong(
                f"the prompt has {alone} tokens but the context is {context_len}, answer included: "
                "shorten it"
            )
        raise RequestTooLong(
            f"the conversation has {count} tokens with this question but the context is "
            f"{context_len}, answer included: {self.remedy}"
        )

    def _num_too_many(self) -> int:
        """Questions to forget, with their answers, so that the next answer has room."""
        context_len = self.backend.context_len
        question = Message("user", self.pending or "")
        if context_len is None or self._count((question,)) is None:
            return 1
        turns = (*self.turns, question)
        fitted = fit_conversation(turns, self._room(context_len), self._count)
        return max(1, (len(turns) - len(fitted)) // 2)

    def _room(self, context_len: int) -> int:
        return context_len - min(
            self.settings.sampling().max_tokens, context_len // LEAST_ROOM_SHARE
        )

    def _say_forgotten(self, num_messages: int) -> None:
        self.announce(f"the context is full: the oldest {num_messages} messages are forgotten")

    def _count(self, turns: Conversation) -> int | None:
        return self.backend.count(self._with_system(turns))

    def _recount(self, reply: Reply | None = None) -> None:
        """How much of the context is taken; a server tells only with an answer."""
        self.num_context_tokens = self._count(self.turns) if self.turns else 0
        if self.num_context_tokens is None and reply is not None:
            if reply.num_prompt_tokens is not None and reply.num_tokens is not None:
                self.num_context_tokens = reply.num_prompt_tokens + reply.num_tokens

    def _with_system(self, turns: Conversation) -> Conversation:
        return (Message("system", self.system), *turns) if self.system else turns


def check_turns(conversation: Conversation) -> None:
    """Whether user and assistant take turns, after at most one system message.

    Raises: DataError naming the first message that is out of turn.
    """
    first = 1 if conversation[:1] and conversation[0].role == "system" else 0
    for index, message in enumerate(conversation[first:]):
        expected = "assistant" if index % 2 else "user"
        if message.role != expected:
            raise DataError(
                f"message {first + index} is from {message.role}, expected {expected}: user and "
                "assistant take turns, after at most one system message"
            )


def fit_conversation(
    turns: Conversation, max_tokens: int, count: Callable[[Conversation], int | None]
) -> Conversation:
    """The turns without the oldest pairs, so that `count` of them is at most `max_tokens`.

    The last question stays, whether it fits or not.
    """
    while len(turns) > 1 and (count(turns) or 0) > max_tokens:
        turns = turns[2:]
    return turns

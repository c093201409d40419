"""nanochat chat   in: a model, what a person types   out: answers   who calls: cli.main

On a terminal a line is edited with prompt_toolkit and the answer streams below it; in a pipe each
line is a turn; -p asks once.  What no longer fits the context is forgotten, oldest turns first.
Read next: terminal.py (what may reach the screen), tokenizer/chat.py (turns -> tokens).
"""

import json
import sys
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import tyro

from nanochat.cli.model_options import Opened, SamplingOptions, open_model
from nanochat.cli.terminal import notice, print_answer
from nanochat.common.errors import ConfigError, NanochatError
from nanochat.common.messages import Conversation, Message
from nanochat.engine.request import Request, SamplingParams
from nanochat.tokenizer.chat import parse_reply, render_prompt
from nanochat.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

__all__ = ["Chat", "Config", "fit_conversation", "run"]

HELP = """\
/temperature N   0 is always the likeliest word, 1 is as the model has it
/clear           forget what was said
/help            show these
/quit            leave; so does Ctrl-D.  Ctrl-C stops an answer"""

LEAST_ROOM_SHARE = 4  # a quarter of the context is kept free for the answer


@dataclass(frozen=True, kw_only=True)
class Config(SamplingOptions):
    """Talk with a model in the terminal, or through a pipe, one turn a line."""

    prompt: Annotated[str | None, tyro.conf.arg(aliases=["-p"])] = None
    """Ask this, print the answer and leave."""
    system: str | None = None
    """What the model is told before the conversation; never forgotten."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt == "":
            raise ConfigError("the prompt is empty, expected at least one character: pass -p TEXT")


def run(config: Config) -> int:
    """0 once the conversation has ended.

    Raises: CheckpointError for the model, RequestTooLong for a question larger than the context.
    """
    opened = open_model(config)
    if not opened.is_chat:
        notice(f"{opened.name} is a base model: it continues text; nanochat sft makes it answer")
    chat = Chat(opened, config)
    if config.prompt is not None:
        _answer_line(chat, config.prompt, is_json=config.json)
    elif sys.stdin.isatty():
        _converse(chat)
    else:
        for line in _lines():
            _answer_line(chat, line, is_json=config.json)
    return 0


class Chat:
    """One conversation with one model."""

    def __init__(self, opened: Opened, config: Config) -> None:
        self.engine = opened.engine
        self.sampling: SamplingParams = config.sampling(self.engine.tokenizer)
        self._system: Conversation = (Message("system", config.system),) if config.system else ()
        self.turns: Conversation = ()
        self.finish_reason: str | None = None

    def ask(self, question: str) -> Generator[str, None, None]:
        """Pieces of the answer as they come; what was said is remembered, also of a broken answer.

        Raises: RequestTooLong if the question alone does not fit.
        """
        turns = (*self.turns, Message("user", question))
        tokenizer = self.engine.tokenizer
        fitted = fit_conversation(self._system, turns, tokenizer, self._room())
        if forgotten := len(turns) - len(fitted):
            notice(f"the context is full: the oldest {forgotten} messages are forgotten")
        request = Request(
            request_id="chat",
            prompt_tokens=tuple(render_prompt((*self._system, *fitted), tokenizer)),
            # Another seed for each turn, or the same chances would be drawn again.
            sampling=replace(self.sampling, seed=(self.sampling.seed + len(turns)) % 2**63),
        )
        tokens: list[int] = []
        self.finish_reason = "stop"
        try:
            with closing(self.engine.stream(request)) as stream:
                for event in stream:
                    tokens.append(event.token)
                    self.finish_reason = event.finish_reason
                    yield event.text
        finally:
            if tokens:
                self.turns = (*fitted, parse_reply(tokens, tokenizer))

    @property
    def temperature(self) -> float:
        """How daring the answers are."""
        return self.sampling.temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        """Takes effect with the next answer."""
        self.sampling = replace(self.sampling, temperature=value)

    def clear(self) -> None:
        """Forget what was said."""
        self.turns = ()

    def _room(self) -> int:
        context_len = self.engine.context_len
        return context_len - min(self.sampling.max_tokens, context_len // LEAST_ROOM_SHARE)


def fit_conversation(
    system: Conversation, turns: Conversation, tokenizer: Tokenizer, max_tokens: int
) -> Conversation:
    """The turns without the oldest pairs, so that the prompt has at most `max_tokens` tokens.

    The last question stays, whether it fits or not.
    """
    while len(turns) > 1 and len(render_prompt((*system, *turns), tokenizer)) > max_tokens:
        turns = turns[2:]
    return turns


def _answer_line(chat: Chat, question: str, *, is_json: bool) -> None:
    pieces = []
    for piece in chat.ask(question):
        pieces.append(piece)
        if not is_json:
            print_answer(piece)
    if is_json:
        result = {"prompt": question, "text": "".join(pieces), "finish_reason": chat.finish_reason}
        print(json.dumps(result, ensure_ascii=False), flush=True)
    else:
        print(flush=True)


def _lines() -> Iterator[str]:
    """The lines of standard input that say something; bytes that are no UTF-8 become U+FFFD."""
    for line in sys.stdin.buffer:
        if text := line.decode("utf-8", errors="replace").strip():
            yield text


# ------------------------------------------------------------------------------ on a terminal


def _converse(chat: Chat) -> None:
    from prompt_toolkit import PromptSession

    print("Type a message; /help lists commands, Ctrl-D leaves.")
    session: PromptSession[str] = PromptSession()
    while (line := _read(session)) is not None:
        if line.startswith("/") and "/" not in line[1:]:
            if not _command(chat, line):
                return
        elif line:
            _answer_here(chat, line)


def _read(session: "PromptSession[str]") -> str | None:
    """What was typed; None at the end of it.  Ctrl-C gives up the line."""
    while True:
        try:
            return session.prompt("> ").strip()
        except KeyboardInterrupt:
            continue
        except EOFError:
            return None


def _answer_here(chat: Chat, question: str) -> None:
    """Stream the answer; Ctrl-C stops it and an error is told, the conversation goes on."""
    try:
        with closing(chat.ask(question)) as pieces:
            for piece in pieces:
                print_answer(piece)
        print()
    except KeyboardInterrupt:
        print("\n(stopped)")
    except NanochatError as error:
        notice(str(error))


def _command(chat: Chat, line: str) -> bool:
    """Do what a line beginning with a slash says; False to leave."""
    word, _, rest = line.partition(" ")
    if word in ("/quit", "/exit"):
        return False
    if word == "/clear":
        chat.clear()
        print("(forgotten)")
    elif word == "/temperature":
        _set_temperature(chat, rest)
    elif word == "/help":
        print(HELP)
    else:
        print(f"there is no command {word}; /help lists them")
    return True


def _set_temperature(chat: Chat, text: str) -> None:
    try:
        chat.temperature = float(text)
    except ValueError as error:  # no number, or one out of range
        print(f"{error}; it stays {chat.temperature:g}")
    else:
        print(f"(temperature {chat.temperature:g})")

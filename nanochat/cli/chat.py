"""nanochat chat   in: a model or a server, what a person types   out: answers
who calls: cli.main

    on a terminal      a conversation: Markdown as it is written, commands after a slash
    -p TEXT            one question, one answer; -p - reads the question from standard input
    in a pipe          all of standard input is one question; --lines: each line is a turn
Read next: chat_talk.py (the conversation), chat_loop.py (the terminal), chat_remote.py (--url).
"""

import io
import json
import sys
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import Annotated

import tyro

from nanochat.cli.chat_interrupt import quiet_keys, show_answer
from nanochat.cli.chat_screen import make_screen
from nanochat.cli.chat_talk import Backend, Settings, Talk, WhenFull
from nanochat.cli.model_options import ModelOptions, open_model
from nanochat.cli.terminal import notice
from nanochat.common.env import api_key_from_env
from nanochat.common.errors import ConfigError
from nanochat.common.files import home_dir

__all__ = ["Config", "open_backend", "run"]


@dataclass(frozen=True, kw_only=True)
class Config(ModelOptions):
    """Talk with a model in the terminal, or through a pipe.

    In a pipe all of standard input is one question (--lines: each line is one), and the answer
    comes as the model writes it.
    """

    model: tyro.conf.Positional[str] = ""
    """A run (d12, d12/sft, d12/sft@1500), hf:org/name[@revision] on the Hugging Face Hub, or a
    directory: ours, one of karpathy/nanochat's, or one for transformers. With --url: what the
    server calls it; left out, the first it lists."""
    url: str | None = None
    """An OpenAI-compatible server that answers in place of a model here: http://host:8000/v1."""
    api_key_env: str | None = None
    """The environment variable that holds the server's key. None: NANOCHAT_API_KEY, if it is
    set."""
    prompt: Annotated[str | None, tyro.conf.arg(aliases=["-p"])] = None
    """Ask this, print the answer and leave; - reads it from standard input."""
    lines: bool = False
    """Each line of standard input is a turn of one conversation."""
    system: str | None = None
    """What the model is told before the conversation; never forgotten."""
    when_full: WhenFull = "refuse"
    """A conversation beyond the context: refuse the question, or drop the oldest turns and say
    so."""
    plain: bool = False
    """Print answers as they are written, without Markdown; NO_COLOR and pipes do so too."""
    temperature: float | None = None
    """0 always takes the likeliest token; 1 samples from the model as it is. None: 0.8, or the
    server's default."""
    top_k: int | None = None
    """Only the k likeliest tokens may be chosen; 0: all. None: 50, or the server's default."""
    top_p: float | None = None
    """Only the likeliest tokens whose probabilities add up to p may be chosen. None: all."""
    min_p: float | None = None
    """Only tokens at least this many times as likely as the likeliest may be chosen. None: all."""
    repetition_penalty: float | None = None
    """Above 1, what has been said becomes less likely. None: 1."""
    max_tokens: int | None = None
    """Most tokens of an answer. None: 256, or the server's default."""
    seed: int | None = None
    """Equal seeds give equal answers. None: another answer each time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.settings()
        if not self.model and self.url is None:
            raise ConfigError(
                "there is no model: name a run or a directory, or pass --url http://host:port/v1"
            )
        if self.prompt is not None and not self.prompt.strip():
            raise ConfigError("the prompt is empty, expected at least one character: pass -p TEXT")
        if self.prompt is not None and self.lines:
            raise ConfigError("-p and --lines are given together, expected one of them")
        if self.url is not None:
            self._refuse_flags_of_a_model_here()

    def settings(self) -> Settings:
        """How answers are written.

        Raises: ConfigError listing everything out of range.
        """
        return Settings(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            max_tokens=self.max_tokens,
            seed=self.seed,
        )

    def _refuse_flags_of_a_model_here(self) -> None:
        given = {
            "--dtype": self.dtype != "auto",
            "--kv-memory": self.kv_memory is not None,
            "--device": self.device is not None,
        }
        if names := [name for name, is_given in given.items() if is_given]:
            raise ConfigError(
                f"{' and '.join(names)} and --url are given together: with --url the server decides"
            )


def run(config: Config) -> int:
    """0 once the conversation has ended.

    Raises: CheckpointError for the model, EngineError for the server, RequestTooLong for what is
            larger than the context, KeyboardInterrupt where no conversation goes on.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal may know fewer characters
    is_conversation = config.prompt is None and _is_terminal()
    if is_conversation and config.json:
        raise ConfigError("--json is for one question: pass -p TEXT, or pipe the question in")
    question = None if is_conversation or config.lines else _question(config)
    quiet = quiet_keys() if is_conversation else nullcontext()
    with quiet, closing(open_backend(config)) as backend:
        talk = Talk(
            backend,
            config.settings(),
            system=config.system or "",
            when_full=config.when_full,
            announce=notice,
        )
        if is_conversation:
            _converse(talk, config)
        else:
            for asked in _lines() if question is None else [question]:
                _answer(talk, asked, config)
    return 0


def open_backend(config: Config) -> Backend:
    """Who answers: the server at --url, or the model, loaded now.

    Raises: CheckpointError, ConfigError, EngineError.
    """
    if config.url is not None:
        from nanochat.cli.chat_remote import RemoteBackend

        return RemoteBackend(config.url, config.model, api_key_from_env(config.api_key_env))
    from nanochat.cli.chat_local import LocalBackend

    opened = open_model(config)
    if not opened.is_chat:
        notice(f"{opened.name} is a base model: it continues text; nanochat sft makes it answer")
    return LocalBackend(opened)


def _converse(talk: Talk, config: Config) -> None:
    from nanochat.cli.chat_loop import converse

    talk.remedy = "/drop forgets the oldest turns, /clear all of them, then /retry asks again"
    converse(talk, make_screen(plain=config.plain), home_dir(config.home))


def _answer(talk: Talk, question: str, config: Config) -> None:
    """One answer on standard output; as an object, once it is complete."""
    if not config.json:
        show_answer(make_screen(plain=config.plain), talk.ask(question), lambda: "Ctrl-C stops")
        return
    with closing(talk.ask(question)) as pieces:
        text = "".join(piece.text for piece in pieces if piece.kind == "text")
    reply = talk.last
    assert reply is not None, "an answer that ended was asked for"
    result = {
        "model": talk.backend.name,
        "prompt": question,
        "text": text,
        "tokens": reply.tokens,
        "finish_reason": reply.finish_reason,
        "num_tokens": reply.num_tokens,
        "num_prompt_tokens": reply.num_prompt_tokens,
    }
    print(json.dumps(result, ensure_ascii=False), flush=True)


def _question(config: Config) -> str:
    """The prompt, or all of standard input."""
    if config.prompt is not None and config.prompt != "-":
        return config.prompt
    text = b"" if sys.stdin is None else sys.stdin.buffer.read()
    if question := text.decode("utf-8", errors="replace").strip():
        return question
    raise ConfigError("standard input is empty, expected a question: pass -p TEXT, or pipe it in")


def _lines() -> Iterator[str]:
    """The lines of standard input that say something; bytes that are no UTF-8 become U+FFFD."""
    for line in () if sys.stdin is None else sys.stdin.buffer:
        if text := line.decode("utf-8", errors="replace").strip():
            yield text


def _is_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()

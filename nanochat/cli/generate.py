"""nanochat generate   in: a model, a prompt   out: its continuation   who calls: cli.main

Read next: model_options.py (the flags), engine/engine.py (where tokens come from).
"""

import json
from contextlib import closing
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from nanochat.cli.model_options import Opened, SamplingOptions, open_model
from nanochat.cli.terminal import notice, print_answer
from nanochat.common.errors import ConfigError
from nanochat.common.messages import Message
from nanochat.engine.request import Request, TokenEvent
from nanochat.tokenizer.chat import render_prompt

__all__ = ["Config", "cut_prompt", "run"]


@dataclass(frozen=True, kw_only=True)
class Config(SamplingOptions):
    """Continue a text with a base model, or have a chat model answer it; the tokens stream."""

    prompt: Annotated[str | None, tyro.conf.arg(aliases=["-p"])] = None
    """The text to begin from."""
    prompt_tokens: str | None = None
    """Tokens to begin from, in place of text: 503,84,260. Taken as they are."""
    chat: Literal["auto", "yes", "no"] = "auto"
    """Whether the prompt is a user's message. auto: if the model has been taught conversations."""
    beyond_context: Literal["cut", "slide"] = "cut"
    """A prompt beyond the context: cut it from the left, or go on as karpathy/nanochat does."""
    strict: bool = False
    """Refuse a prompt that would be cut."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt is None and self.prompt_tokens is None:
            raise ConfigError("there is no prompt: pass -p TEXT, or --prompt-tokens 503,84,260")
        if self.prompt is not None and self.prompt_tokens is not None:
            raise ConfigError("both -p and --prompt-tokens are given, expected one of them")
        if self.prompt == "":
            raise ConfigError("the prompt is empty, expected at least one character: pass -p TEXT")
        if self.prompt_tokens is not None:
            _parse_tokens(self.prompt_tokens)


def run(config: Config) -> int:
    """0 once the continuation is printed.

    Raises: CheckpointError for the model, RequestTooLong with --strict, TokenizerError for tokens
            outside the vocabulary.
    """
    opened = open_model(config)
    engine = opened.engine
    tokens, num_kept = _prompt(config, opened)
    if config.beyond_context == "cut" and not config.strict:
        full, tokens = tokens, cut_prompt(tokens, engine.context_len, config.max_tokens, num_kept)
        if len(tokens) < len(full):
            notice(
                f"the prompt has {len(full)} tokens but the context is {engine.context_len}, "
                f"answer included: its beginning was cut, {len(tokens)} are left (--strict refuses)"
            )
    request = Request(
        request_id="generate",
        prompt_tokens=tuple(tokens),
        sampling=config.sampling(engine.tokenizer),
        beyond_context="slide" if config.beyond_context == "slide" else "refuse",
    )
    events: list[TokenEvent] = []
    with closing(engine.stream(request)) as stream:
        for event in stream:
            events.append(event)
            if not config.json:
                print_answer(event.text)
    if config.json:
        print(json.dumps(_result(opened, request, events), ensure_ascii=False))
    else:
        print(flush=True)
    return 0


def cut_prompt(tokens: list[int], context_len: int, max_tokens: int, num_kept: int) -> list[int]:
    """A prompt that fits: what does not is cut from the left, after the first `num_kept` tokens.

    A prompt that is cut leaves room for the answer, though never more than half of the context.
    """
    if len(tokens) < context_len:
        return tokens
    room = context_len - min(max_tokens, context_len // 2)
    return tokens[:num_kept] + tokens[len(tokens) - (room - num_kept) :]


def _prompt(config: Config, opened: Opened) -> tuple[list[int], int]:
    """The tokens to begin from, and how many at their beginning are kept if they must be cut."""
    tokenizer = opened.engine.tokenizer
    if config.prompt is None:
        tokens = _parse_tokens(config.prompt_tokens or "")
        return tokens, int(tokens[:1] == [tokenizer.bos])
    if config.chat == "yes" or (config.chat == "auto" and opened.is_chat):
        return render_prompt((Message("user", config.prompt),), tokenizer), 2  # bos, user_start
    return [tokenizer.bos, *tokenizer.encode(config.prompt)], 1


def _parse_tokens(text: str) -> list[int]:
    try:
        tokens = [int(word) for word in text.replace(",", " ").split()]
    except ValueError:
        tokens = []
    if not tokens:
        raise ConfigError(
            f"--prompt-tokens is {text[:60]!r}, expected whole numbers such as 503,84,260"
        )
    return tokens


def _result(opened: Opened, request: Request, events: list[TokenEvent]) -> dict[str, object]:
    return {
        "model": opened.name,
        "prompt_tokens": list(request.prompt_tokens),
        "tokens": [event.token for event in events if event.finish_reason != "stop"],
        "text": "".join(event.text for event in events),
        "finish_reason": events[-1].finish_reason,
        "seed": request.sampling.seed,
    }

"""nanochat generate   in: a model, a prompt   out: its continuation   who calls: cli.main

Read next: model_options.py (the flags), engine/engine.py (where tokens come from).
"""

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from nanochat.cli.model_options import Opened, SamplingOptions, open_model
from nanochat.cli.terminal import notice, print_answer
from nanochat.common.errors import ConfigError, DataError
from nanochat.common.messages import Message
from nanochat.engine.request import Request, TokenEvent
from nanochat.server.words import Words
from nanochat.tokenizer.chat import render_prompt

__all__ = ["Config", "cut_prompt", "read_prompts", "run"]


@dataclass(frozen=True, kw_only=True)
class Config(SamplingOptions):
    """Continue a text with a base model, or have a chat model answer it; the tokens stream."""

    prompt: Annotated[str | None, tyro.conf.arg(aliases=["-p"])] = None
    """The text to begin from."""
    prompts_file: str | None = None
    """A file of prompts, continued together: a prompt a line, or JSON strings in a .jsonl file."""
    n: int = 1
    """Answers to each prompt, each another."""
    prompt_tokens: str | None = None
    """Tokens to begin from, in place of text: 503,84,260. Taken as they are."""
    chat: Literal["auto", "yes", "no"] = "auto"
    """Whether the prompt is a user's message. auto: if the model has been taught conversations."""
    tools: Literal["auto", "yes", "no"] = "auto"
    """Whether what the model writes for the calculator is computed, and shown between
    <|python_start|>, <|output_start|> and their ends. auto: if the prompt is a user's message."""
    beyond_context: Literal["cut", "slide"] = "cut"
    """A prompt beyond the context: cut it from the left, or go on as karpathy/nanochat does."""
    strict: bool = False
    """Refuse a prompt that would be cut."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [
            name
            for name in ("prompt", "prompt_tokens", "prompts_file")
            if getattr(self, name) is not None
        ]
        if not given:
            raise ConfigError("there is no prompt: pass -p TEXT, or --prompt-tokens 503,84,260")
        if len(given) > 1:
            raise ConfigError(f"{' and '.join(given)} are given together, expected one of them")
        if self.prompt == "":
            raise ConfigError("the prompt is empty, expected at least one character: pass -p TEXT")
        if self.prompt_tokens is not None:
            _parse_tokens(self.prompt_tokens)
        if self.n < 1:
            raise ConfigError(f"n is {self.n}, expected at least 1")


def run(config: Config) -> int:
    """0 once the continuation is printed.

    Raises: CheckpointError for the model, RequestTooLong with --strict, TokenizerError for tokens
            outside the vocabulary, DataError for the file of prompts.
    """
    texts = None if config.prompts_file is None else read_prompts(Path(config.prompts_file))
    opened = open_model(config)
    if texts is None:
        requests = [_request(config, opened, "generate", config.prompt)]
    else:
        requests = [_request(config, opened, f"line {n}", text) for n, text in enumerate(texts, 1)]
    if len(requests) == 1 and config.n == 1 and not config.json:
        texts_of = _texts(opened, requests[0])
        with closing(opened.engine.stream(requests[0])) as stream:
            for event in stream:
                print_answer(texts_of(event))
        print(flush=True)
        return 0
    for request, events in zip(requests, opened.engine.generate(requests), strict=True):
        if config.json:
            print(json.dumps(_result(opened, request, events), ensure_ascii=False))
        else:
            for sample in range(config.n):
                print(f"--- {request.request_id}, answer {sample + 1} of {config.n}")
                texts_of = _texts(opened, request)
                print_answer("".join(texts_of(e) for e in events if e.sample == sample) + "\n")
    return 0


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file: its lines that are not empty, or the JSON strings of a .jsonl file.

    Raises: DataError naming file and line.
    """
    try:
        lines = path.expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable as text ({error})") from error
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        prompts.append(_json_string(path, number, line) if path.suffix == ".jsonl" else line)
    if not prompts:
        raise DataError(f"{path}: holds no prompt, expected at least one line")
    return prompts


def _json_string(path: Path, number: int, line: str) -> str:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise DataError(f"{path}:{number}: not JSON ({error}), expected a string") from error
    if not isinstance(value, str) or not value:
        raise DataError(f"{path}:{number}: {line[:40]}, expected a string that is not empty")
    return value


def _request(config: Config, opened: Opened, name: str, prompt: str | None) -> Request:
    """What to ask for one prompt, cut if it must be."""
    engine = opened.engine
    tokens, num_kept = _prompt(config, opened, prompt)
    if config.beyond_context == "cut" and not config.strict:
        full, tokens = tokens, cut_prompt(tokens, engine.context_len, config.max_tokens, num_kept)
        if len(tokens) < len(full):
            notice(
                f"the prompt has {len(full)} tokens but the context is {engine.context_len}, "
                f"answer included: its beginning was cut, {len(tokens)} are left (--strict refuses)"
            )
    return Request(
        request_id=name,
        prompt_tokens=tuple(tokens),
        sampling=config.sampling(engine.tokenizer),
        num_samples=config.n,
        tools=config.tools == "yes" or (config.tools == "auto" and _is_asked(config, opened)),
        beyond_context="slide" if config.beyond_context == "slide" else "refuse",
    )


def cut_prompt(tokens: list[int], context_len: int, max_tokens: int, num_kept: int) -> list[int]:
    """A prompt that fits: what does not is cut from the left, after the first `num_kept` tokens.

    A prompt that is cut leaves room for the answer, though never more than half of the context.
    """
    if len(tokens) < context_len:
        return tokens
    room = context_len - min(max_tokens, context_len // 2)
    return tokens[:num_kept] + tokens[len(tokens) - (room - num_kept) :]


def _prompt(config: Config, opened: Opened, prompt: str | None) -> tuple[list[int], int]:
    """The tokens to begin from, and how many at their beginning are kept if they must be cut."""
    tokenizer = opened.engine.tokenizer
    if prompt is None:
        tokens = _parse_tokens(config.prompt_tokens or "")
        return tokens, int(tokens[:1] == [tokenizer.bos])
    if _is_asked(config, opened):
        return render_prompt((Message("user", prompt),), tokenizer), 2  # bos, user_start
    return [tokenizer.bos, *tokenizer.encode(prompt)], 1


def _is_asked(config: Config, opened: Opened) -> bool:
    """Whether the prompt is a user's message."""
    is_chat = config.chat == "yes" or (config.chat == "auto" and opened.is_chat)
    return is_chat and config.prompt_tokens is None


def _texts(opened: Opened, request: Request) -> Callable[[TokenEvent], str]:
    """What is shown of each event of one answer."""
    if not request.tools:
        return lambda event: event.text
    return Words(opened.engine.tokenizer, is_shown=True).of


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
    answers = [
        _answer([event for event in events if event.sample == sample], _texts(opened, request))
        for sample in range(request.num_samples)
    ]
    result = {
        "model": opened.name,
        "prompt_tokens": list(request.prompt_tokens),
        **answers[0],
        "seed": request.sampling.seed,
    }
    return result if len(answers) == 1 else {**result, "answers": answers}


def _answer(events: list[TokenEvent], texts_of: Callable[[TokenEvent], str]) -> dict[str, object]:
    return {
        "tokens": [event.token for event in events if event.finish_reason != "stop"],
        "text": "".join(map(texts_of, events)),
        "finish_reason": events[-1].finish_reason,
    }

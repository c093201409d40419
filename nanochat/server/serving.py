"""A checked request -> its answer.   in: engine requests, frames   out: a response
who calls: chat.py, completions.py, legacy.py

What the routes for text have in common: the model's name, the length of a prompt, the cache, and
how an answer goes out.
Read next: stream.py (the answer), chat.py (one of the routes).
"""

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from fastapi import Request
from fastapi.responses import Response

from nanochat.common.errors import ClientLeft, ConfigError, NanochatError, Overloaded
from nanochat.engine.request import Request as EngineRequest
from nanochat.engine.request import SamplingParams
from nanochat.server.cache_key import CachePolicy, cache_policy
from nanochat.server.errors import ApiError, shown, to_api_error
from nanochat.server.frames import Frames, Piece
from nanochat.server.gate import Gate
from nanochat.server.requests import SampledRequest
from nanochat.server.stream import Answers, EventStream, while_connected
from nanochat.tokenizer.chat import stop_tokens
from nanochat.tokenizer.tokenizer import Tokenizer

__all__ = ["ServedModel", "Serving", "TextParam", "new_id"]

MAX_ANSWER_SIZE = 2**19
"""Tokens and log-probabilities that the answers to one body may have: about 120 bytes each, until
the last is sent.  128 answers of 4,096 tokens, or 12 of 2,048 with 20 log-probabilities each."""

MAX_TOKENIZING = 32
"""Bodies of /tokenize and /detokenize at once: each may be 1 MiB, and a token a byte."""

TextParam = Literal["messages", "prompt"]
"""What a body calls its text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedModel:
    """What the server knows of the model behind the engine."""

    name: str
    """What clients call it."""
    aliases: tuple[str, ...] = ()
    """What they may call it, too."""
    tokenizer: Tokenizer
    context_len: int
    defaults: SamplingParams = field(default_factory=SamplingParams)
    """Sampling where a request says nothing; max_tokens and seed are not taken from here."""
    created: int = field(default_factory=lambda: int(time.time()))
    """When it was made, in seconds since 1970."""
    model_hash: str = ""
    """What tells its weights from others; empty if nothing does."""
    has_tools: bool = False
    """Whether it was taught to use the calculator."""
    devices: tuple[str, ...] = ("cpu",)
    """Of each engine."""

    @property
    def names(self) -> tuple[str, ...]:
        """All that it may be called."""
        return (self.name, *self.aliases)


class Serving:
    """The requests of one app."""

    def __init__(self, gate: Gate, model: ServedModel) -> None:
        self.gate, self.model = gate, model
        self.stop_tokens = stop_tokens(model.tokenizer)
        self._longest_token = max(model.tokenizer.token_bytes)
        self._num_tokenizing = 0

    @contextlib.contextmanager
    def tokenizing(self) -> Iterator[None]:
        """While a text is made tokens of, or the other way, for its own sake.

        Raises: Overloaded if too many are.
        """
        if self._num_tokenizing >= MAX_TOKENIZING:
            self.gate.metrics.rejected("queue_full")
            raise Overloaded(
                f"{self._num_tokenizing} texts are being tokenized, of at most {MAX_TOKENIZING}: "
                "ask again later"
            )
        self._num_tokenizing += 1
        try:
            yield
        finally:
            self._num_tokenizing -= 1

    def check_model(self, name: str) -> None:
        """Whether it is served.

        Raises: ApiError 404.
        """
        if name not in self.model.names:
            message = f"The model `{shown(name)}` does not exist or you do not have access to it."
            raise ApiError(404, message, "model_not_found", param="model")

    def check_characters(self, num_characters: int, param: TextParam) -> None:
        """Refuse what cannot fit the context, before it is made tokens of.

        Raises: ApiError 400.
        """
        context_len = self.model.context_len
        if num_characters > context_len * self._longest_token:
            raise _too_long(
                f"This model's maximum context length is {context_len} tokens. However, your "
                f"{param} have {num_characters} characters, which are more. Please reduce the "
                f"length of the {param}.",
                param,
            )

    def max_tokens(self, num_prompt: int, asked: int | None, param: TextParam) -> int:
        """How long an answer may be; it fills the context where the request says nothing.  0 is
        asked for by who wants a prompt scored: the one token that an engine writes is not told, so
        that the prompt may fill the context.

        Raises: ApiError 400 if prompt and answer do not fit the context.
        """
        context_len = self.model.context_len
        begin = f"This model's maximum context length is {context_len} tokens. However, "
        least = 1 if asked is None else asked
        if num_prompt > context_len:
            raise _too_long(
                f"{begin}your {param} resulted in {num_prompt} tokens. Please reduce the length of "
                f"the {param}.",
                param,
            )
        if num_prompt + least > context_len:
            raise _too_long(
                f"{begin}you requested {num_prompt + least} tokens ({num_prompt} in the {param}, "
                f"{least} in the completion). Please reduce the length of the {param} or the "
                "completion.",
                param,
            )
        return context_len - num_prompt if asked is None else max(1, asked)

    def check_bias(self, body: SampledRequest) -> None:
        """Whether the biased tokens are tokens.

        Raises: ApiError 400.
        """
        vocab_size = self.model.tokenizer.vocab_size
        if any(token >= vocab_size for token in body.logit_bias):
            message = (
                f"Invalid value for 'logit_bias': expected token ids below {vocab_size}, the size "
                "of the vocabulary."
            )
            raise ApiError(400, message, "invalid_value", param="logit_bias")

    def policy(self, body: SampledRequest, request: Request) -> CachePolicy:
        """What the request allows the response cache."""
        temperature = body.temperature
        if temperature is None:
            temperature = self.model.defaults.temperature
        has_seed = body.seed is not None
        return cache_policy(
            is_deterministic=has_seed or temperature == 0,
            has_seed=has_seed,
            asked=None if body.cache is None else body.cache.model_dump(by_alias=True),
            header=request.headers.get("cache-control"),
        )

    async def respond(
        self,
        asked: Sequence[EngineRequest],
        frames: Frames,
        request: Request,
        *,
        policy: CachePolicy,
        is_stream: bool,
        param: TextParam = "messages",
    ) -> Response:
        """The answer, whole or as it is written.

        Raises: ApiError for what is wrong before there is any of it; ClientLeft if nobody is there
                to be answered.
        """
        if await request.is_disconnected():  # after many have left, the next need not wait
            raise ClientLeft("the client went away before the answer began")
        _check_size(asked)
        is_schema = any(each.schema is not None for each in asked)
        ask = partial(
            Answers,
            self.gate,
            asked,
            tenant=request.state.tenant,
            policy=policy,
            loop=asyncio.get_running_loop(),
        )
        try:
            answers = await _made_beside(ask) if is_schema else ask()
        except NanochatError as error:
            raise _named(error, param, is_schema=is_schema) from error
        keep_alive_s = self.gate.settings.keep_alive_s
        is_handed_on = False
        try:
            if is_stream:
                await while_connected(request.receive, answers.begun(keep_alive_s))
                is_handed_on = True
                return EventStream(answers, frames, keep_alive_s=keep_alive_s)
            body = await while_connected(request.receive, _whole(answers, frames))
            return Response(body, media_type="application/json", headers=answers.headers)
        except NanochatError as error:
            raise _named(error, param, is_schema=is_schema) from error
        finally:
            if not is_handed_on:
                answers.close()


async def _whole(answers: Answers, frames: Frames) -> bytes:
    """The body of an answer that is not streamed; written as its tokens come."""

    def add(group: Sequence[Piece]) -> None:
        for piece in group:
            frames.add(piece)

    async for _ in answers.told(add):
        pass
    return frames.whole(answers.usage)


def new_id(kind: str) -> str:
    """A name for an answer."""
    return f"{kind}-{uuid.uuid4().hex}"


def _too_long(message: str, param: TextParam) -> ApiError:
    """A text that does not fit the context."""
    return ApiError(400, message, "context_length_exceeded", param=param)


def _check_size(asked: Sequence[EngineRequest]) -> None:
    """Whether what is told of all answers together stays within bounds.

    Raises: ApiError 400.
    """
    size = 0
    for each in asked:
        size += each.num_samples * each.sampling.max_tokens * (1 + (each.sampling.logprobs or 0))
        if each.prompt_logprobs is not None:
            size += len(each.prompt_tokens) * (1 + each.prompt_logprobs)
    if size > MAX_ANSWER_SIZE:
        message = (
            f"Invalid value for 'max_tokens': n x max_tokens x (1 + top_logprobs) comes to {size} "
            f"for all prompts, expected at most {MAX_ANSWER_SIZE}. Ask for fewer answers, tokens "
            "or log-probabilities at once."
        )
        raise ApiError(400, message, "invalid_value", param="max_tokens")


def _named(error: NanochatError, param: TextParam, *, is_schema: bool) -> Exception:
    """The same with the name of the text, or of the schema, in this body; what says when to ask
    again stays as it is."""
    found = to_api_error(error, param)
    if found.param is None and is_schema and isinstance(error, ConfigError):
        found.param = "response_format"
    return found if found.param is not None else error


async def _made_beside(ask: Callable[[], Answers]) -> Answers:
    """Answers asked for in another thread: a schema takes milliseconds to compile, or half a
    second."""
    made = asyncio.get_running_loop().run_in_executor(None, ask)
    try:
        return await asyncio.shield(made)
    except asyncio.CancelledError:  # nobody will listen to what is being asked for
        made.add_done_callback(_close)
        raise


def _close(made: "asyncio.Future[Answers]") -> None:
    if made.exception() is None:
        made.result().close()

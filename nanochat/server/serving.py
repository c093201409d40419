"""A checked request -> its answer.   in: engine requests, frames   out: a response
who calls: chat.py, completions.py, legacy.py

What the routes for text have in common: the model's name, the length of a prompt, the cache, and
how an answer goes out.
Read next: stream.py (the answer), chat.py (one of the routes).
"""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from nanochat.common.errors import ClientLeft, ConfigError, NanochatError
from nanochat.engine.request import Request as EngineRequest
from nanochat.engine.request import SamplingParams
from nanochat.server.cache_key import CachePolicy, cache_policy
from nanochat.server.errors import ApiError, shown, to_api_error
from nanochat.server.frames import Frames
from nanochat.server.gate import Gate
from nanochat.server.requests import SampledRequest
from nanochat.server.stream import Answers, EventStream, while_connected
from nanochat.tokenizer.chat import stop_tokens
from nanochat.tokenizer.tokenizer import Tokenizer

__all__ = ["ServedModel", "Serving", "TextParam", "new_id"]

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
        """How long an answer may be; it fills the context where the request says nothing.

        Raises: ApiError 400 if prompt and answer do not fit the context.
        """
        context_len = self.model.context_len
        begin = f"This model's maximum context length is {context_len} tokens. However, "
        if num_prompt + 1 > context_len:
            raise _too_long(
                f"{begin}your {param} resulted in {num_prompt} tokens. Please reduce the length of "
                f"the {param}.",
                param,
            )
        if asked is not None and num_prompt + asked > context_len:
            raise _too_long(
                f"{begin}you requested {num_prompt + asked} tokens ({num_prompt} in the {param}, "
                f"{asked} in the completion). Please reduce the length of the {param} or the "
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
        try:
            answers = Answers(self.gate, asked, tenant=request.state.tenant, policy=policy)
        except ConfigError as error:
            is_schema = any(each.schema is not None for each in asked)
            named = "response_format" if is_schema else None
            raise ApiError(400, str(error), "invalid_value", param=named) from error
        except NanochatError as error:
            raise _named(error, param) from error
        keep_alive_s = self.gate.settings.keep_alive_s
        is_handed_on = False
        try:
            if is_stream:
                await while_connected(request.receive, answers.begun(keep_alive_s))
                is_handed_on = True
                return EventStream(answers, frames, keep_alive_s=keep_alive_s)
            pieces = await while_connected(request.receive, answers.all())
            return JSONResponse(frames.whole(pieces, answers.usage), headers=answers.headers)
        except NanochatError as error:
            raise _named(error, param) from error
        finally:
            if not is_handed_on:
                answers.close()


def new_id(kind: str) -> str:
    """A name for an answer."""
    return f"{kind}-{uuid.uuid4().hex}"


def _too_long(message: str, param: TextParam) -> ApiError:
    """A text that does not fit the context."""
    return ApiError(400, message, "context_length_exceeded", param=param)


def _named(error: NanochatError, param: TextParam) -> Exception:
    """The same with the name of the text in this body; what says when to ask again stays as it
    is."""
    found = to_api_error(error, param)
    return found if found.param is not None else error

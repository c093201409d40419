"""OpenAI's bodies.   in: JSON, exceptions   out: ChatRequest, dicts in OpenAI's shapes
who calls: app.py, stream.py, limits.py

Every error on every path is {"error": {message, type, param, code}} with a string code; one table
maps what was raised to its status.  A field that would change the answer and is not supported is
refused, never ignored.
Source: OpenAI's OpenAPI document (f85dbe2) and openai-python 3.52.
Read next: app.py.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from nanochat.common.errors import (
    Aborted,
    ConfigError,
    DataError,
    NanochatError,
    Overloaded,
    RequestTooLong,
    TokenizerError,
)
from nanochat.common.messages import Conversation, Message
from nanochat.engine.request import FinishReason, SamplingParams

__all__ = [
    "ApiError",
    "ChatMessage",
    "ChatRequest",
    "StreamOptions",
    "Usage",
    "chunk_body",
    "completion_body",
    "error_body",
    "models_body",
    "to_api_error",
    "validation_error",
]

MAX_MESSAGES = 500
SEED_RANGE = 2**63


# ----------------------------------------------------------------------------------- requests


def _text_of(content: Any) -> Any:
    """Content as a string: OpenAI also allows a list of parts, of which we read text."""
    if content is None or not isinstance(content, list):
        return content
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") not in ("text", "refusal"):
            raise PydanticCustomError("unsupported_value", "only parts of type 'text' can be read")
    texts = [part.get(part["type"]) for part in content]
    if not all(isinstance(text, str) for text in texts):
        raise PydanticCustomError("invalid_type", "expected a string in each text part")
    return "".join(texts)


class ChatMessage(BaseModel):
    """One turn as OpenAI writes it; `developer` is its newer word for `system`."""

    model_config = ConfigDict(strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_text_of)]


class StreamOptions(BaseModel):
    """What a stream carries besides the answer."""

    model_config = ConfigDict(strict=True)

    include_usage: bool | None = None


# Fields that change the answer, and the values at which they change nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "frequency_penalty": (None, 0),
    "function_call": (None, "none"),
    "functions": (None,),
    "logit_bias": (None, {}),
    "logprobs": (None, False),
    "modalities": (None, ["text"]),
    "n": (None, 1),
    "presence_penalty": (None, 0),
    "response_format": (None, {"type": "text"}),
    "stop": (None, []),
    "tool_choice": (None, "none"),
    "tools": (None,),
    "top_logprobs": (None, 0),
}


class ChatRequest(BaseModel):
    """A body of POST /v1/chat/completions."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    model: str
    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0)
    """Beyond OpenAI's: only the k likeliest tokens; 0 is all."""
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=-SEED_RANGE, lt=SEED_RANGE)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_supported(cls, data: Any) -> Any:
        for name, neutral in NEUTRAL.items():
            if isinstance(data, Mapping) and data.get(name) not in neutral:
                raise PydanticCustomError(
                    "unsupported_value", "this server does not support it", {"param": name}
                )
        return data

    def conversation(self) -> Conversation:
        """The messages in our own words."""
        return tuple(
            Message("system" if message.role == "developer" else message.role, message.content)
            for message in self.messages
        )

    def sampling(
        self, defaults: SamplingParams, context_len: int, stops: tuple[int, ...]
    ) -> SamplingParams:
        """How to choose tokens; an answer may fill the context unless the request says less."""
        top_k = defaults.top_k if self.top_k is None else self.top_k or None
        max_tokens = self.max_completion_tokens or self.max_tokens or context_len
        seed = secrets.randbelow(SEED_RANGE) if self.seed is None else self.seed % SEED_RANGE
        return SamplingParams(
            max_tokens=min(max_tokens, context_len),
            temperature=defaults.temperature if self.temperature is None else self.temperature,
            top_k=top_k,
            top_p=defaults.top_p if self.top_p is None else max(self.top_p, 1e-6),
            seed=seed,
            stop_tokens=stops,
        )

    @property
    def has_usage_frame(self) -> bool:
        """Whether a stream ends with a frame that counts tokens."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


# ---------------------------------------------------------------------------------- responses


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int

    def body(self) -> dict[str, int]:
        """As OpenAI has it."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


def completion_body(
    head: Mapping[str, Any], text: str, reason: FinishReason, usage: Usage
) -> dict[str, Any]:
    """A whole answer; `head` has its id, created and model."""
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
    return {
        **head,
        "object": "chat.completion",
        "choices": [choice],
        "usage": usage.body(),
    }


def chunk_body(
    head: Mapping[str, Any], delta: Mapping[str, Any], reason: FinishReason | None = None
) -> dict[str, Any]:
    """One frame of a stream."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
    return {**head, "object": "chat.completion.chunk", "choices": [choice]}


def models_body(name: str, created: int) -> dict[str, Any]:
    """The answer of GET /v1/models."""
    model = {"id": name, "object": "model", "created": created, "owned_by": "nanochat"}
    return {"object": "list", "data": [model]}


# ------------------------------------------------------------------------------------- errors


class ApiError(Exception):
    """A status and the four members of OpenAI's error body."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.kind, self.param = kind, param


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    code: str
    kind: str = "invalid_request_error"
    param: str | None = None


# The first line that fits counts.
STATUS_BY_CLASS: tuple[tuple[type[NanochatError], _Answer], ...] = (
    (RequestTooLong, _Answer(400, "context_length_exceeded", param="messages")),
    (Overloaded, _Answer(429, "rate_limit_exceeded", "rate_limit_exceeded")),
    (Aborted, _Answer(503, "aborted", "server_error")),
    (DataError, _Answer(400, "invalid_value", param="messages")),
    (ConfigError, _Answer(400, "invalid_value")),
    (TokenizerError, _Answer(400, "invalid_value")),
    (NanochatError, _Answer(500, "engine_error", "server_error")),
)


def to_api_error(error: Exception) -> ApiError:
    """What a client is told of an exception: the message of ours, nothing of any other."""
    if isinstance(error, ApiError):
        return error
    for known, answer in STATUS_BY_CLASS:
        if isinstance(error, known):
            return ApiError(
                answer.status, str(error), answer.code, kind=answer.kind, param=answer.param
            )
    message = "The server had an error while processing your request."
    return ApiError(500, message, "internal_error", kind="server_error")


def error_body(error: ApiError) -> dict[str, Any]:
    """OpenAI's error body."""
    members = {
        "message": error.message,
        "type": error.kind,
        "param": error.param,
        "code": error.code,
    }
    return {"error": members}


def validation_error(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """The first problem that pydantic found, in OpenAI's words; nothing of the input is echoed."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return ApiError(400, NOT_JSON, "invalid_json")
    context = first.get("ctx") or {}
    param = str(context.get("param") or _param(first["loc"])) or None
    name = f"'{param}'" if param else "the body"
    if first["type"] == "missing" and param:
        message, code = f"Missing required parameter: {name}.", "missing_required_parameter"
    elif first["type"] in ("missing", "model_attributes_type", "model_type"):
        message, code = f"Invalid type for {name}: expected an object.", "invalid_type"
    elif limit := _limit(context):
        words, code = limit
        message = f"Invalid {name}: {words}."
    elif first["type"] == "unsupported_value":
        message, code = f"Unsupported value for {name}: {first['msg']}.", "unsupported_value"
    elif first["type"] in ("literal_error", "too_short", "too_long", "value_error"):
        message, code = f"Invalid value for {name}: {_lower(first['msg'])}.", "invalid_value"
    else:
        message, code = f"Invalid type for {name}: {_lower(first['msg'])}.", "invalid_type"
    return ApiError(400, message, code, param=param)


NOT_JSON = (
    "We could not parse the JSON body of your request. (HINT: This likely means you aren't using "
    "your HTTP library correctly. The API expects a JSON payload, but what was sent was not valid "
    "JSON.)"
)


def _param(location: Sequence[int | str]) -> str:
    """("body", "messages", 0, "content") -> messages[0].content"""
    path = ""
    for part in location[1:]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def _limit(context: Mapping[str, Any]) -> tuple[str, str] | None:
    for key, sign, word in (("ge", ">=", "below_min"), ("gt", ">", "below_min"),
                            ("le", "<=", "above_max"), ("lt", "<", "above_max")):  # fmt: skip
        if key in context:
            bound = context[key]
            kind = "integer" if isinstance(bound, int) else "decimal"
            shown = bound if kind == "integer" else f"{bound:g}"
            return f"expected a value {sign} {shown}", f"{kind}_{word}_value"
    return None


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]

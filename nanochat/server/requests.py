"""What may be asked.   in: JSON   out: ChatRequest   who calls: app.py

A field that would change the answer and is not supported is refused, never ignored.
Source: OpenAI's OpenAPI document (f85dbe2).
Read next: app.py, errors.py (what a wrong field becomes).
"""

import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from nanochat.common.messages import Conversation, Message
from nanochat.engine.request import SamplingParams

__all__ = ["ChatMessage", "ChatRequest", "StreamOptions"]

MAX_MESSAGES = 500
SEED_RANGE = 2**63


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


class CacheControl(BaseModel):
    """What a request says of the response cache, beyond OpenAI's; its being there says that the
    answer may be kept though it is not deterministic."""

    model_config = ConfigDict(strict=True)

    ttl: float | None = Field(None, gt=0)
    """Seconds."""
    no_cache: bool = Field(False, alias="no-cache")
    """Answer afresh, and keep that."""
    no_store: bool = Field(False, alias="no-store")
    """Keep nothing."""


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
    cache: CacheControl | None = None

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

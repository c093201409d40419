"""What may be asked.   in: JSON   out: ChatRequest, CompletionRequest, TokenizeRequest and others
who calls: app.py (FastAPI makes them), chat.py, completions.py, legacy.py, tokens.py

Null is absent, as OpenAI has it.  A field that would change the answer and is not supported is
refused, never ignored; what changes nothing, such as `user`, is accepted.  The types are also the
OpenAPI document, so what they accept and what it says are the same.
Source: OpenAI's OpenAPI document (f85dbe2).
Read next: fields.py (texts, prompts, tools), chat.py, errors.py (what a wrong field becomes).
"""

import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from nanochat.engine.request import MAX_LOGPROBS, MAX_SAMPLES, SamplingParams
from nanochat.server.fields import (
    Bias,
    Content,
    Prompts,
    Stops,
    Tokens,
    ToolChoice,
    Tools,
    whole_of,
)

__all__ = [
    "CacheControl",
    "ChatMessage",
    "ChatRequest",
    "CompletionRequest",
    "DetokenizeRequest",
    "LegacyMessage",
    "LegacyRequest",
    "SampledRequest",
    "StreamOptions",
    "TokenizeRequest",
]

MAX_MESSAGES = 2**14  # a message takes at least two tokens
SEED_RANGE = 2**63
MAX_SEED = 9223372036854776000  # as OpenAI writes it: 2**63, rounded to what a double can say
SMALLEST_TOP_P = 1e-6  # what OpenAI's 0 means: the likeliest token alone


class _Body(BaseModel):
    model_config = ConfigDict(
        strict=True, extra="ignore", allow_inf_nan=False, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _read_numbers(cls, data: Any) -> Any:
        """JSON has one kind of number: 5.0 is 5."""
        if not isinstance(data, Mapping):
            return data
        return {name: whole_of(value) for name, value in data.items()}


class StreamOptions(_Body):
    """What a stream carries besides the answer."""

    include_usage: bool | None = None
    """A last frame that counts tokens."""


class CacheControl(_Body):
    """What a request says of the response cache, beyond OpenAI's, in litellm's words; its being
    there says that the answer may be kept though it is not deterministic."""

    model_config = ConfigDict(extra="forbid")

    ttl: float | None = Field(None, gt=0)
    """The longest that the answer is kept, in seconds."""
    s_maxage: float | None = Field(None, alias="s-maxage", ge=0)
    """Only an answer that is no older, in seconds."""
    namespace: str | None = Field(None, max_length=256)
    """Only answers to requests that say the same here."""
    no_cache: bool | None = Field(None, alias="no-cache")
    """Answer afresh, and keep that."""
    no_store: bool | None = Field(None, alias="no-store")
    """Keep nothing."""


class SampledRequest(_Body):
    """What every request for text may say."""

    model: str
    temperature: float | None = Field(None, ge=0, le=2)
    """0 is greedy."""
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0, le=2**31)
    """Beyond OpenAI's: only the k likeliest tokens; 0 is all."""
    min_p: float | None = Field(None, ge=0, le=1)
    """Beyond OpenAI's: only tokens at least this many times as likely as the likeliest."""
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    """Beyond OpenAI's: logits of tokens that were there are divided by it."""
    logit_bias: Bias = Field(default_factory=dict)
    seed: int | None = Field(None, ge=-MAX_SEED, le=MAX_SEED)
    """Equal seeds give equal answers. None: another one every time."""
    stop: Stops = ()
    n: int | None = Field(None, ge=1, le=MAX_SAMPLES)
    """Answers to the same question."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    """With `stream` alone."""
    cache: CacheControl | None = None
    user: Any = None
    """Accepted, and changes nothing; so are `metadata` and `store`."""

    @model_validator(mode="after")
    def _check_stream_options(self) -> "SampledRequest":
        if self.stream_options is not None and not self.stream:
            raise _problem(
                "invalid_value", "expected only where 'stream' is true", "stream_options"
            )
        return self

    def sampling(
        self,
        defaults: SamplingParams,
        *,
        max_tokens: int,
        stop_tokens: tuple[int, ...],
        logprobs: int | None,
    ) -> SamplingParams:
        """How to choose tokens; `defaults` where the request says nothing."""

        def said(name: str) -> Any:
            value = getattr(self, name)
            return getattr(defaults, name) if value is None else value

        return SamplingParams(
            max_tokens=max_tokens,
            temperature=said("temperature"),
            top_k=said("top_k") or None,
            top_p=max(said("top_p"), SMALLEST_TOP_P),
            min_p=said("min_p"),
            repetition_penalty=said("repetition_penalty"),
            presence_penalty=said("presence_penalty"),
            frequency_penalty=said("frequency_penalty"),
            logit_bias=self.logit_bias,
            seed=secrets.randbelow(SEED_RANGE) if self.seed is None else self.seed % SEED_RANGE,
            stop_tokens=stop_tokens,
            stop=self.stop,
            logprobs=logprobs,
        )

    @property
    def has_usage_frame(self) -> bool:
        """Whether a stream ends with a frame that counts tokens."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


# ---------------------------------------------------------------------------------------- chat


# Fields that change the answer, and the values at which they change nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "function_call": (None, "none"),
    "functions": (None,),
    "modalities": (None, ["text"]),
    "reasoning_effort": (None, "none"),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
}
MESSAGE_NEUTRAL: dict[str, tuple[Any, ...]] = dict.fromkeys(
    ("audio", "function_call", "tool_calls"), (None, [])
)


def _stated(neutral: Mapping[str, tuple[Any, ...]]) -> ConfigDict:
    """The document says so too."""
    named = {name: {"enum": list(values)} for name, values in neutral.items()}
    return ConfigDict(json_schema_extra=lambda schema: schema["properties"].update(named))


class ChatMessage(_Body):
    """One turn as OpenAI writes it; `developer` is its newer word for `system`."""

    model_config = _stated(MESSAGE_NEUTRAL)

    role: Literal["system", "developer", "user", "assistant"]
    content: Content

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_supported(cls, data: Any) -> Any:
        return _neutral(data, MESSAGE_NEUTRAL)


# The first wrong message is what is told: looking for more takes 30 us for each of thousands.
Messages = Annotated[
    list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
]


class _TextFormat(_Body):
    type: Literal["text"]


class _JsonObjectFormat(_Body):
    type: Literal["json_object"]


class _JsonSchema(_Body):
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    """What the answer has to be; kept whether `strict` or not. None: any object."""
    strict: bool | None = None


class _JsonSchemaFormat(_Body):
    type: Literal["json_schema"]
    json_schema: _JsonSchema


ResponseFormat = Annotated[
    _TextFormat | _JsonObjectFormat | _JsonSchemaFormat, Field(discriminator="type")
]


class ChatRequest(SampledRequest):
    """A body of POST /v1/chat/completions."""

    model_config = _stated(NEUTRAL)

    messages: Messages
    max_tokens: int | None = Field(None, ge=1)
    """OpenAI's older word for max_completion_tokens."""
    max_completion_tokens: int | None = Field(None, ge=1)
    """Most tokens of an answer. None: as many as the context has left."""
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    """With `logprobs` alone."""
    response_format: ResponseFormat | None = None
    tools: Tools = False
    """The calculator of this server, {"type": "calculator"}; what it computes is then told in the
    answer.  None: it is used where the model was taught to, and not told."""
    tool_choice: ToolChoice = None
    """none: without the calculator."""
    continue_final_message: bool | None = None
    """Beyond OpenAI's, as vLLM has it: the last message is from the assistant, and the answer goes
    on where it ends."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_supported(cls, data: Any) -> Any:
        return _neutral(data, NEUTRAL)

    @model_validator(mode="after")
    def _check_what_belongs_together(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise _problem(
                "invalid_value", "expected only where 'logprobs' is true", "top_logprobs"
            )
        if self.tool_choice == "auto" and not self.tools:
            raise _problem("invalid_value", "expected only where 'tools' are given", "tool_choice")
        if self.continue_final_message and self.messages[-1].role != "assistant":
            message = "expected only where the last message is from the assistant"
            raise _problem("invalid_value", message, "continue_final_message")
        if self.continue_final_message and self.has_json:
            message = "JSON is written from its beginning: expected one without the other"
            raise _problem("unsupported_value", message, "response_format")
        if self.tools and self.tool_choice != "none" and self.has_json:
            message = "what a tool computes would break the JSON: expected one without the other"
            raise _problem("unsupported_value", message, "response_format")
        return self

    @property
    def has_json(self) -> bool:
        """Whether the answer has to be JSON."""
        return self.response_format is not None and self.response_format.type != "text"

    @property
    def most_tokens(self) -> int | None:
        """Most tokens of an answer, if the request says so."""
        said = self.max_completion_tokens
        return self.max_tokens if said is None else said


# --------------------------------------------------------------------------------- completions


class CompletionRequest(SampledRequest):
    """A body of POST /v1/completions."""

    prompt: Prompts
    max_tokens: int | None = Field(None, ge=0)
    """0 with `echo` tells how likely the prompt is. None: 16, as OpenAI has it."""
    echo: bool | None = None
    """Whether the prompt comes first in the text."""
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    best_of: int | None = Field(None, ge=1, le=MAX_SAMPLES)
    """Only as many as are asked for."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_supported(cls, data: Any) -> Any:
        return _neutral(data, {"suffix": (None, "")})

    @model_validator(mode="after")
    def _check_what_belongs_together(self) -> "CompletionRequest":
        num_answers = self.n or 1
        if self.best_of not in (None, num_answers):
            raise _problem("unsupported_value", "expected as many as 'n', or none", "best_of")
        if len(self.prompt) * num_answers > MAX_SAMPLES:
            message = f"at most {MAX_SAMPLES} answers to all prompts together are expected"
            raise _problem("invalid_value", message, "n" if num_answers > 1 else "prompt")
        return self


# -------------------------------------------------------------------------------------- tokens


class TokenizeRequest(_Body):
    """A body of POST /tokenize: a text, or the messages of a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    """Whether a text begins with <|bos|>, as it does for /v1/completions. None: yes."""
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _check_what_belongs_together(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise _problem("invalid_value", "expected either 'prompt' or 'messages'", "prompt")
        return self


class DetokenizeRequest(_Body):
    """A body of POST /detokenize."""

    model: str | None = None
    tokens: Tokens


# -------------------------------------------------------------------------------------- legacy

MAX_LEGACY_CHARACTERS = 32_000  # of a conversation


class LegacyMessage(_Body):
    """One turn as karpathy/nanochat's page writes it."""

    role: Literal["system", "user", "assistant"]
    content: str = Field(min_length=1, max_length=8_000)


class LegacyRequest(_Body):
    """A body of POST /chat/completions, the API of karpathy/nanochat's chat_web.py."""

    messages: list[LegacyMessage] = Field(min_length=1, max_length=500)
    temperature: float | None = Field(None, ge=0, le=2)
    top_k: int | None = Field(None, ge=0, le=200)
    """0 is all tokens."""
    max_tokens: int | None = Field(None, ge=1, le=4096)

    @model_validator(mode="after")
    def _check_length(self) -> "LegacyRequest":
        num_characters = sum(len(message.content) for message in self.messages)
        if num_characters > MAX_LEGACY_CHARACTERS:
            message = (
                f"the conversation has {num_characters} characters, expected at most "
                f"{MAX_LEGACY_CHARACTERS}"
            )
            raise _problem("invalid_value", message, "messages")
        return self


def _neutral(data: Any, neutral: Mapping[str, tuple[Any, ...]]) -> Any:
    """The data, if it has nothing that we would have to ignore."""
    for name, values in neutral.items():
        if isinstance(data, Mapping) and data.get(name) not in values:
            raise _problem("unsupported_value", "this server does not support it", name)
    return data


def _problem(kind: Any, message: Any, param: str) -> PydanticCustomError:
    return PydanticCustomError(kind, message, {"param": param})

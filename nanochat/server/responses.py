"""What is answered, as types.   in: counts, names   out: bodies in OpenAI's shapes
who calls: app.py, tokens.py (make them), frames.py (writes text as they say)

The types are the OpenAPI document's; answers to a conversation are written by frames.py without
them, because a type takes longer to render than a token to compute.
Source: OpenAI's OpenAPI document (f85dbe2).
Read next: frames.py; tests/server/openai_schema.json (OpenAI's own words on these shapes).
"""

from typing import Literal, NamedTuple

from pydantic import BaseModel

__all__ = [
    "ChatCompletion",
    "ChatCompletionChunk",
    "Detokenized",
    "ModelCard",
    "ModelList",
    "TextCompletion",
    "Tokenized",
    "Usage",
]

Reason = Literal["stop", "length"]


class Usage(NamedTuple):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int

    def body(self) -> dict[str, int]:
        """As OpenAI has it."""
        total = self.prompt_tokens + self.completion_tokens
        return {**self._asdict(), "total_tokens": total}


class ModelCard(BaseModel):
    """One model, as GET /v1/models has it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "nanochat"


class ModelList(BaseModel):
    """The answer of GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Tokenized(BaseModel):
    """The answer of POST /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenized(BaseModel):
    """The answer of POST /detokenize."""

    prompt: str


# ------------------------------------------------------------------- for the document alone


class _Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class _Top(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class _TokenLogprob(_Top):
    top_logprobs: list[_Top]


class _ChatLogprobs(BaseModel):
    content: list[_TokenLogprob]
    refusal: None


class _Message(BaseModel):
    role: Literal["assistant"]
    content: str
    refusal: None


class _ChatChoice(BaseModel):
    index: int
    message: _Message
    logprobs: _ChatLogprobs | None
    finish_reason: Reason


class ChatCompletion(BaseModel):
    """A whole answer to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[_ChatChoice]
    usage: _Usage


class _Delta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None


class _ChunkChoice(BaseModel):
    index: int
    delta: _Delta
    logprobs: _ChatLogprobs | None
    finish_reason: Reason | None


class ChatCompletionChunk(BaseModel):
    """One frame of a streamed answer; the last, where it is asked for, has no choices and the
    usage."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[_ChunkChoice]
    usage: _Usage | None = None


class _TextLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class _TextChoice(BaseModel):
    index: int
    text: str
    logprobs: _TextLogprobs | None
    finish_reason: Reason | None


class TextCompletion(BaseModel):
    """A whole completion, or one frame of a streamed one."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[_TextChoice]
    usage: _Usage | None = None

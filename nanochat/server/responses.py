"""What is answered.   in: texts, counts   out: bodies in OpenAI's shapes
who calls: app.py, stream.py

Source: OpenAI's OpenAPI document (f85dbe2).
Read next: stream.py (when a frame is sent), errors.py (what is answered instead).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nanochat.engine.request import FinishReason

__all__ = ["Usage", "chunk_body", "completion_body", "models_body"]


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

"""What is asked of an engine and what it answers.   in: nothing   out: Request, TokenEvent
who calls: server, cli, evals, train, engine   (imports no torch)
Read next: engine.py (which serves them).
"""

from dataclasses import dataclass, field
from typing import Literal

from nanochat.common.errors import ConfigError

__all__ = [
    "NO_TOKEN",
    "BeyondContext",
    "FinishReason",
    "Request",
    "SamplingParams",
    "TokenEvent",
]

FinishReason = Literal["stop", "length", "abort"]
BeyondContext = Literal["refuse", "slide"]

NO_TOKEN = -1  # the token of an event that reports an abort


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How the next token is chosen; every problem is reported at once.

    Raises: ConfigError listing all values out of range.
    """

    max_tokens: int = 256
    """Most tokens to generate."""
    temperature: float = 0.8
    """0 is greedy; 1 samples from the model as it is."""
    top_k: int | None = 50
    """Only the k likeliest tokens may be chosen. None: all of them."""
    top_p: float = 1.0
    """Only the likeliest tokens whose probabilities add up to p may be chosen."""
    seed: int = 0
    """Equal seeds and logits give equal tokens."""
    stop_tokens: tuple[int, ...] = ()
    """Generation ends before any of these."""

    def __post_init__(self) -> None:
        problems = [
            text
            for is_wrong, text in (
                (self.max_tokens < 1, f"max_tokens is {self.max_tokens}, expected at least 1"),
                (
                    not 0.0 <= self.temperature <= 10.0,
                    f"temperature is {self.temperature}, expected 0 to 10",
                ),
                (
                    self.top_k is not None and self.top_k < 1,
                    f"top_k is {self.top_k}, expected at least 1, or none",
                ),
                (
                    not 0.0 < self.top_p <= 1.0,
                    f"top_p is {self.top_p}, expected more than 0 and at most 1",
                ),
                (not 0 <= self.seed < 2**63, f"seed is {self.seed}, expected 0 to 2**63 - 1"),
            )
            if is_wrong
        ]
        if problems:
            raise ConfigError("; ".join(problems))


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One prompt, already tokens, and how to continue it."""

    request_id: str
    prompt_tokens: tuple[int, ...]
    """Empty: the text begins with <|bos|>."""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    beyond_context: BeyondContext = "refuse"
    """refuse: a prompt must fit the context, and an answer that fills it ends with "length".
    slide: positions go on and windows slide, as karpathy/nanochat does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenEvent:
    """One token of one request.  The last event of a request carries its finish_reason; the one
    that reports a stop token carries that token, which adds no text, and the one that reports an
    abort carries NO_TOKEN."""

    request_id: str
    token: int
    text: str
    """What this token adds to the text; empty while a character is incomplete."""
    logprob: float
    finish_reason: FinishReason | None = None

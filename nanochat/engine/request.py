"""What is asked of an engine and what it answers.   in: nothing   out: Request, TokenEvent
who calls: server, cli, evals, train, engine   (imports no torch)

Everything that comes from outside is checked here, once: numbers when they are made, token ids by
`Request.check_vocabulary` when the vocabulary is known.  Behind it they reach indices unchecked.
Read next: sampling.py (what the parameters do), scheduler.py, engine.py (which serves requests).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

from nanochat.common.errors import ConfigError, TokenizerError

__all__ = [
    "ANY_JSON",
    "MAX_LOGPROBS",
    "NO_TOKEN",
    "BeyondContext",
    "FinishReason",
    "PromptLogprob",
    "Request",
    "SamplingParams",
    "TokenEvent",
]

FinishReason = Literal["stop", "length", "abort", "error"]
BeyondContext = Literal["refuse", "slide"]

NO_TOKEN = -1  # the token of an event that reports an abort
ANY_JSON = "json"  # the schema of a request that may answer with any JSON value

MAX_LOGPROBS = 20  # as OpenAI has it
MAX_SAMPLES = 128  # as OpenAI has it
MAX_LOGIT_BIAS = 1024  # entries: three times what OpenAI takes
MAX_STOPS = 16  # strings: every piece of text is compared with each
MAX_STOP_LENGTH = 256  # characters: as much text may be held back
MAX_SCHEMA_LENGTH = 2**15  # characters; what one may ask for in them: schema.py


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How the next token is chosen; every problem is reported at once.

    The order of the rules: penalties, logit_bias, temperature, then top_k, top_p and min_p.
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
    min_p: float = 0.0
    """Only tokens at least this many times as likely as the likeliest may be chosen."""
    repetition_penalty: float = 1.0
    """Logits of tokens in prompt or answer are divided by this where positive, else multiplied."""
    presence_penalty: float = 0.0
    """Taken from the logit of every token the answer has already."""
    frequency_penalty: float = 0.0
    """Taken from the logit of a token for every time the answer has it already."""
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    """Added to the logits of these tokens; -100 all but forbids, 100 all but forces."""
    seed: int = 0
    """Equal seeds and logits give equal tokens."""
    stop_tokens: tuple[int, ...] = ()
    """Generation ends before any of these."""
    stop: tuple[str, ...] = ()
    """Generation ends before any of these texts; none of them is ever delivered."""
    logprobs: int | None = None
    """How many of the likeliest tokens are told with each token. None or 0: only its own."""

    def __post_init__(self) -> None:
        problems = [
            *_whole("max_tokens", self.max_tokens, 1, None),
            *_number("temperature", self.temperature, 0, 10),
            *_whole_or_none("top_k", self.top_k, 1, None),
            *_number("top_p", self.top_p, 0, 1, is_low_allowed=False),
            *_number("min_p", self.min_p, 0, 1),
            *_number("repetition_penalty", self.repetition_penalty, 0, 10, is_low_allowed=False),
            *_number("presence_penalty", self.presence_penalty, -2, 2),
            *_number("frequency_penalty", self.frequency_penalty, -2, 2),
            *_bias(self.logit_bias),
            *_seed(self.seed),
            *_stop_tokens(self.stop_tokens),
            *_stops(self.stop),
            *_whole_or_none("logprobs", self.logprobs, 0, MAX_LOGPROBS),
        ]
        if problems:
            raise ConfigError("; ".join(problems))

    @property
    def has_penalties(self) -> bool:
        """Whether what was said before changes what is likely now."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One prompt, already tokens, and how to continue it.

    Raises: ConfigError listing all values out of range.
    """

    request_id: str
    prompt_tokens: tuple[int, ...]
    """Empty: the text begins with <|bos|>."""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    num_samples: int = 1
    """Answers to this one prompt; the first is the one that would come alone."""
    prompt_logprobs: int | None = None
    """0: how likely each prompt token was; n: with the n likeliest instead. None: not told."""
    schema: str | None = None
    """The answer is JSON of this JSON schema, or of any shape for "json". None: any text."""
    tools: bool = False
    """Whether what the model writes between <|python_start|> and <|python_end|> is computed."""
    beyond_context: BeyondContext = "refuse"
    """refuse: a prompt must fit the context, and an answer that fills it ends with "length".
    slide: positions go on and windows slide, as karpathy/nanochat does."""

    def __post_init__(self) -> None:
        problems = [
            *_request_id(self.request_id),
            *_prompt_tokens(self.prompt_tokens),
            *_whole("num_samples", self.num_samples, 1, MAX_SAMPLES),
            *_whole_or_none("prompt_logprobs", self.prompt_logprobs, 0, MAX_LOGPROBS),
            *_schema(self.schema, self.tools),
            *_one_of("beyond_context", self.beyond_context, get_args(BeyondContext)),
        ]
        if problems:
            raise ConfigError("; ".join(problems))

    def check_vocabulary(self, vocab_size: int) -> None:
        """Whether every id in it is a token.

        Raises: TokenizerError naming the first that is not, its place and the vocabulary.
        """
        for what, tokens in (
            ("prompt token", self.prompt_tokens),
            ("logit_bias token", self.sampling.logit_bias),
            ("stop token", self.sampling.stop_tokens),
        ):
            if (
                set(map(type, tokens)) <= {int}
                and 0 <= min(tokens, default=0)
                and (max(tokens, default=0) < vocab_size)
            ):
                continue  # as nearly always; a prompt has thousands
            for place, token in enumerate(tokens):
                if type(token) is not int or not 0 <= token < vocab_size:
                    raise TokenizerError(
                        f"{what} {token!r:.40} at place {place} is outside the vocabulary of "
                        f"{vocab_size}: expected 0 to {vocab_size - 1}"
                    )


class PromptLogprob(NamedTuple):
    """How likely a prompt's token was after those before it; the first has none before it."""

    token: int
    logprob: float | None
    top_logprobs: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenEvent:
    """One token of one answer.  The last event of an answer carries its finish_reason; the one
    that reports a stop token carries that token, which adds no text, and the one that reports an
    abort carries NO_TOKEN.  Text that may be the beginning of a stop string is held back, so a
    token's text may come with a later one, and a stop string never comes."""

    request_id: str
    sample: int = 0
    """Which of the request's answers."""
    token: int
    text: str
    """What can be told now; empty while a character is incomplete."""
    logprob: float
    """Under the model itself: before penalties, temperature and filters."""
    top_logprobs: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens with theirs, in falling order, where the request asked for them."""
    is_forced: bool = False
    """Whether a tool put it there, instead of the model."""
    prompt_logprobs: tuple[PromptLogprob, ...] = ()
    """Of the prompt's tokens, with the first event of the first answer, where they were asked
    for."""
    finish_reason: FinishReason | None = None


def _whole(name: str, value: Any, low: int, high: int | None) -> Iterator[str]:
    if type(value) is not int or value < low or (high is not None and value > high):
        yield f"{name} is {value!r:.40}, expected {_span(low, high)}"


def _whole_or_none(name: str, value: Any, low: int, high: int | None) -> Iterator[str]:
    if value is not None:
        for problem in _whole(name, value, low, high):
            yield f"{problem}, or none"


def _span(low: int, high: int | None) -> str:
    return f"at least {low}" if high is None else f"{low} to {high}"


def _number(
    name: str, value: Any, low: int, high: int, is_low_allowed: bool = True
) -> Iterator[str]:
    """NaN is in no range: it compares false with everything."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and low <= value <= high and (is_low_allowed or value > low)):
        span = f"{low} to {high}" if is_low_allowed else f"more than {low} and at most {high}"
        yield f"{name} is {value!r:.40}, expected {span}"


def _seed(value: Any) -> Iterator[str]:
    if type(value) is not int or not 0 <= value < 2**63:
        yield f"seed is {value!r:.40}, expected 0 to 2**63 - 1"


def _bias(bias: Any) -> Iterator[str]:
    if not isinstance(bias, Mapping) or len(bias) > MAX_LOGIT_BIAS:
        size = f"{len(bias)} entries" if isinstance(bias, Mapping) else f"{bias!r:.40}"
        yield f"logit_bias is {size}, expected a mapping of at most {MAX_LOGIT_BIAS} tokens"
        return
    for token, value in bias.items():
        if type(token) is not int or token < 0:
            yield f"logit_bias names {token!r:.40}, expected a token"
        yield from _number(f"logit_bias of {token!r:.40}", value, -100, 100)


def _stop_tokens(tokens: Any) -> Iterator[str]:
    if not isinstance(tokens, tuple) or not all(type(t) is int and t >= 0 for t in tokens):
        yield f"stop_tokens is {tokens!r:.60}, expected a tuple of tokens"


def _stops(stops: Any) -> Iterator[str]:
    if (
        not isinstance(stops, tuple)
        or len(stops) > MAX_STOPS
        or not all(isinstance(stop, str) and 0 < len(stop) <= MAX_STOP_LENGTH for stop in stops)
    ):
        yield (
            f"stop is {stops!r:.60}, expected a tuple of at most {MAX_STOPS} strings of 1 to "
            f"{MAX_STOP_LENGTH} characters"
        )


def _request_id(value: Any) -> Iterator[str]:
    if not isinstance(value, str) or not value:
        yield f"request_id is {value!r:.40}, expected a string of at least one character"


def _prompt_tokens(tokens: Any) -> Iterator[str]:
    if not isinstance(tokens, tuple):
        yield f"prompt_tokens is {tokens!r:.40}, expected a tuple of tokens"


def _schema(schema: Any, tools: Any) -> Iterator[str]:
    if type(tools) is not bool:
        yield f"tools is {tools!r:.40}, expected true or false"
    if schema is None:
        return
    if not isinstance(schema, str) or len(schema) > MAX_SCHEMA_LENGTH:
        size = f"{len(schema)} characters" if isinstance(schema, str) else f"{schema!r:.40}"
        yield f"schema is {size}, expected JSON of at most {MAX_SCHEMA_LENGTH} characters"
    if tools is True:
        yield "schema and tools are both asked for: a tool's output would break the schema"


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> Iterator[str]:
    if value not in allowed:
        yield f"{name} is {value!r:.40}, expected {' or '.join(allowed)}"

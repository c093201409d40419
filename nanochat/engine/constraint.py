"""JSON schema -> which tokens may come next.   in: a schema, the tokens so far   out: a mask
who calls: engine.py

An automaton over bytes follows the answer; a token is possible if its bytes are.  Special tokens
are not text and never possible, but for the one that ends the answer once the JSON is complete.
Separators are ", " and ": " and there is no other white space between values: else a model might
write spaces for ever.  The automaton is llguidance's, and refuses what it cannot enforce: usually
compiled in a few milliseconds, a mask in less than one.

Time is bounded four times: schema.py refuses what would take long to compile, LIMITS bounds what
the automaton may build, MAX_SECONDS what all masks of an answer may take; and whoever asks compiles
the schema, up to its first mask, without a lock and without Python's.
Read next: schema.py, sampling.py (what a mask does), tests/engine/test_constraint.py.
"""

import json
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from torch import Tensor

from nanochat.common.errors import ConfigError, SchemaError
from nanochat.engine.request import ANY_JSON
from nanochat.engine.schema import check_schema
from nanochat.tokenizer.tokenizer import Tokenizer

__all__ = ["Constraint", "JsonGrammar"]

T = TypeVar("T")

# A fifth to a half of the library's own, which are meant for a server with cores to spare.
LIMITS = LLParserLimits(
    max_items_in_row=1000,
    initial_lexer_fuel=200_000,
    step_lexer_fuel=100_000,
    step_max_items=20_000,
    max_lexer_states=50_000,
    max_grammar_size=50_000,
    verbose_errors=False,  # they quote the state of the parser
)
# Processor time that an answer's masks may take; what is usual is a hundredth of it.
MAX_SECONDS = 0.5
MAX_SECONDS_PER_TOKEN = 0.01


class JsonGrammar:
    """What the constraints of one tokenizer share; made once, in 60 ms for 32,768 tokens.

    `end_token` is the special token with which an answer ends.
    """

    def __init__(self, tokenizer: Tokenizer, end_token: int) -> None:
        assert end_token in tokenizer.special_tokens.values(), f"token {end_token} is not special"
        self._tokens = LLTokenizer(TokenizerWrapper(_Vocabulary(tokenizer, end_token)))

    def start(self, schema: str) -> "Constraint":
        """A constraint for one answer: `schema` is a JSON schema, or "json" for any JSON.

        For any thread, none of which waits for another.
        Raises: ConfigError saying what in it is wrong, cannot be enforced or takes too long.
        """
        schema = "{}" if schema == ANY_JSON else _checked(schema)
        try:
            # Overrides: no "x-guidance" in a schema can switch checks off.
            grammar = LLMatcher.grammar_from_json_schema(
                schema,
                overrides={
                    "item_separator": ", ",
                    "key_separator": ": ",
                    "whitespace_flexible": False,
                    "whitespace_pattern": None,
                    "coerce_one_of": False,
                    "lenient": False,
                },
            )
        except ValueError as error:
            raise _unsupported(str(error)) from None
        matcher = LLMatcher(self._tokens, grammar, log_level=0, limits=LIMITS)
        if matcher.is_error():
            raise _unsupported(matcher.get_error())
        constraint = Constraint(matcher)
        try:
            constraint.forbidden()  # most of what is built is built for the first; it stays
        except SchemaError as error:
            raise ConfigError(str(error)) from None
        return constraint


class Constraint:
    """Follows one answer.

    Use: sample under forbidden(), then add(token); again until is_complete.
    """

    def __init__(self, matcher: LLMatcher, used_s: float = 0.0) -> None:
        self._matcher = matcher
        self._used_s, self._num_tokens = used_s, 0

    @property
    def is_complete(self) -> bool:
        """Whether nothing but the end can follow."""
        return self._matcher.is_stopped()

    def another(self) -> "Constraint":
        """The same for one more answer, from where this one is; 0.1 ms."""
        return Constraint(self._matcher.deep_copy(), self._used_s)

    def forbidden(self) -> Tensor:
        """True for every token that cannot come next; at least one can.

        Shapes: forbidden_V bool, on the CPU.
        Raises: SchemaError if the automaton has outgrown its limits, or taken too long.
        """
        allowed = bytearray(self._timed(self._matcher.compute_logit_bias))  # a byte each: 0 or 200
        return torch.frombuffer(allowed, dtype=torch.uint8) == 0

    def add(self, token: int) -> None:
        """The answer goes on with this token.

        Raises: SchemaError if it cannot.
        """
        self._timed(lambda: self._matcher.consume_token(token))
        self._num_tokens += 1

    def _timed(self, work: Callable[[], T]) -> T:
        """The result of the work, if it went well and in time: this thread's, not the machine's."""
        begin_s = time.thread_time()
        result = work()
        self._used_s += time.thread_time() - begin_s
        if self._matcher.is_error():
            reason = _line(self._matcher.get_error())
            raise SchemaError(f"the JSON schema cannot be followed further ({reason}): simplify it")
        if self._used_s > (most_s := MAX_SECONDS + MAX_SECONDS_PER_TOKEN * self._num_tokens):
            raise SchemaError(
                f"the JSON schema took {self._used_s:.2f} s to follow for {self._num_tokens} "
                f"tokens, expected at most {most_s:.2f} s: simplify it"
            )
        return result


class _Vocabulary:
    """The tokens as llguidance wants them: bytes by id, and a function that encodes bytes."""

    def __init__(self, tokenizer: Tokenizer, end_token: int) -> None:
        self.tokens = [tokenizer.decode_bytes([token]) for token in range(tokenizer.vocab_size)]
        self.special_token_ids = list(tokenizer.special_tokens.values())
        self.bos_token_id, self.eos_token_id = None, end_token
        self._tokenizer = tokenizer

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenizer.encode(text.decode("utf-8", errors="replace"))


def _checked(schema: str) -> str:
    """The schema, if it is a JSON object within bounds."""
    try:
        parsed: Any = json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the schema is not JSON ({_line(str(error))}): {schema:.60}") from None
    if not isinstance(parsed, dict):
        raise ConfigError(f"the schema is {schema:.60}, expected a JSON object, or {ANY_JSON}")
    check_schema(parsed)
    return schema


def _unsupported(reason: str) -> ConfigError:
    return ConfigError(
        f"the JSON schema cannot be enforced ({_line(reason)}): expected one without it"
    )


def _line(text: str) -> str:
    return " ".join(text.split())[:200]

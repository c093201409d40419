"""JSON schema -> which tokens may come next.   in: a schema, the tokens so far   out: a mask
who calls: engine.py

An automaton over bytes follows the answer; a token is possible if its bytes are.  Special tokens
are not text and never possible, but for the one that ends the answer once the JSON is complete.
Separators are ", " and ": " and there is no other white space between values: else a model might
write spaces for ever.  The automaton is llguidance's: compiled in about a millisecond, a mask in 40
microseconds, bounded in memory and time, and it refuses what it cannot enforce.
Read next: sampling.py (what a mask does), tests/engine/test_constraint.py.
"""

import json
from typing import Any

import torch
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from torch import Tensor

from nanochat.common.errors import ConfigError, EngineError
from nanochat.engine.request import ANY_JSON
from nanochat.tokenizer.tokenizer import Tokenizer

__all__ = ["Constraint", "JsonGrammar"]


class JsonGrammar:
    """What the constraints of one tokenizer share; made once, in 60 ms for 32,768 tokens.

    `end_token` is the special token with which an answer ends.
    """

    def __init__(self, tokenizer: Tokenizer, end_token: int) -> None:
        assert end_token in tokenizer.special_tokens.values(), f"token {end_token} is not special"
        self._tokens = LLTokenizer(TokenizerWrapper(_Vocabulary(tokenizer, end_token)))

    def start(self, schema: str) -> "Constraint":
        """A constraint for one answer: `schema` is a JSON schema, or "json" for any JSON.

        Raises: ConfigError saying what in it is wrong or cannot be enforced.
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
        matcher = LLMatcher(self._tokens, grammar, log_level=0)
        if matcher.is_error():
            raise _unsupported(matcher.get_error())
        return Constraint(matcher)


class Constraint:
    """Follows one answer.

    Use: sample under forbidden(), then add(token); again until is_complete.
    """

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    @property
    def is_complete(self) -> bool:
        """Whether nothing but the end can follow."""
        return self._matcher.is_stopped()

    def forbidden(self) -> Tensor:
        """True for every token that cannot come next; at least one can.

        Shapes: forbidden_V bool, on the CPU.
        Raises: EngineError if the automaton has outgrown its limits.
        """
        allowed = bytearray(self._matcher.compute_logit_bias())  # a byte a token, 0 or 200
        self._check()
        return torch.frombuffer(allowed, dtype=torch.uint8) == 0

    def add(self, token: int) -> None:
        """The answer goes on with this token.

        Raises: EngineError if it cannot.
        """
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = _line(self._matcher.get_error())
            raise EngineError(f"the JSON schema cannot be followed further ({reason}): simplify it")


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
    """The schema, if it is a JSON object."""
    try:
        parsed: Any = json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the schema is not JSON ({_line(str(error))}): {schema:.60}") from None
    if not isinstance(parsed, dict):
        raise ConfigError(f"the schema is {schema:.60}, expected a JSON object, or {ANY_JSON}")
    return schema


def _unsupported(reason: str) -> ConfigError:
    return ConfigError(
        f"the JSON schema cannot be enforced ({_line(reason)}): expected one without it"
    )


def _line(text: str) -> str:
    return " ".join(text.split())[:200]

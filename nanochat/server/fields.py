"""Fields that come in several shapes.   in: JSON values   out: one shape each
who calls: requests.py

    Content   a string, or parts of text            -> a string
    Prompts   a text, tokens, or several of either  -> a tuple of texts and tuples of tokens
    Stops     a string, or up to 16                 -> a tuple
    Bias      {"123": -5}                           -> {123: -5.0}
    Tools     [{"type": "calculator"}]              -> whether the calculator is asked for
    ToolChoice  "none", "auto" or nothing           -> the same
    Tokens    [5, 6.0]                              -> (5, 6)
Each has its JSON schema beside it, which says the same; tests/server/test_fuzz.py holds them
together.
Read next: requests.py.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from nanochat.engine.request import MAX_LOGIT_BIAS, MAX_SAMPLES, MAX_STOP_LENGTH, MAX_STOPS

__all__ = [
    "CALCULATOR",
    "Bias",
    "Content",
    "Prompt",
    "Prompts",
    "Stops",
    "Tokens",
    "ToolChoice",
    "Tools",
    "whole_of",
]

Prompt = str | tuple[int, ...]
CALCULATOR = "calculator"
MAX_BIAS = 100
MAX_PARTS = 1024
MAX_TOOLS = 128
TOOL_CHOICES = ("none", "auto")
MAX_TOKEN_DIGITS = 9


def whole_of(value: Any) -> Any:
    """A whole number as one, however it is written; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_token(value: Any) -> bool:
    return type(value) is int and value >= 0


def _text_of(content: Any) -> str:
    """Content as a string: OpenAI also allows a list of parts, of which we read text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise PydanticCustomError("invalid_type", "expected a string or a list of text parts")
    if not 1 <= len(content) <= MAX_PARTS:
        raise PydanticCustomError("invalid_value", "expected 1 to 1024 parts")
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") not in ("text", "refusal"):
            raise PydanticCustomError("unsupported_value", "only parts of type 'text' can be read")
    texts = [part.get(part["type"]) for part in content]
    if not all(isinstance(text, str) for text in texts):
        raise PydanticCustomError("invalid_type", "expected a string in each text part")
    return "".join(texts)


def _prompts_of(prompt: Any) -> tuple[Prompt, ...]:
    if isinstance(prompt, str):
        return (prompt,)
    if not isinstance(prompt, list):
        raise PydanticCustomError(
            "invalid_type", "expected a string, a list of strings, tokens, or lists of tokens"
        )
    if not prompt:
        raise PydanticCustomError("invalid_value", "it is empty, expected a text or tokens")
    tokens = _tokens_of(prompt)
    if tokens is not None:
        return (tokens,)
    if len(prompt) > MAX_SAMPLES:
        raise PydanticCustomError("invalid_value", "expected at most 128 prompts")
    if all(isinstance(each, str) for each in prompt):
        return tuple(prompt)
    lists = [_tokens_of(each) if isinstance(each, list) else None for each in prompt]
    if all(lists):
        return tuple(each for each in lists if each is not None)
    raise PydanticCustomError(
        "invalid_type", "expected strings, tokens, or lists of at least one token, and no mixture"
    )


def _tokens_of(values: list[Any]) -> tuple[int, ...] | None:
    """None if they are no tokens."""
    tokens = tuple(map(whole_of, values))
    return tokens if all(map(_is_token, tokens)) else None


def _only_tokens_of(values: Any) -> tuple[int, ...]:
    tokens = _tokens_of(values) if isinstance(values, list) else None
    if tokens is None:
        raise PydanticCustomError("invalid_type", "expected a list of token ids")
    return tokens


def _stops_of(stop: Any) -> tuple[str, ...]:
    if stop is None:
        return ()
    stops = (stop,) if isinstance(stop, str) else stop
    if not isinstance(stops, list | tuple) or not all(isinstance(each, str) for each in stops):
        raise PydanticCustomError("invalid_type", "expected a string or a list of strings")
    if len(stops) > MAX_STOPS or not all(0 < len(each) <= MAX_STOP_LENGTH for each in stops):
        raise PydanticCustomError(
            "invalid_value", "expected at most 16 strings of 1 to 256 characters"
        )
    return tuple(stops)


def _bias_of(bias: Any) -> dict[int, float]:
    if bias is None:
        return {}
    if not isinstance(bias, Mapping):
        raise PydanticCustomError("invalid_type", "expected an object of tokens and numbers")
    if len(bias) > MAX_LOGIT_BIAS:
        raise PydanticCustomError("invalid_value", "expected at most 1024 tokens")
    for token, value in bias.items():
        is_token = isinstance(token, str) and token.isascii() and token.isdecimal()
        if not is_token or len(token) > MAX_TOKEN_DIGITS:
            raise PydanticCustomError("invalid_value", "expected token ids as keys, such as '123'")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise PydanticCustomError("invalid_type", "expected a number for each token")
        if not -MAX_BIAS <= value <= MAX_BIAS:
            raise PydanticCustomError("invalid_value", "expected numbers from -100 to 100")
    return {int(token): float(value) for token, value in bias.items()}


def _tools_of(tools: Any) -> bool:
    if tools is None:
        return False
    if not isinstance(tools, list):
        raise PydanticCustomError("invalid_type", "expected a list of tools")
    if not 1 <= len(tools) <= MAX_TOOLS:
        raise PydanticCustomError("invalid_value", "expected 1 to 128 tools, or none")
    if not all(isinstance(tool, Mapping) and tool.get("type") == CALCULATOR for tool in tools):
        raise PydanticCustomError(
            "unsupported_value",
            "tools that a client defines are not supported: expected {CALL}, which this server "
            "computes by itself",
            {"CALL": '[{"type": "calculator"}]'},
        )
    return True


def _tool_choice_of(choice: Any) -> str | None:
    """OpenAI's other choices would have a client's own tools called; a field of its own, so that
    whose `tools` they are is checked before."""
    if choice == "required" or isinstance(choice, Mapping):
        raise PydanticCustomError(
            "unsupported_value",
            "the model decides by itself when to compute: expected 'none' or 'auto'",
        )
    if choice is not None and choice not in TOOL_CHOICES:
        raise PydanticCustomError("invalid_value", "expected 'none' or 'auto'")
    return None if choice is None else str(choice)


def _part(kind: str) -> dict[str, Any]:
    properties = {"type": {"const": kind}, kind: {"type": "string"}}
    return {"type": "object", "required": ["type", kind], "properties": properties}


NULL = {"type": "null"}
TOKEN = {"type": "integer", "minimum": 0}
TOKENS = {"type": "array", "minItems": 1, "items": TOKEN}

Content = Annotated[
    str,
    PlainValidator(_text_of),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": MAX_PARTS,
                    "items": {"anyOf": [_part("text"), _part("refusal")]},
                },
            ]
        }
    ),
]
Prompts = Annotated[
    tuple[Prompt, ...],
    PlainValidator(_prompts_of),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": MAX_SAMPLES,
                    "items": {"type": "string"},
                },
                TOKENS,
                {"type": "array", "minItems": 1, "maxItems": MAX_SAMPLES, "items": TOKENS},
            ]
        }
    ),
]
Tokens = Annotated[
    tuple[int, ...],
    PlainValidator(_only_tokens_of),
    WithJsonSchema({"type": "array", "items": TOKEN}),
]
STOP = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_LENGTH}
Stops = Annotated[
    tuple[str, ...],
    PlainValidator(_stops_of),
    WithJsonSchema(
        {"anyOf": [STOP, {"type": "array", "maxItems": MAX_STOPS, "items": STOP}, NULL]}
    ),
]
Bias = Annotated[
    dict[int, float],
    PlainValidator(_bias_of),
    WithJsonSchema(
        {
            "anyOf": [
                {
                    "type": "object",
                    "maxProperties": MAX_LOGIT_BIAS,
                    "propertyNames": {"pattern": f"^[0-9]{{1,{MAX_TOKEN_DIGITS}}}$"},
                    "additionalProperties": {
                        "type": "number",
                        "minimum": -MAX_BIAS,
                        "maximum": MAX_BIAS,
                    },
                },
                NULL,
            ]
        }
    ),
]
Tools = Annotated[
    bool,
    PlainValidator(_tools_of),
    WithJsonSchema(
        {
            "anyOf": [
                {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": MAX_TOOLS,
                    "items": {
                        "type": "object",
                        "required": ["type"],
                        "properties": {"type": {"const": CALCULATOR}},
                    },
                },
                NULL,
            ]
        }
    ),
]
ToolChoice = Annotated[
    str | None,
    PlainValidator(_tool_choice_of),
    WithJsonSchema({"anyOf": [{"type": "string", "enum": list(TOOL_CHOICES)}, NULL]}),
]

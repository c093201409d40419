"""What went wrong -> OpenAI's body.   in: exceptions   out: status, message, type, param, code
who calls: app.py, stream.py, limits.py, deadlines.py, admin.py, logs.py

Every error on every path is {"error": {message, type, param, code}} with a string code; one table
maps what was raised to its status.
Source: OpenAI's OpenAPI document (f85dbe2) and openai-python 3.52.
Read next: app.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nanochat.common.errors import (
    Aborted,
    ConfigError,
    DataError,
    DeadlineExceeded,
    NanochatError,
    Overloaded,
    RequestTooLong,
    TokenizerError,
    Unavailable,
)

__all__ = ["ApiError", "error_body", "to_api_error", "validation_error"]


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
    (Unavailable, _Answer(503, "service_unavailable", "server_error")),
    (DeadlineExceeded, _Answer(504, "deadline_exceeded", "server_error")),
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

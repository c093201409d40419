"""What went wrong -> OpenAI's body.   in: exceptions   out: status, message, type, param, code
who calls: app.py, stream.py, limits.py, deadlines.py, admin.py, logs.py

Every error on every path is {"error": {message, type, param, code}} with a string code; one table
maps what was raised to its status.  What a client sent is echoed as little as possible: 200
characters at most, and none that UTF-8 cannot hold.
Source: OpenAI's OpenAPI document (f85dbe2) and openai-python 3.52.
Read next: app.py (which asks for them), requests.py (what a wrong field is).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from starlette.exceptions import HTTPException

from nanochat.common.errors import (
    Aborted,
    ClientLeft,
    ConfigError,
    DataError,
    DeadlineExceeded,
    NanochatError,
    Overflowed,
    Overloaded,
    RequestTooLong,
    SchemaError,
    TokenizerError,
    Unavailable,
)
from nanochat.tokenizer.tokenizer import replace_surrogates

__all__ = [
    "ApiError",
    "ErrorBody",
    "ErrorMembers",
    "error_body",
    "http_error",
    "retry_headers",
    "shown",
    "to_api_error",
    "validation_error",
]

MAX_MESSAGE_LENGTH = 1000  # characters
MAX_ECHO_LENGTH = 200  # characters of what a client sent


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


class ErrorMembers(BaseModel):
    """What an error says; for the OpenAPI document."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(BaseModel):
    """The body of every error; for the OpenAPI document."""

    error: ErrorMembers


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    code: str
    kind: str = "invalid_request_error"
    param: str | None = None


# The first line that fits counts.
STATUS_BY_CLASS: tuple[tuple[type[NanochatError], _Answer], ...] = (
    (RequestTooLong, _Answer(400, "context_length_exceeded", param="messages")),
    (SchemaError, _Answer(400, "invalid_value", param="response_format")),
    (Overloaded, _Answer(429, "rate_limit_exceeded", "rate_limit_exceeded")),
    (Unavailable, _Answer(503, "service_unavailable", "server_error")),
    (DeadlineExceeded, _Answer(504, "deadline_exceeded", "server_error")),
    (ClientLeft, _Answer(499, "client_closed_request", "server_error")),  # nginx's number
    (Aborted, _Answer(503, "aborted", "server_error")),
    (DataError, _Answer(400, "invalid_value", param="messages")),
    (ConfigError, _Answer(400, "invalid_value")),
    (TokenizerError, _Answer(400, "invalid_value")),
    (NanochatError, _Answer(500, "engine_error", "server_error")),
)


def to_api_error(error: Exception, param: str | None = None) -> ApiError:
    """What a client is told of an exception: the message of ours, nothing of any other.

    `param` is named where the table names "messages", for bodies that have another text.
    """
    if isinstance(error, ApiError):
        return error
    for known, answer in STATUS_BY_CLASS:
        if isinstance(error, known):
            named = param if param and answer.param == "messages" else answer.param
            return ApiError(answer.status, str(error), answer.code, kind=answer.kind, param=named)
    message = "The server had an error while processing your request."
    return ApiError(500, message, "internal_error", kind="server_error")


# Asking again gives the same and costs the same: openai-python repeats a 5xx twice unless told not.
FINAL = (DeadlineExceeded, Overflowed)


def retry_headers(error: Exception) -> dict[str, str]:
    """What tells a client whether to ask again, and when."""
    headers = {"x-should-retry": "false"} if isinstance(error, FINAL) else {}
    if (retry_after_s := getattr(error, "retry_after_s", None)) is not None:
        headers["Retry-After"] = str(retry_after_s)
    return headers


# Statuses that the framework answers by itself, and their codes.
CODES = {
    400: "invalid_request",
    404: "unknown_url",
    405: "method_not_allowed",
    413: "request_too_large",
    415: "unsupported_media_type",
}


# What reading JSON raises beside JSONDecodeError: for bytes that are no UTF-8 and for numbers of
# thousands of digits, and for a hundred thousand brackets.
UNREADABLE = (ValueError, RecursionError)


def http_error(error: HTTPException, method: str, path: str) -> ApiError:
    """An error that the framework raised."""
    if isinstance(error.__cause__, UNREADABLE):
        return ApiError(400, NOT_JSON, "invalid_json")
    url = f"{method} {path[:MAX_ECHO_LENGTH]}"
    messages = {404: f"Invalid URL ({url})", 405: f"Not allowed to {url}"}
    message = messages.get(error.status_code, str(error.detail))
    kind = "server_error" if error.status_code >= 500 else "invalid_request_error"
    code = CODES.get(error.status_code, "invalid_request")
    return ApiError(error.status_code, message, code, kind=kind)


def error_body(error: ApiError) -> dict[str, Any]:
    """OpenAI's error body, within bounds."""
    members = {
        "message": shown(error.message, MAX_MESSAGE_LENGTH),
        "type": error.kind,
        "param": None if error.param is None else shown(error.param),
        "code": error.code,
    }
    return {"error": members}


def shown(text: str, most: int = MAX_ECHO_LENGTH) -> str:
    """A text as it can be told to whoever sent it: JSON may hold what no UTF-8 can."""
    return replace_surrogates(text if len(text) <= most else text[: most - 3] + "...")


def validation_error(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """The first problem that pydantic found, in OpenAI's words; nothing of the input is echoed."""
    first = errors[0]
    kind, context = first["type"], first.get("ctx") or {}
    if kind == "json_invalid":
        return ApiError(400, NOT_JSON, "invalid_json")
    inner = context.get("param")
    param = _param((*first["loc"], inner) if inner else first["loc"]) or None
    name = f"'{param}'" if param else "the body"
    if kind == "missing" and param:
        message, code = f"Missing required parameter: {name}.", "missing_required_parameter"
    elif kind in ("missing", "model_attributes_type", "model_type"):
        message, code = f"Invalid type for {name}: expected an object.", "invalid_type"
    elif limit := _limit(context):
        words, code = limit
        message = f"Invalid {name}: {words}."
    elif kind == "extra_forbidden":
        message, code = f"Unknown parameter: {name}.", "unknown_parameter"
    elif kind == "unsupported_value":
        message, code = f"Unsupported value for {name}: {first['msg']}.", "unsupported_value"
    elif kind in WRONG_VALUES:
        message, code = f"Invalid value for {name}: {_lower(first['msg'])}.", "invalid_value"
    else:
        message, code = f"Invalid type for {name}: {_lower(first['msg'])}.", "invalid_type"
    return ApiError(400, message, code, param=param)


WRONG_VALUES = frozenset({
    "invalid_value", "literal_error", "string_pattern_mismatch", "string_too_long",
    "string_too_short", "too_long", "too_short", "union_tag_invalid", "union_tag_not_found",
    "value_error",
})  # fmt: skip

NOT_JSON = (
    "We could not parse the JSON body of your request. (HINT: This likely means you aren't using "
    "your HTTP library correctly. The API expects a JSON payload, but what was sent was not valid "
    "JSON.)"
)


# What pydantic puts into a place to say which of several types it tried.
TRIED = frozenset({"text", "json_object", "json_schema"})


def _param(location: Sequence[int | str]) -> str:
    """("body", "messages", 0, "content") -> messages[0].content"""
    path, parts = "", list(location[1:])
    if parts[:1] == ["response_format"] and parts[1:2] and parts[1] in TRIED:
        del parts[1]
    for part in parts:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def _limit(context: Mapping[str, Any]) -> tuple[str, str] | None:
    for key, sign, word in (("ge", ">=", "below_min"), ("gt", ">", "below_min"),
                            ("le", "<=", "above_max"), ("lt", "<", "above_max")):  # fmt: skip
        if key in context:
            bound = context[key]
            kind = "integer" if isinstance(bound, int) else "decimal"
            told = bound if kind == "integer" else f"{bound:g}"
            return f"expected a value {sign} {told}", f"{kind}_{word}_value"
    return None


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]

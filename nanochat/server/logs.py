"""What happens -> lines.   in: Python's log records, requests   out: JSON or text on standard error
who calls: cli/serve.py (sets it up), app.py (the middleware)

The standard library's logging, because the engine's and uvicorn's records come that way: one
formatter makes all of them JSON, with the id of the request they belong to.  Neither prompts nor
answers are logged, nor paths that were asked for: only the template of the route that answered.
Read next: metrics.py (what is counted instead).
"""

import contextlib
import json
import logging
import re
import sys
import time
import uuid
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, Literal, TextIO

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanochat.server.errors import to_api_error
from nanochat.server.limits import ENDED, add_security_headers, answer_error
from nanochat.server.metrics import Metrics

__all__ = ["LogFormat", "RequestLog", "Structured", "request_id", "set_up_logs"]

LogFormat = Literal["auto", "json", "text"]

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request that is being answered."""

SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
UNMATCHED = "unmatched"
QUIET = frozenset({"/health", "/ready", "/metrics"})  # asked for every few seconds, by machines

logger = logging.getLogger("nanochat.server")
# What a record has of its own; the rest was given with `extra`.
OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class Structured(logging.Formatter):
    """A record as one line, JSON or text; control characters are escaped in both."""

    def __init__(self, *, is_json: bool) -> None:
        super().__init__()
        self._is_json = is_json

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        fields: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        if name := request_id.get():
            fields["request_id"] = name
        fields |= {name: value for name, value in vars(record).items() if name not in OWN}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        if self._is_json:
            return json.dumps(fields, default=str)
        words = [str(fields.pop(name)) for name in ("time", "level", "event")]
        words += [f"{name}={value}" for name, value in fields.items() if name != "logger"]
        return _escaped(" ".join(words))


@contextlib.contextmanager
def set_up_logs(format: LogFormat = "auto", stream: TextIO | None = None) -> Iterator[None]:
    """Within, every record of this process is a line; `auto` is text on a terminal, else JSON."""
    stream = stream or sys.stderr
    is_json = format == "json" or (format == "auto" and not stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Structured(is_json=is_json))
    root = logging.getLogger()
    before = (root.handlers, root.level, logger.level)
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.handlers = before[0]
        root.setLevel(before[1])
        logger.setLevel(before[2])


class RequestLog:
    """ASGI middleware: an id for every request, a line and a count for every answer; and whatever
    no handler has caught becomes an answer here, so that it carries all headers."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; anything else passes."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin_s = time.perf_counter()
        name = _request_id(Headers(scope=scope).get("x-request-id", ""))
        request_id.set(name)
        scope.setdefault("state", {})["request_id"] = name
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = name
                add_security_headers(message)
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception as error:
            self.metrics.error(type(error).__name__)
            logger.error("a request failed", exc_info=error)
            if status:
                raise  # half an answer is out: uvicorn closes the connection
            await answer_error(to_api_error(error), send_with_id)
        finally:
            self._note(scope, status, time.perf_counter() - begin_s)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        path = getattr(scope.get("route"), "path", UNMATCHED)
        method = scope["method"] if scope["method"] in METHODS else "OTHER"
        status = scope["state"].get(ENDED) or status or 499  # nginx's: the client went away
        self.metrics.http(method, path, status, seconds)
        client = scope.get("client")
        fields = {
            "method": method,
            "path": path,
            "status": status,
            "duration_ms": round(seconds * 1000, 1),
            "client": client[0] if client else "",
            **scope["state"].get("log", {}),
        }
        level = logging.DEBUG if path in QUIET and status < 400 else logging.INFO
        logger.log(level, "request", extra=fields)


METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def _request_id(given: str) -> str:
    return given if SANE_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"


def _escaped(text: str) -> str:
    """On one line and without control characters; a traceback's line breaks become \\n."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )

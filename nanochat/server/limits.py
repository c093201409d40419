"""What may come in, and what goes out with every answer.   in: ASGI events   out: ASGI events
who calls: app.py, around all routes

Whoever asks must be allowed to: with keys, everything but a short list of paths needs one.  A page
of another site must not use a server on this machine through the browser of whoever visits it: the
Host must be ours (DNS rebinding), a POST must be JSON (which a foreign page cannot send without
asking) and not from another site.  Heads and bodies have a size limit, the body's counted as it
arrives.
Read next: keys.py, deadlines.py (who is slow), app.py.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanochat.server.errors import ApiError, error_body
from nanochat.server.keys import Keys

__all__ = [
    "ENDED",
    "LOOPBACK_HOSTS",
    "PUBLIC_PATHS",
    "SECURITY_HEADERS",
    "Guard",
    "Limits",
    "add_security_headers",
    "answer_error",
]

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})

ENDED = "ended"
"""In the state of a request that ended without an answer of ours: the status it ended with."""

PUBLIC_PATHS = frozenset({"/health", "/ready"})
"""Answered without a key, like the files of the page; nothing else is."""

SECURITY_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How much a server takes on, and from whom."""

    max_body_bytes: int = 1 << 20
    """Larger bodies are refused with 413; the longest context of ours is a tenth of it."""
    max_head_bytes: int = 32 << 10
    """Names and values of all headers together; more is refused with 431."""
    max_headers: int = 100
    max_path_bytes: int = 2048
    """Path and query; longer ones are refused with 414."""
    allowed_hosts: frozenset[str] | None = LOOPBACK_HOSTS
    """Host headers answered, without the port. None: any."""


class Guard:
    """ASGI middleware that refuses what breaks the limits, and who shows no key where one is asked
    for."""

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        keys: Keys | None = None,
        public_paths: frozenset[str] = PUBLIC_PATHS,
        on_refusal: Callable[[str], None] = lambda code: None,
    ) -> None:
        self.app, self.limits, self.keys = app, limits, keys
        self.public_paths, self.on_refusal = public_paths, on_refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the lifespan of the server, which passes."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                add_security_headers(message)
            await send(message)

        headers = Headers(scope=scope)
        refusal = self._too_long(scope) or self._not_allowed(scope, headers)
        refusal = refusal or self._refusal(scope["method"], headers)
        if refusal:
            self.on_refusal(refusal.code)
            await answer_error(refusal, send_with_headers)
        else:
            await self.app(scope, self._counting(receive), send_with_headers)

    def _too_long(self, scope: Scope) -> ApiError | None:
        limits = self.limits
        if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > limits.max_path_bytes:
            message = f"The URL is too long: expected at most {limits.max_path_bytes} bytes."
            return ApiError(414, message, "url_too_long")
        num_bytes = sum(len(name) + len(value) for name, value in scope["headers"])
        if len(scope["headers"]) > limits.max_headers or num_bytes > limits.max_head_bytes:
            message = (
                f"The headers are too large: expected at most {limits.max_headers} of "
                f"{limits.max_head_bytes} bytes together."
            )
            return ApiError(431, message, "headers_too_large")
        return None

    def _not_allowed(self, scope: Scope, headers: Headers) -> ApiError | None:
        """Who is asked for a key: everybody, for everything but the public paths."""
        state = scope.setdefault("state", {})
        state["tenant"] = ""
        hosts = self.limits.allowed_hosts
        if hosts is not None and _without_port(headers.get("host", "")).lower() not in hosts:
            message = "This Host is not served here: use the address that the server printed."
            return ApiError(403, message, "host_not_allowed")
        if self.keys is None:
            return None
        tenant = self.keys.tenant_of(headers.get("authorization", ""))
        if tenant is not None:
            state["tenant"] = tenant
            return None
        if scope["path"] in self.public_paths and scope["method"] in ("GET", "HEAD"):
            return None
        if "authorization" in headers:
            message = "Incorrect API key provided."
        else:
            message = (
                "You didn't provide an API key. You need to provide your API key in an "
                "Authorization header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY)."
            )
        return ApiError(401, message, "invalid_api_key")

    def _refusal(self, method: str, headers: Headers) -> ApiError | None:
        if method not in ("POST", "PUT", "PATCH", "DELETE"):
            return None
        if headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            message = "Requests from pages of other sites are refused."
            return ApiError(403, message, "cross_site_request")
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if method == "POST" and media_type != "application/json":
            message = "Unsupported Content-Type: expected application/json."
            return ApiError(415, message, "unsupported_media_type")
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > self.limits.max_body_bytes:
            return _too_large(self.limits.max_body_bytes)
        return None

    def _counting(self, receive: Receive) -> Receive:
        num_bytes = 0

        async def counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self.limits.max_body_bytes:
                error = _too_large(self.limits.max_body_bytes)
                raise HTTPException(error.status, error.message)
            return message

        return counted


def add_security_headers(start: Message) -> None:
    """Add to the start of an answer those that it has not set itself."""
    headers = MutableHeaders(scope=start)
    for name, value in SECURITY_HEADERS.items():
        headers.setdefault(name, value)


async def answer_error(error: ApiError, send: Send) -> None:
    """Send OpenAI's error body as a whole answer."""
    body: Any = json.dumps(error_body(error)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _without_port(host: str) -> str:
    """localhost:8000 -> localhost; [::1]:8000 -> [::1]"""
    head, colon, port = host.rpartition(":")
    return head if colon and port.isdecimal() else host


def _too_large(max_bytes: int) -> ApiError:
    message = f"The body is too large: expected at most {max_bytes} bytes."
    return ApiError(413, message, "request_too_large")

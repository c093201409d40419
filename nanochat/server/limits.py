"""What may come in, and what goes out with every answer.   in: ASGI events   out: ASGI events
who calls: app.py, around all routes

A page of another site must not use a server on this machine through the browser of whoever visits
it: the Host must be ours (DNS rebinding), a POST must be JSON (which a foreign page cannot send
without asking) and not from another site.  A body has a size limit, counted as it arrives.
Read next: app.py.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanochat.server.protocol import ApiError, error_body

__all__ = ["LOOPBACK_HOSTS", "SECURITY_HEADERS", "Guard", "Limits"]

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})

SECURITY_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How much a server takes on."""

    max_body_bytes: int = 1 << 20
    """Larger bodies are refused with 413; the longest context of ours is a tenth of it."""
    max_active: int = 128
    """Requests that wait or run; more are refused with 429."""
    allowed_hosts: frozenset[str] | None = LOOPBACK_HOSTS
    """Host headers answered, without the port. None: any."""


class Guard:
    """ASGI middleware that refuses what breaks the limits."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the lifespan of the server, which passes."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        if refusal := self._refusal(scope["method"], Headers(scope=scope)):
            await _answer(refusal, send_with_headers)
        else:
            await self.app(scope, self._counting(receive), send_with_headers)

    def _refusal(self, method: str, headers: Headers) -> ApiError | None:
        hosts = self.limits.allowed_hosts
        if hosts is not None and _without_port(headers.get("host", "")).lower() not in hosts:
            message = "This Host is not served here: use the address that the server printed."
            return ApiError(403, message, "host_not_allowed")
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
        if length.isdecimal() and int(length) > self.limits.max_body_bytes:
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


def _without_port(host: str) -> str:
    """localhost:8000 -> localhost; [::1]:8000 -> [::1]"""
    head, colon, port = host.rpartition(":")
    return head if colon and port.isdecimal() else host


def _too_large(max_bytes: int) -> ApiError:
    message = f"The body is too large: expected at most {max_bytes} bytes."
    return ApiError(413, message, "request_too_large")


async def _answer(error: ApiError, send: Send) -> None:
    body: Any = json.dumps(error_body(error)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

"""The chat page's files -> routes.   in: nanochat/web   out: routes   who calls: app.py

The files are few and fixed: no path from a request ever reaches the disk.
Read next: nanochat/web/index.html.
"""

import hashlib
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

__all__ = ["PAGE_FILES", "page_routes"]

PAGE_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/chat.css": ("chat.css", "text/css; charset=utf-8"),
    "/chat.js": ("chat.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}


def page_routes() -> list[Route]:
    """A route for each file; a browser that has it already is told so."""
    return [_route(path, name, media_type) for path, (name, media_type) in PAGE_FILES.items()]


def _route(path: str, name: str, media_type: str) -> Route:
    content = (resources.files("nanochat") / "web" / name).read_bytes()
    headers = {
        "ETag": f'"{hashlib.sha256(content).hexdigest()[:16]}"',
        "Cache-Control": "no-cache",  # kept, but asked for again: an upgrade shows at once
    }

    async def respond(request: Request) -> Response:
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media_type, headers=headers)

    return Route(path, respond, methods=["GET"])

"""The chat page's files -> routes.   in: nanochat/web   out: routes   who calls: app.py

The files are read once: no path from a request ever reaches the disk.
Read next: nanochat/web/index.html, nanochat/web/app.js.
"""

import hashlib
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

__all__ = ["PAGE_FILES", "page_routes"]

MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


def _files() -> dict[str, tuple[str, str]]:
    names = sorted(file.name for file in (resources.files("nanochat") / "web").iterdir())
    types = {name: MEDIA_TYPES.get(name[name.rfind(".") :]) for name in names}
    return {
        "/" if name == "index.html" else f"/{name}": (name, media_type)
        for name, media_type in types.items()
        if media_type is not None  # what an editor leaves behind is no part of the page
    }


PAGE_FILES = _files()
"""Paths, each with the file behind it and its media type; none of them needs a key."""


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

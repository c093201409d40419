"""A page of one's own -> routes.   in: a file or a folder   out: routes, and what they may do
who calls: app.py

Everything is read when the server starts, so no path from a request reaches the disk: hidden files,
links that lead elsewhere and unknown kinds are left out.  A page made for a laxer server (karpathy/
nanochat's ui.html is one file with its script inside and onclick on its buttons) gets a policy of
its own: the scripts and handlers that are in it may run, by their hash, and no others.
Read next: page.py (our page), limits.py (the policy of everything else).
"""

import base64
import hashlib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nanochat.common.errors import ConfigError

__all__ = ["own_page_routes"]

MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/x-icon",
    ".jpg": "image/jpeg",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".mjs": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
}
MAX_FILES = 500
MAX_BYTES = 32 << 20
LOGO = "logo.svg"  # what a page of one file may show
# Where karpathy/nanochat's page looks for its server, unless it is told otherwise.
OTHER_PORT = b"const API_URL = `http://${window.location.hostname}:8000`;"


def own_page_routes(path: Path) -> list[Route]:
    """A route for the file and the logo beside it, or for every file of the folder.

    Raises: ConfigError if it is not there, has no index.html, or is too much.
    """
    files = dict(_files(path.expanduser()))
    if "/" not in files:
        raise ConfigError(f"--ui-path {path}: expected an HTML file, or a folder with index.html")
    num_bytes = sum(len(content) for content, _ in files.values())
    if len(files) > MAX_FILES or num_bytes > MAX_BYTES:
        raise ConfigError(
            f"--ui-path {path}: {len(files)} files of {num_bytes} bytes, expected at most "
            f"{MAX_FILES} of {MAX_BYTES}: is it the right folder?"
        )
    return [_route(place, *found) for place, found in sorted(files.items())]


def _files(path: Path) -> Iterator[tuple[str, tuple[bytes, str]]]:
    """Where each is served, its content and kind."""
    try:
        if path.is_file():
            yield "/", (path.read_bytes(), MEDIA_TYPES[".html"])
            if (logo := path.with_name(LOGO)).is_file():
                yield f"/{LOGO}", (logo.read_bytes(), MEDIA_TYPES[".svg"])
            return
        root = path.resolve()
        for number, found in enumerate(sorted(path.rglob("*"))):
            if number > 20 * MAX_FILES:
                raise ConfigError(f"--ui-path {path}: too many files: is it the right folder?")
            place = found.relative_to(path)
            is_hidden = any(part.startswith(".") for part in place.parts)
            kind = MEDIA_TYPES.get(found.suffix.lower())
            is_inside = found.resolve().is_relative_to(root)
            if kind is None or is_hidden or not is_inside or not found.is_file():
                continue
            yield f"/{place.as_posix()}", (found.read_bytes(), kind)
            if place.as_posix() == "index.html":
                yield "/", (found.read_bytes(), kind)
    except OSError as error:
        raise ConfigError(f"--ui-path {path}: {error.strerror}") from None


def _route(place: str, content: bytes, kind: str) -> Route:
    headers = {"Cache-Control": "no-cache"}
    if kind == MEDIA_TYPES[".html"]:
        content = content.replace(OTHER_PORT, b"const API_URL = '';")
        headers["Content-Security-Policy"] = _policy(content)
    headers["ETag"] = f'"{hashlib.sha256(content).hexdigest()[:16]}"'

    async def respond(request: Request) -> Response:
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=kind, headers=headers)

    return Route(place, respond, methods=["GET"])


def _policy(content: bytes) -> str:
    """What the page may do: its own scripts, any style, this server, and nobody else's anything."""
    inline = _Inline(content)
    sources = ["'self'", *map(_hash, inline.scripts)]
    if inline.handlers:  # without the word, a browser looks for no handler among the hashes
        sources += ["'unsafe-hashes'", *map(_hash, inline.handlers)]
    scripts = " ".join(dict.fromkeys(sources))
    return (
        f"default-src 'none'; script-src {scripts}; "
        "style-src 'self' 'unsafe-inline'; connect-src 'self'; img-src 'self' data:; "
        "font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


class _Inline(HTMLParser):
    """The scripts inside a page and the values of its on* attributes, as a browser hashes them:
    after newlines are made one character and references such as &amp; are read."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.handlers: list[str] = []
        self._is_script = False
        text = content.decode("utf-8-sig", errors="replace")
        self.feed(text.replace("\r\n", "\n").replace("\r", "\n"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handlers += [value for name, value in attrs if name.startswith("on") and value]
        self._is_script = tag == "script" and "src" not in dict(attrs)
        if self._is_script:
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self._is_script:
            self.scripts[-1] += data

    def handle_endtag(self, tag: str) -> None:
        self._is_script = False


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"

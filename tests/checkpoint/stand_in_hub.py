"""A Hugging Face Hub on this machine: just enough of its API for huggingface_hub to load files.

    GET  /api/models/<repo>[/revision/<rev>]     the commit and the names of the files
    GET  /api/models/<repo>/tree/<rev>           their sizes
    HEAD, GET /<repo>/resolve/<rev>/<file>       a file, from any byte on

Errors carry the Hub's own codes in X-Error-Code.
Source: what huggingface_hub 1.3 and 2.4 ask for, and the errors they know.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

__all__ = ["Repository", "StandInHub", "running_hub"]


@dataclass
class Repository:
    """A model repository: its files at each commit, and the names of commits."""

    commits: dict[str, dict[str, bytes]]
    branches: dict[str, str]
    token: str | None = None
    """Who may load its files. None: everybody."""

    @classmethod
    def of(cls, directory: Path, *, token: str | None = None) -> "Repository":
        """All files below a directory, as one commit on `main`."""
        files = {
            path.relative_to(directory).as_posix(): path.read_bytes()
            for path in sorted(directory.rglob("*"))
            if path.is_file()
        }
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        return cls({commit: files}, {"main": commit}, token)

    @property
    def commit(self) -> str:
        """That of `main`."""
        return self.branches["main"]

    def resolve(self, revision: str) -> str | None:
        """The commit that a branch, a tag or a commit names."""
        commit = self.branches.get(revision, revision)
        return commit if commit in self.commits else None


@dataclass
class StandInHub:
    """What is served, what was asked for, and where the line breaks."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    endpoint: str = ""
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    """(method, path, Range) of every request."""
    break_after: dict[str, list[int]] = field(default_factory=dict)
    """By file name: after how many bytes of its next downloads the connection breaks."""
    status: int | None = None
    """Answer everything with this."""

    def downloads(self) -> list[tuple[str, str]]:
        """(file, Range) of every file that was loaded, in order."""
        return [
            (path.partition("/resolve/")[2].partition("/")[2], ranges)
            for method, path, ranges in self.asked
            if method == "GET" and "/resolve/" in path
        ]


@contextmanager
def running_hub() -> Iterator[StandInHub]:
    """A hub that answers on loopback until the block ends."""
    hub = StandInHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: StandInHub

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a test's output is its own."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((self.command, path, self.headers.get("Range", "")))
        if self.hub.status is not None:
            self._refuse(self.hub.status, "")
        elif match := re.fullmatch(
            r"/api/models/([^/]+/[^/]+)(?:/(?:revision|tree)/([^/]+))?", path
        ):
            self._describe(match[1], match[2] or "main", is_tree="/tree/" in path)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._serve(match[1], match[2], match[3])
        else:
            self._refuse(404, "EntryNotFound")

    def _files(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repository = self.hub.repositories.get(name)
        if repository is None:  # the Hub does not tell strangers whether it exists
            self._refuse(401, "RepoNotFound")
            return None
        commit = repository.resolve(revision)
        if commit is None:
            self._refuse(404, "RevisionNotFound")
            return None
        return commit, repository.commits[commit]

    def _describe(self, name: str, revision: str, *, is_tree: bool) -> None:
        found = self._files(name, revision)
        if found is None:
            return
        commit, files = found
        answer: object = {
            "id": name,
            "modelId": name,
            "sha": commit,
            "siblings": [{"rfilename": file} for file in files],
        }
        if is_tree:
            answer = [
                {
                    "type": "file",
                    "path": file,
                    "size": len(content),
                    "oid": hashlib.sha1(content).hexdigest(),
                }
                for file, content in files.items()
            ]
        body = json.dumps(answer).encode()
        self._head(200, {"Content-Type": "application/json", "Content-Length": str(len(body))})
        self.wfile.write(body)

    def _serve(self, name: str, revision: str, file: str) -> None:
        found = self._files(name, revision)
        if found is None:
            return
        token = self.hub.repositories[name].token
        if token is not None and self.headers.get("Authorization") != f"Bearer {token}":
            self._refuse(401, "GatedRepo")
            return
        commit, files = found
        if file not in files:
            self._refuse(404, "EntryNotFound")
            return
        content = files[file]
        ranges = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(ranges[1]) if ranges else 0
        headers = {
            "X-Repo-Commit": commit,
            "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
            "Content-Length": str(len(content) - start),
            "Accept-Ranges": "bytes",
        }
        if ranges:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._head(206 if ranges else 200, headers)
        if self.command == "HEAD":
            return
        breaks = self.hub.break_after.get(file)
        if breaks:
            self.wfile.write(content[start : start + breaks.pop(0)])
            self.close_connection = True  # in the middle of what was announced
        else:
            self.wfile.write(content[start:])

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _refuse(self, status: int, code: str) -> None:
        self._head(status, {"X-Error-Code": code, "Content-Length": "0"})

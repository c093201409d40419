"""One request -> the rest of a file.   in: an address, how much is here   out: Answer
who calls: download.py   (imports no torch)

http and https by the standard library; every other scheme (s3://, gs://, ...) by fsspec.  The Hub
states a file's SHA-256 in the answer that sends one on to where it lies; its token is shown to the
Hub alone, wherever it sends one on to.
Read next: download_store.py (other schemes), download.py (what is done with it).
"""

import contextlib
import email.utils
import http.client
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import asdict, dataclass
from typing import Any, NoReturn, Protocol

from nanochat.common.download_store import open_object
from nanochat.common.env import hub_url
from nanochat.common.errors import DataError

__all__ = ["Answer", "Body", "Known", "RetryLater", "open_answer"]

AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses that may pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What a server said of a file."""

    num_bytes: int | None = None
    sha256: str | None = None
    etag: str | None = None
    """A strong one."""
    modified: str | None = None

    @property
    def validator(self) -> str | None:
        """What If-Range asks by."""
        return self.etag or self.modified

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Known":
        """The inverse of `to_json`; other keys are passed over."""
        return cls(**{name: values.get(name) for name in cls.__slots__})


class Body(Protocol):
    """Bytes that arrive."""

    def read1(self, size: int, /) -> bytes:
        """What has come, at most so many; none at the end.  `read` would wait for all of them, and
        throw away what it has if the line breaks meanwhile."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *_: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class Answer:
    """The rest of a file."""

    body: Body
    start: int
    """The place of its first byte in the file."""
    known: Known


class RetryLater(Exception):
    """The server is busy."""

    def __init__(self, message: str, wait_s: float | None) -> None:
        super().__init__(message)
        self.wait_s = wait_s
        """As long as it asks to be left alone."""


def open_answer(url: str, have: int, known: Known, timeout_s: float) -> Answer:
    """The bytes of a file from `have` on, or all of them where the file is another meanwhile.

    Raises: RetryLater where the server is busy; DataError where it refuses for good; OSError or
            HTTPException where it cannot be reached.
    """
    if urllib.parse.urlsplit(url).scheme in ("http", "https"):
        return _http_answer(url, have, known, timeout_s)
    return _store_answer(url, have, known, timeout_s)


# ---------------------------------------------------------------------------------------- http


def _http_answer(url: str, have: int, known: Known, timeout_s: float) -> Answer:
    headers = {"User-Agent": "nanochat", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if known.validator:
            headers["If-Range"] = known.validator
    request = urllib.request.Request(url, headers=headers)
    if (token := _token_for(url)) is not None:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    on_the_way = _OnTheWay()
    try:
        body = urllib.request.build_opener(on_the_way).open(request, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and have:  # it has become shorter
                return _http_answer(url, 0, Known(), timeout_s)
            _refused(url, error)
    try:
        return _answer(url, body, have, known, on_the_way.sha256, timeout_s)
    except BaseException:
        body.close()
        raise


def _answer(
    url: str, body: Any, have: int, known: Known, sha256: str | None, timeout_s: float
) -> Answer:
    headers = body.headers
    if (encoding := headers.get("Content-Encoding", "identity")) != "identity":
        raise DataError(f"{url} is sent as {encoding} unasked, so that it cannot be checked")
    start, total = 0, _number(headers.get("Content-Length"))
    if body.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range") or "")
        if match is None:
            raise http.client.HTTPException("a part was sent that does not say which")
        start, total = int(match[1]), _number(match[2])
    etag = headers.get("ETag")
    now = Known(
        num_bytes=total,
        sha256=_linked_hash(headers) or sha256,
        etag=etag if etag and not etag.startswith("W/") else None,
        modified=headers.get("Last-Modified"),
    )
    if start and _is_another(known, now):  # a server that does not heed If-Range
        body.close()
        return _http_answer(url, 0, Known(), timeout_s)
    return Answer(body, start, now)


def _is_another(before: Known, now: Known) -> bool:
    return any(
        None not in (old, new) and old != new
        for old, new in (
            (before.num_bytes, now.num_bytes),
            (before.sha256, now.sha256),
            (before.etag, now.etag),
            (before.modified, now.modified),
        )
    )


def _refused(url: str, error: urllib.error.HTTPError) -> NoReturn:
    """Raises: RetryLater or DataError."""
    said = f"{_host(url)} answered {error.code} {error.reason}".rstrip()
    if error.code in AGAIN:
        raise RetryLater(said, _retry_after_s(error.headers.get("Retry-After"))) from None
    if error.code in (401, 403) and url.startswith(hub_url() + "/"):
        said += (
            ": check the name; if access is restricted, ask for it on the data set's page and log "
            "in (`hf auth login` or HF_TOKEN)"
        )
    raise DataError(f"{url} cannot be loaded ({said})") from None


def _retry_after_s(value: str | None) -> float | None:
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None


def _token_for(url: str) -> str | None:
    if not url.startswith(hub_url() + "/"):
        return None
    from huggingface_hub import get_token

    return get_token()


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None


def _host(url: str) -> str:
    return urllib.parse.urlsplit(url).netloc


def _linked_hash(headers: Any) -> str | None:
    stated = (headers.get("X-Linked-ETag") or "").strip('W/"')
    return stated if re.fullmatch(r"[0-9a-f]{64}", stated) else None


class _OnTheWay(urllib.request.HTTPRedirectHandler):
    """Remembers the SHA-256 that is stated where one is sent on."""

    def __init__(self) -> None:
        self.sha256: str | None = None

    def redirect_request(self, *arguments: Any) -> urllib.request.Request | None:
        self.sha256 = _linked_hash(arguments[4]) or self.sha256
        request = super().redirect_request(*arguments)
        # The Hub sends one on to other addresses of its own, which ask for the token again.
        if request is not None and (token := _token_for(request.full_url)) is not None:
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        return request


# ---------------------------------------------------------------------------------------- stores


def _store_answer(url: str, have: int, known: Known, timeout_s: float) -> Answer:
    opened = open_object(url, timeout_s)
    now = Known(num_bytes=opened.num_bytes, etag=opened.etag, modified=opened.modified)
    start = 0 if _is_another(known, now) else have
    opened.body.seek(start)
    return Answer(opened.body, start, now)

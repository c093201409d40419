"""An object store -> bytes, addresses of files.   in: s3://, gs://, ...   out: Opened
who calls: download_answer.py, download.py   (imports no torch)

fsspec speaks to the stores, each through a library of its own that has its own errors and its own
idea of waiting.  Here all of them are alike: what may pass is an OSError, what will not is a
DataError, and what says nothing for `timeout_s` has failed.
Read next: download_answer.py (http, and what an answer is).
"""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from nanochat.common.errors import DataError

__all__ = ["Opened", "list_urls", "open_object"]

T = TypeVar("T")
BLOCK_BYTES = 4 << 20  # asked for at once; s3fs would take 50 MB, which a slow line has no time for


class Opened(NamedTuple):
    """A file of a store."""

    body: "_Body"
    num_bytes: int | None
    etag: str | None
    modified: str | None


def open_object(url: str, timeout_s: float) -> Opened:
    """A file, at its beginning.

    Raises: DataError where it is not there, or not for us; OSError where the store fails.
    """

    def opened() -> Opened:
        system, path = _file_system(url)
        facts = system.info(path)
        etag = facts.get("ETag") or facts.get("etag") or facts.get("md5Hash")
        changed = facts.get("LastModified") or facts.get("mtime") or facts.get("created")
        return Opened(
            _Body(url, system.open(path, "rb", block_size=BLOCK_BYTES), timeout_s),
            facts.get("size"),
            None if etag is None else str(etag),
            None if changed is None else str(changed),
        )

    return _within(url, timeout_s, opened)


def list_urls(url: str, timeout_s: float = 20.0) -> list[str]:
    """The addresses of what is in a folder, or matches a pattern, or of the file itself, sorted.

    Raises: DataError where there is nothing, or fsspec does not know the scheme; OSError where the
            store fails.
    """

    def listed() -> list[str]:
        system, path = _file_system(url)
        if any(mark in path for mark in "*?["):
            found = system.glob(path)
        else:
            found = system.find(path) if system.isdir(path) else [path]
        names = sorted(str(each) for each in found if not system.isdir(each))
        if not names:
            raise FileNotFoundError(url)
        return [str(system.unstrip_protocol(name)) for name in names]

    return _within(url, timeout_s, listed)


class _Body:
    """The bytes of a file, read in time or not at all."""

    def __init__(self, url: str, file: Any, timeout_s: float) -> None:
        self._url, self._file, self._timeout_s = url, file, timeout_s

    def seek(self, place: int) -> None:
        """Go on from there."""
        _within(self._url, self._timeout_s, lambda: self._file.seek(place))

    def read1(self, size: int, /) -> bytes:
        """At most so many; none at the end."""
        return _within(self._url, self._timeout_s, lambda: bytes(self._file.read(size)))

    def __enter__(self) -> "_Body":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # it was only read
            _within(self._url, self._timeout_s, self._file.close)


def _file_system(url: str) -> tuple[Any, str]:
    try:
        import fsspec
    except ImportError:
        raise DataError(
            f"{url} needs fsspec: pip install 'nanochat[cluster]' (http:// and https:// do not)"
        ) from None
    system, path = fsspec.core.url_to_fs(url)
    return system, str(path)


def _within(url: str, timeout_s: float, work: Callable[[], T]) -> T:
    """The result of work, done by a thread that nobody waits for longer: stores have no timeout in
    common."""
    done: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            done.put((work(), None))
        except BaseException as error:  # it is raised where the result was asked for
            done.put((None, error))

    threading.Thread(target=run, name="object store", daemon=True).start()
    try:
        result, error = done.get(timeout=timeout_s)
    except queue.Empty:
        raise TimeoutError(f"the store says nothing for {timeout_s:.0f} s") from None
    with _plain_errors(url):
        if error is not None:
            raise error
    return result  # type: ignore[return-value]  # None is a result of some work


@contextlib.contextmanager
def _plain_errors(url: str) -> Iterator[None]:
    """What will not pass by trying again as DataError; what may as OSError, whatever library it is
    from: botocore's, gcsfs's and aiohttp's errors have nothing in common but Exception."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{url} does not exist") from None
    except (DataError, MemoryError):
        raise
    except PermissionError as error:
        raise DataError(f"{url} cannot be read ({error}): check the credentials") from None
    except (ImportError, ValueError) as error:  # a scheme without its library, or without meaning
        raise DataError(f"{url} cannot be loaded ({error})") from None
    except OSError:
        raise
    except Exception as error:
        raise ConnectionError(f"{type(error).__name__}: {error}") from error

"""Object stores that fail in ways of their own, and stores that say nothing at all."""

import io
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nanochat.common.download import DownloadOptions, RemoteFile, download_file, list_patiently
from nanochat.common.errors import DataError

fsspec = pytest.importorskip("fsspec")
pytestmark = pytest.mark.req("FR-032")

CONTENT = bytes(range(256)) * 40
QUICK = DownloadOptions(backoff_s=0.001, num_tries=3, timeout_s=5.0)
REMOTE = RemoteFile(url="moody://bucket/f", name="f")


class LibraryError(Exception):
    """As botocore's, gcsfs's and aiohttp's: no OSError."""


class Moody(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """A store of two files in a bucket, which has a trouble now and then."""

    protocol = "moody"
    cachable = False
    trouble: Callable[[str], None]

    def info(self, path: str, **said: Any) -> dict[str, Any]:
        Moody.trouble("info")
        is_folder = path == "bucket"
        kind = "directory" if is_folder else "file"
        return {"name": path, "size": 0 if is_folder else len(CONTENT), "type": kind, "ETag": "a"}

    def find(self, path: str, **said: Any) -> list[str]:
        Moody.trouble("find")
        return [f"{path}/f", f"{path}/g"]

    def open(self, path: str, mode: str = "rb", **said: Any) -> Any:
        return MoodyFile(CONTENT)


class MoodyFile(io.BytesIO):
    def read(self, size: int | None = -1, /) -> bytes:
        Moody.trouble("read")
        return super().read(size)


@pytest.fixture(autouse=True)
def troubles() -> Iterator[dict[str, int]]:
    """How often each of a store's calls is yet to fail."""
    left: dict[str, int] = {}

    def trouble(call: str) -> None:
        if left.get(call, 0) > 0:
            left[call] -= 1
            raise LibraryError(f"An error occurred (SlowDown) when calling {call}")

    Moody.trouble = staticmethod(trouble)
    fsspec.register_implementation("moody", Moody, clobber=True)
    yield left


@pytest.mark.parametrize("call", ["info", "read"])
def test_a_librarys_own_errors_may_pass(
    call: str, troubles: dict[str, int], tmp_path: Path
) -> None:
    troubles[call] = 2
    assert download_file(REMOTE, tmp_path, QUICK).read_bytes() == CONTENT
    troubles[call] = 99
    with pytest.raises(DataError, match=r"LibraryError: An error occurred .*; 3 tries\)"):
        download_file(RemoteFile(url="moody://bucket/g", name="g"), tmp_path, QUICK)


def test_folders_are_listed_with_patience(troubles: dict[str, int]) -> None:
    troubles["find"] = 2
    found = list_patiently("moody://bucket", QUICK)
    assert [url.rpartition("/")[2] for url in found] == ["f", "g"]
    troubles["find"] = 3
    with pytest.raises(
        DataError, match=r"moody://bucket cannot be listed \(LibraryError: .*3 tries"
    ):
        list_patiently("moody://bucket", QUICK)


def test_a_store_that_says_nothing_is_not_waited_for(tmp_path: Path) -> None:
    is_over = threading.Event()

    def silent(call: str) -> None:
        if call == "read":
            is_over.wait(60)

    Moody.trouble = staticmethod(silent)
    options = DownloadOptions(backoff_s=0.001, num_tries=2, timeout_s=0.05)
    try:
        with pytest.raises(DataError, match="the store says nothing for 0 s; 2 tries"):
            download_file(REMOTE, tmp_path, options)
    finally:
        is_over.set()

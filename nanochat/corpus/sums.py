"""Files -> SHA-256, computed once.   in: paths   out: 64 digits   who calls: batches/sources.py

Hashing 600 GB takes longer than the first thousand steps on it, and every start of a run asks.  The
sum of a file is remembered with its size, inode and time of change, and believed as long as these
are what they were; one that changed within two seconds before it was read is hashed again, since a
second change in the same tick of the clock would not show.
Read next: files.py (corpus_fingerprint, which asks).
"""

import contextlib
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from nanochat.common.errors import DataError
from nanochat.common.files import read_json, sha256_of_file, write_json_atomically

__all__ = ["KnownSums"]

LARGE_BYTES = 1 << 20  # below, hashing takes a millisecond
SETTLED_S = 2.0


class KnownSums:
    """Sums that are kept in a file, which is written at the end of a `with` block.

    A file that cannot be read is as good as none.
    Example: with KnownSums(path) as sums: corpus_fingerprint(files, sums.sha256)
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, Any] | None = None
        self._has_more = False

    def __enter__(self) -> "KnownSums":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._has_more:
            with contextlib.suppress(OSError):  # a home that cannot be written: hashed next time
                write_json_atomically(self._path, self._entries())
            self._has_more = False

    def sha256(self, path: Path) -> str:
        """The SHA-256 of a file's content.

        Raises: OSError where it cannot be read.
        """
        before = path.stat()
        if before.st_size < LARGE_BYTES:
            return sha256_of_file(path)
        name, state = str(path.resolve()), [before.st_size, before.st_ino, before.st_mtime_ns]
        entry = self._entries().get(name)
        if isinstance(entry, dict) and entry.get("state") == state:
            return str(entry["sha256"])
        is_settled = time.time() - before.st_mtime > SETTLED_S
        found = sha256_of_file(path)
        if is_settled:
            self._entries()[name] = {"state": state, "sha256": found}
            self._has_more = True
        return found

    def _entries(self) -> dict[str, Any]:
        if self._known is None:
            self._known = {}
            with contextlib.suppress(DataError, OSError):
                found = read_json(self._path)
                self._known = found if isinstance(found, dict) else {}
        return self._known

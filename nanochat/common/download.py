"""Addresses -> files that are whole.   in: addresses, a folder   out: paths
who calls: corpus/remote.py, evals/download.py, cli/data_download.py   (imports no torch)

What arrives goes into `.NAME.part`, is compared with its size and SHA-256 and then gets its name: a
file that has its name is complete.  A try goes on where the one before broke off, if the server
says (If-Range with an ETag or a date) that the file is still the same, or if its SHA-256 is known;
otherwise it begins anew.  Between tries it waits, twice as long each time, as long as Retry-After
says.  A lock beside each file lets one process load it while others wait and then find it.
Read next: download_answer.py (one request), download_bars.py (what a person sees).
"""

import http.client
import json
import os
import random
import threading
import time
import urllib.error
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from nanochat.common.download_answer import Answer, Known, RetryLater, open_answer
from nanochat.common.download_store import list_urls
from nanochat.common.env import is_offline
from nanochat.common.errors import DataError
from nanochat.common.files import sha256_of_file, sync_directory, write_json_atomically
from nanochat.common.lock import locked

__all__ = [
    "DownloadOptions",
    "RemoteFile",
    "Watcher",
    "download_all",
    "download_file",
    "is_complete",
    "list_patiently",
]

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file to load, and what is known of it beforehand."""

    url: str
    name: str
    """Where it goes, below the folder."""
    num_bytes: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadOptions:
    """How patiently."""

    num_workers: int = 4
    """Files at a time."""
    num_tries: int = 6
    """In a row that bring nothing new."""
    timeout_s: float = 20.0
    """Without a byte."""
    backoff_s: float = 1.0
    """The first wait, doubled each time; from half of it to all of it, by chance."""
    max_wait_s: float = 120.0
    """A server that asks for more is given up."""


class Watcher(Protocol):
    """Who is told how it goes; called from several threads."""

    def begins(self, name: str, num_bytes: int | None) -> None:
        """A file is about to be loaded, of this size where it is known."""

    def has(self, name: str, num_bytes: int, total_bytes: int | None) -> None:
        """So much of it is here."""

    def waits(self, name: str, reason: str, wait_s: float) -> None:
        """A try failed; another follows."""

    def ends(self, name: str, num_bytes: int) -> None:
        """It is complete, or was."""


class _Silent:
    def begins(self, name: str, num_bytes: int | None) -> None: ...
    def has(self, name: str, num_bytes: int, total_bytes: int | None) -> None: ...
    def waits(self, name: str, reason: str, wait_s: float) -> None: ...
    def ends(self, name: str, num_bytes: int) -> None: ...


@dataclass(slots=True)
class _Job:
    """One file on its way."""

    remote: RemoteFile
    target: Path
    options: DownloadOptions
    watcher: Watcher
    stop: threading.Event
    known: Known = field(default_factory=Known)

    @property
    def part(self) -> Path:
        return self.target.with_name(f".{self.target.name}.part")

    @property
    def notes(self) -> Path:
        """What the server said of the part, for the next try, or the next process."""
        return self.target.with_name(f".{self.target.name}.part.json")


class _NotTried(DataError):
    """It was asked to stop, for a reason that others have told."""


class _Damaged(Exception):
    """All of it arrived, and it is not the right file."""


def download_all(
    files: Sequence[RemoteFile],
    folder: Path,
    options: DownloadOptions | None = None,
    watcher: Watcher | None = None,
) -> list[Path]:
    """Where the files now are, in their order; several are loaded at a time.

    One that fails does not keep the others from arriving, unless nothing arrives at all.
    Raises: DataError naming what is missing and why; what is complete stays.
    """
    options = options or DownloadOptions()
    stop = threading.Event()
    failures: list[str] = []
    num_loaded = num_stopped = 0
    with ThreadPoolExecutor(options.num_workers, "download") as pool:
        # Nothing is cancelled: once `stop` is set, what has not begun ends at once by itself.
        running = [
            pool.submit(download_file, each, folder, options, watcher, stop) for each in files
        ]
        try:
            for done in as_completed(running):
                error = done.exception()
                if error is None:
                    num_loaded += 1
                elif isinstance(error, _NotTried):
                    num_stopped += 1
                elif not isinstance(error, DataError):
                    raise error
                else:
                    failures.append(str(error))
                    if not num_loaded and len(failures) >= options.num_workers:
                        stop.set()
        except BaseException:
            stop.set()
            raise
    if failures:
        rest = f"; {num_stopped} more were not tried" if num_stopped else ""
        raise DataError(
            f"{len(failures) + num_stopped} of {len(files)} files not loaded: "
            f"{'; '.join(failures)}{rest}"
        )
    return [folder / each.name for each in files]


def download_file(
    remote: RemoteFile,
    folder: Path,
    options: DownloadOptions | None = None,
    watcher: Watcher | None = None,
    stop: threading.Event | None = None,
) -> Path:
    """Where the file now is; it is loaded only if it is not there, by one process at a time.

    Raises: DataError where it is absent and the machine offline, cannot be loaded, or is not what
            it should be.
    """
    target = folder / remote.name
    job = _Job(
        remote,
        target,
        options or DownloadOptions(),
        watcher or _Silent(),
        stop or threading.Event(),
    )
    if not is_complete(remote, folder):
        _check_stop(job)
        if is_offline():
            raise DataError(
                f"{remote.name} is not in {folder}, and HF_HUB_OFFLINE or NANOCHAT_OFFLINE is set: "
                "unset it to load the file"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        job.watcher.begins(remote.name, remote.num_bytes)
        with locked(target.with_name(f".{target.name}.lock"), f"loads {remote.name}"):
            if not is_complete(remote, folder):  # another process may have loaded it meanwhile
                _load(job)
    job.watcher.ends(remote.name, target.stat().st_size)
    return target


def is_complete(remote: RemoteFile, folder: Path) -> bool:
    """Whether the file is there, with the size it should have where that is known."""
    try:
        num_bytes = (folder / remote.name).stat().st_size
    except FileNotFoundError:
        return False
    return remote.num_bytes in (None, num_bytes)


def list_patiently(url: str, options: DownloadOptions) -> list[str]:
    """`list_urls`, with the patience that files are loaded with.

    Raises: DataError where there is nothing, or the store fails again and again.
    """
    for num_failed in range(1, options.num_tries + 1):
        try:
            return list_urls(url, options.timeout_s)
        except OSError as error:
            reason = str(error) or type(error).__name__
        if num_failed < options.num_tries:
            time.sleep(_backoff_s(options, num_failed))
    raise DataError(
        f"{url} cannot be listed ({reason}; {options.num_tries} tries): run the same again"
    )


# ---------------------------------------------------------------------------------------- one file


def _load(job: _Job) -> None:
    job.known = _remembered(job)
    num_failed, most_bytes, num_damaged = 0, 0, 0
    while True:
        wait_s: float | None = None
        try:
            _go_on(job)
            _check(job)
            _publish(job)
            return
        except _Damaged as error:
            _forget(job)
            num_damaged += 1
            if num_damaged > 1:
                raise DataError(
                    f"{job.remote.name} from {job.remote.url}: {error}, twice"
                ) from None
            reason = str(error)
        except RetryLater as error:
            reason, wait_s = str(error), error.wait_s
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.URLError) and not isinstance(error.reason, str):
                reason = f"{error.reason}"
            else:
                reason = str(error) or type(error).__name__
        have = _size(job.part)
        num_failed = 0 if have > most_bytes else num_failed + 1
        most_bytes = max(most_bytes, have)
        if num_failed >= job.options.num_tries:
            raise DataError(
                f"{job.remote.name} cannot be loaded from {job.remote.url} ({reason}; "
                f"{job.options.num_tries} tries): run the same again, what is here is kept"
            )
        _wait(job, reason, wait_s, num_failed)


def _wait(job: _Job, reason: str, asked_s: float | None, num_failed: int) -> None:
    wait_s = _backoff_s(job.options, num_failed)
    if asked_s is not None:
        if asked_s > job.options.max_wait_s:
            raise DataError(
                f"{job.remote.name}: {reason}, and asks to wait {asked_s:.0f} s: try again then"
            )
        wait_s = max(asked_s, wait_s)
    job.watcher.waits(job.remote.name, reason, wait_s)
    job.stop.wait(wait_s)
    _check_stop(job)


def _backoff_s(options: DownloadOptions, num_failed: int) -> float:
    longest_s = min(options.max_wait_s, options.backoff_s * 2.0**num_failed)
    return longest_s * random.uniform(0.5, 1.0)  # so that many machines do not come back at once


def _go_on(job: _Job) -> None:
    """Load what is missing of the file into its part.

    Raises: OSError or HTTPException where the line breaks; _Damaged for a size that cannot be.
    """
    have = _size(job.part)
    if have and job.known.num_bytes == have and _can_continue(job):
        return  # all of it came before, and was not yet looked at
    if have and not _can_continue(job):
        have = 0
    answer = open_answer(job.remote.url, have, job.known, job.options.timeout_s)
    with answer.body:
        if answer.start not in (0, have):
            raise ConnectionError(f"the server went on at byte {answer.start:,}, not {have:,}")
        expected = job.remote.num_bytes
        if None not in (expected, answer.known.num_bytes) and expected != answer.known.num_bytes:
            raise DataError(
                f"{job.remote.name}: {job.remote.url} has {answer.known.num_bytes:,} bytes, "
                f"expected {expected:,}: the file there has changed"
            )
        job.known = answer.known
        write_json_atomically(job.notes, {"url": job.remote.url, **job.known.to_json()})
        _copy(job, answer)


def _copy(job: _Job, answer: Answer) -> None:
    have, total = answer.start, answer.known.num_bytes
    with job.part.open("r+b" if answer.start else "wb") as file:
        file.seek(answer.start)
        file.truncate()
        while chunk := answer.body.read1(CHUNK_BYTES):
            file.write(chunk)
            have += len(chunk)
            if job.remote.num_bytes is not None and have > job.remote.num_bytes:
                raise _Damaged(f"more than the expected {job.remote.num_bytes:,} bytes came")
            job.watcher.has(job.remote.name, have, total or job.remote.num_bytes)
            _check_stop(job)
        file.flush()
        os.fsync(file.fileno())
    if total is not None and have < total:
        raise ConnectionError(f"the server sent {have:,} of {total:,} bytes")


def _check(job: _Job) -> None:
    have = _size(job.part)
    for expected in (job.remote.num_bytes, job.known.num_bytes):
        if expected is not None and have != expected:
            raise _Damaged(f"it has {have:,} bytes, expected {expected:,}")
    wanted = job.remote.sha256 or job.known.sha256
    if wanted is not None and (found := sha256_of_file(job.part)) != wanted:
        raise _Damaged(f"its SHA-256 is {found}, expected {wanted}")


def _publish(job: _Job) -> None:
    os.replace(job.part, job.target)
    sync_directory(job.target.parent)
    job.notes.unlink(missing_ok=True)


def _check_stop(job: _Job) -> None:
    if job.stop.is_set():
        raise _NotTried(f"{job.remote.name}: stopped; what is here is kept")


def _can_continue(job: _Job) -> bool:
    """Whether a wrong beginning would be noticed: by the server, or by the sum."""
    return job.known.validator is not None or (job.remote.sha256 or job.known.sha256) is not None


def _remembered(job: _Job) -> Known:
    """What an earlier try was told about the part that it left."""
    try:
        notes = json.loads(job.notes.read_bytes())
        return Known.from_json(notes) if notes.get("url") == job.remote.url else Known()
    except (OSError, ValueError, AttributeError):
        return Known()


def _forget(job: _Job) -> None:
    job.part.unlink(missing_ok=True)
    job.notes.unlink(missing_ok=True)
    job.known = Known()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0

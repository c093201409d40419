"""A private folder for one program.   in: where, how much   out: a path, empty before, gone after
who calls: watch.py

Where rooms.py gave us a file tree, the folder is a memory file system of limited size.  Elsewhere
it is an ordinary directory, measured while the program runs.
Read next: rooms.py.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator

from nanochat.common.sandbox import rooms
from nanochat.common.sandbox.limits import SandboxLimits

__all__ = ["is_over", "private", "remove"]


@contextlib.contextmanager
def private(scratch: str, has_room: bool, user: int | None, limits: SandboxLimits) -> Iterator[str]:
    """A folder the program may fill; nothing of it remains.

    Raises: OSError where it cannot be made.
    """
    if has_room:
        rooms.empty_folder(limits.disk_bytes, limits.num_files)
        try:
            yield rooms.FOLDER
        finally:
            rooms.remove_folder()
        return
    folder = tempfile.mkdtemp(dir=scratch)
    try:
        os.chmod(folder, 0o711)  # the checks, another user, stand in it too
        if user is not None:
            os.chown(folder, user, user)
        yield folder
    finally:
        remove(folder)


def is_over(folder: str, limits: SandboxLimits) -> bool:
    """Whether a folder holds more bytes or files than allowed; looks no further than needed."""
    num_bytes = num_files = 0
    waiting = [folder]
    while waiting:
        try:
            entries = os.scandir(waiting.pop())
        except OSError:  # gone meanwhile, or too deep a path to be asked about
            continue
        with entries:
            for entry in entries:
                num_files += 1
                with contextlib.suppress(OSError):
                    num_bytes += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                if num_bytes > limits.disk_bytes or num_files > limits.num_files:
                    return True
    return False


def remove(folder: str) -> None:
    """The folder is gone, however deep and whatever it forbids.

    A directory inside a directory is first moved up: neither recursion nor the length of a path
    grows with the depth.
    """
    number = 0
    while True:
        directories = [entry for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
        if not directories:
            break
        for directory in directories:
            os.chmod(directory.path, 0o700)
            for entry in list(os.scandir(directory.path)):
                if entry.is_dir(follow_symlinks=False):
                    number += 1
                    os.chmod(entry.path, 0o700)  # to move a directory is to write in it
                    os.rename(entry.path, os.path.join(folder, f"\udcff{number}"))
                else:
                    os.unlink(entry.path)
            os.rmdir(directory.path)
    shutil.rmtree(folder)

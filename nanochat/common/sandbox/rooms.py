"""A file tree without anything in it, no network, no other process.   in: paths   out: namespaces
who calls: forkserver (once), watch (a fresh folder for every program)

The second wall behind Landlock and seccomp, where the kernel lets us: as root, or through a user
namespace.  Many containers and hardened hosts do not; then forkserver says so and goes on without.
The new root holds, read-only, the interpreter's library and the system's shared ones, /dev/null,
and /box: a memory file system mounted anew for each program, with the size it may fill.
Source: namespaces(7), mount_namespaces(7), pivot_root(2).
Read next: walls.py (what each program puts around itself besides).
"""

import os
from collections.abc import Iterable
from pathlib import Path

from nanochat.common.sandbox import kernel

__all__ = ["FOLDER", "empty_folder", "enter", "remove_folder"]

FOLDER = "/box"
"""Where a program may write, inside; a name below which no interpreter lies."""

# linux/sched.h: mount, UTS, IPC, PID and network namespaces
NEW_USER = 0x10000000
NEW_REST = 0x00020000 | 0x04000000 | 0x08000000 | 0x20000000 | 0x40000000

# linux/mount.h
RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT = 1, 2, 4, 8, 32
NOATIME, NODIRATIME, BIND, REC, PRIVATE, RELATIME = 1024, 2048, 4096, 16384, 1 << 18, 1 << 21
DETACH = 2
# What statvfs says of a mount -> the same as a mount flag.  In a user namespace a remount that
# drops one of these is refused.
KEPT = {1: RDONLY, 2: NOSUID, 4: NODEV, 8: NOEXEC, 1024: NOATIME, 2048: NODIRATIME, 4096: RELATIME}


def enter(readable: Iterable[str], scratch: str) -> None:
    """This process sees only `readable` from here on; its next child is the first of a new world.

    scratch: an empty directory; nothing is left in it.
    Raises: OSError saying which step the kernel refused.
    """
    user, group = os.geteuid(), os.getegid()
    try:
        kernel.call("unshare", NEW_REST)
    except OSError:
        kernel.call("unshare", NEW_REST | NEW_USER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _mount(None, "/", None, REC | PRIVATE)
    _mount("sandbox", scratch, "tmpfs", NOSUID | NODEV, "size=1m,mode=755")
    for path in [*readable, "/dev/null"]:
        _show(path, scratch)
    os.mkdir(scratch + FOLDER)
    os.chdir(scratch)
    kernel.call("pivot_root", b".", b".")
    kernel.call("umount2", b".", DETACH)
    os.chdir("/")
    _mount(None, "/", None, REMOUNT | BIND | RDONLY | NOSUID | NODEV)


def empty_folder(num_bytes: int, num_files: int) -> None:
    """FOLDER holds nothing, and at most so much."""
    options = f"size={num_bytes},nr_inodes={num_files},mode=777"
    _mount("folder", FOLDER, "tmpfs", NOSUID | NODEV | NOEXEC, options)


def remove_folder() -> None:
    """What was in FOLDER is gone, however deep."""
    kernel.call("umount2", FOLDER.encode(), DETACH)


def _show(path: str, root: str) -> None:
    """`path` appears below `root`, read-only; what does not exist is passed over."""
    inside = root + path
    if not os.path.exists(path) or os.path.lexists(inside):
        return
    os.makedirs(os.path.dirname(inside), exist_ok=True)
    if os.path.islink(path):  # /lib -> usr/lib
        os.symlink(os.readlink(path), inside)
        return
    if os.path.isdir(path):
        os.mkdir(inside)
    else:
        os.close(os.open(inside, os.O_CREAT | os.O_WRONLY))
    _mount(path, inside, None, BIND)
    flags = os.statvfs(inside).f_flag
    kept = sum(mount_flag for flag, mount_flag in KEPT.items() if flags & flag)
    is_device = not os.path.isdir(path) and path.startswith("/dev/")
    wanted = NOSUID if is_device else NOSUID | NODEV | RDONLY
    _mount(None, inside, None, REMOUNT | BIND | wanted | kept)


def _mount(
    source: str | None, target: str, kind: str | None, flags: int, options: str = ""
) -> None:
    texts = [text.encode() if text is not None else None for text in (source, target, kind)]
    kernel.call("mount", *texts, flags, options.encode() or None)

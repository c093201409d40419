"""How the fork server is started.   in: a driver's name   out: a command line
who calls: box.py

    linux       as it is: namespaces if the kernel gives them, Landlock and seccomp in any case
    landlock    the same without namespaces; what `linux` is where the kernel gives none
    bubblewrap  inside `bwrap`, which makes the namespaces
    container   inside docker or podman, without network, read-only, as nobody

Landlock and seccomp stand inside the other two as well.  macOS has none of these but the container.
Read next: forkserver.py (what is started).
"""

import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from nanochat.common.errors import SandboxError
from nanochat.common.sandbox.forkserver import BOOT, ServerSettings, readable_paths

__all__ = ["Driver", "Start", "absent", "resolve", "start"]

Driver = Literal["auto", "linux", "landlock", "bubblewrap", "container"]

PACKAGE = Path(__file__).resolve().parents[2]
NOBODY = 65534
FLAGS = ("-s", "-S", "-P", "-B", "-X", "utf8")
IMAGE = "docker.io/library/python:3.12-slim"


class Start(NamedTuple):
    """A command line, and the settings that are in it."""

    command: list[str]
    settings: ServerSettings


def absent(driver: Driver) -> str:
    """Why a driver cannot be used on this machine; empty where it can."""
    if driver in ("linux", "landlock") and sys.platform != "linux":
        return f"the walls are Linux's, this is {sys.platform}"
    if driver == "bubblewrap" and shutil.which("bwrap") is None:
        return "bwrap is not installed"
    if driver == "container" and _engine() is None:
        return "neither podman nor docker is installed"
    return ""


def resolve(driver: Driver, *, unsafe: bool) -> Driver:
    """The driver meant by `auto`; any other one if it can be used.

    Raises: SandboxError where it cannot.
    """
    if driver not in get_args(Driver):
        raise SandboxError(f"driver is {driver!r}, expected one of {', '.join(get_args(Driver))}")
    if driver == "auto":
        driver = "linux"
        if unsafe:
            return driver
    if why := absent(driver):
        raise SandboxError(
            f"cannot run a model's code with the driver {driver!r}: {why}.  Use another driver "
            "(container needs docker or podman), or --unsafe-code if you trust the model"
        )
    return driver


def start(driver: Driver, settings: ServerSettings, image: str = IMAGE) -> Start:
    """How the server of this (resolved) driver is started."""
    if driver == "bubblewrap":
        return _bubblewrap(settings)
    if driver == "container":
        return _container(settings, image)
    return Start([_interpreter(), *_arguments(settings, str(PACKAGE.parent))], settings)


def _interpreter() -> str:
    """The interpreter itself; that of a virtual environment is a link to it."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def _arguments(settings: ServerSettings, root: str) -> list[str]:
    return [*FLAGS, "-c", BOOT, root, json.dumps(dataclasses.asdict(settings))]


def _bubblewrap(settings: ServerSettings) -> Start:
    inside = dataclasses.replace(settings, scratch="/tmp", user=None, has_room=False)
    command = ["bwrap", "--unshare-all", "--new-session", "--cap-drop", "ALL"]
    command += ["--uid", str(NOBODY), "--gid", str(NOBODY), "--dev", "/dev", "--tmpfs", "/tmp"]
    for path in dict.fromkeys([*readable_paths(), _interpreter(), str(PACKAGE)]):
        if os.path.islink(path):
            command += ["--symlink", os.readlink(path), path]
        elif os.path.exists(path):
            command += ["--ro-bind", path, path]
    return Start([*command, "--", _interpreter(), *_arguments(inside, str(PACKAGE.parent))], inside)


def _container(settings: ServerSettings, image: str) -> Start:
    inside = dataclasses.replace(settings, scratch="/tmp", user=None, has_room=False)
    engine = _engine() or "docker"
    command = [engine, "run", "--rm", "--interactive", "--network", "none", "--read-only"]
    command += ["--tmpfs", "/tmp:size=64m,mode=1777", "--cap-drop", "ALL", "--pids-limit", "32"]
    command += ["--security-opt", "no-new-privileges", "--memory", "1g", "--init"]
    command += ["--user", f"{NOBODY}:{NOBODY}", "--volume", f"{PACKAGE}:/sandbox/nanochat:ro"]
    return Start([*command, image, "python", *_arguments(inside, "/sandbox")], inside)


def _engine() -> str | None:
    return next((name for name in ("podman", "docker") if shutil.which(name)), None)

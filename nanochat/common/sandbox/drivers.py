"""How the fork server is started.   in: a driver's name   out: a command line
who calls: box.py

    linux       as it is: namespaces if the kernel gives them, Landlock and seccomp in any case
    landlock    the same without namespaces; what `linux` is where the kernel gives none
    bubblewrap  inside `bwrap`, which makes the namespaces
    container   inside docker or podman, without network, read-only, as nobody

Landlock and seccomp stand inside the other two as well.  macOS has none of these but the container.
A container outlives the command that has started it, so it has a name, by which it can be ended.
Read next: forkserver.py (what is started).
"""

import dataclasses
import json
import os
import secrets
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from nanochat.common.errors import SandboxError
from nanochat.common.sandbox.forkserver import BOOT, ServerSettings, readable_paths

__all__ = ["Driver", "Start", "absent", "environment", "fetch_image", "resolve", "start"]

Driver = Literal["auto", "linux", "landlock", "bubblewrap", "container"]

PACKAGE = Path(__file__).resolve().parents[2]
NOBODY = 65534
FLAGS = ("-s", "-S", "-P", "-B", "-X", "utf8")
IMAGE = "docker.io/library/python:3.12-slim"
TMP_BYTES = 64 << 20  # of /tmp in the two that bring their own
TRY_S = 20.0  # for a command that only looks
# What container engines find their server, their images and their files by.
ENGINE_VARIABLES = (
    "PATH", "HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "DOCKER_HOST",
    "DOCKER_CONTEXT", "DOCKER_CONFIG", "DOCKER_CERT_PATH", "DOCKER_TLS_VERIFY", "CONTAINER_HOST",
)  # fmt: skip


class Start(NamedTuple):
    """A command line, and the settings that are in it."""

    command: list[str]
    settings: ServerSettings
    end: list[str]
    """What ends it from outside where killing the command does not; else empty."""


def absent(driver: Driver) -> str:
    """Why a driver cannot be used on this machine; empty where it can."""
    if driver in ("linux", "landlock") and sys.platform != "linux":
        return f"the walls are Linux's, this is {sys.platform}"
    if driver == "bubblewrap":
        if shutil.which("bwrap") is None:
            return "bwrap is not installed"
        tried = _looked(["bwrap", "--unshare-all", "--ro-bind", "/", "/", "true"])
        if tried.returncode:
            return f"bwrap makes no namespaces here ({tried.stderr.strip()[-200:]})"
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
    return Start([_interpreter(), *_arguments(settings, str(PACKAGE.parent))], settings, [])


def environment(driver: Driver) -> dict[str, str]:
    """Nothing of ours; the same order of sets in every run, so that verdicts can be repeated."""
    settings = {"PYTHONHASHSEED": "0"}
    if driver in ("linux", "landlock"):
        return settings
    # bwrap and container engines have to find their own files.
    return settings | {name: os.environ[name] for name in ENGINE_VARIABLES if name in os.environ}


def fetch_image(image: str) -> None:
    """The container engine has this image; one that it lacks is fetched, which may take minutes,
    and its own messages go to standard error.

    Raises: SandboxError where it cannot be had.
    """
    engine = _engine() or "docker"
    if _looked([engine, "image", "inspect", image]).returncode == 0:
        return
    pulled = subprocess.run([engine, "pull", image], stdout=sys.stderr, check=False)
    if pulled.returncode:
        raise SandboxError(
            f"{engine} pull {image} failed: see above.  Is its server running?  Name another image "
            "with --sandbox-image, or use another driver"
        )


def _interpreter() -> str:
    """The interpreter itself; that of a virtual environment is a link to it."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def _arguments(settings: ServerSettings, root: str) -> list[str]:
    return [*FLAGS, "-c", BOOT, root, json.dumps(dataclasses.asdict(settings))]


def _bubblewrap(settings: ServerSettings) -> Start:
    inside = dataclasses.replace(settings, scratch="/tmp", user=None, has_room=False)
    command = ["bwrap", "--unshare-all", "--new-session", "--cap-drop", "ALL"]
    if threading.current_thread() is threading.main_thread():
        command.append("--die-with-parent")  # with the thread, to be exact: others end before us
    command += ["--uid", str(NOBODY), "--gid", str(NOBODY), "--dev", "/dev"]
    if "--size" in _looked(["bwrap", "--help"]).stdout:  # from 0.7 on; files are measured anyway
        command += ["--size", str(TMP_BYTES)]
    command += ["--tmpfs", "/tmp"]
    for path in dict.fromkeys([*readable_paths(), _interpreter(), str(PACKAGE)]):
        if os.path.islink(path):
            command += ["--symlink", os.readlink(path), path]
        elif os.path.exists(path):
            command += ["--ro-bind", path, path]
    command += ["--", _interpreter(), *_arguments(inside, str(PACKAGE.parent))]
    return Start(command, inside, [])


def _container(settings: ServerSettings, image: str) -> Start:
    inside = dataclasses.replace(settings, scratch="/tmp", user=None, has_room=False)
    engine, name = _engine() or "docker", f"nanochat-sandbox-{secrets.token_hex(8)}"
    command = [engine, "run", "--rm", "--interactive", "--name", name, "--pull", "never"]
    command += ["--network", "none", "--read-only", "--env", "PYTHONHASHSEED=0"]
    command += ["--tmpfs", f"/tmp:size={TMP_BYTES},mode=1777"]
    command += ["--cap-drop", "ALL", "--pids-limit", "32"]
    command += ["--security-opt", "no-new-privileges", "--memory", "1g", "--init"]
    command += ["--user", f"{NOBODY}:{NOBODY}", "--volume", f"{PACKAGE}:/sandbox/nanochat:ro"]
    command += [image, "python", *_arguments(inside, "/sandbox")]
    return Start(command, inside, [engine, "rm", "--force", name])


def _looked(command: list[str]) -> "subprocess.CompletedProcess[str]":
    """What a command says that changes nothing; one that does not answer has failed."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=TRY_S, stdin=subprocess.DEVNULL,
            check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))


def _engine() -> str | None:
    return next((name for name in ("podman", "docker") if shutil.which(name)), None)

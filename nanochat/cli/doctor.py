"""This machine -> what it can do, what is missing, what to do about it.   in: --home, --port
out: one line per finding, or JSON   who calls: cli.main

A finding is ok, a warning (things work, but less well than they could) or a failure (something will
not work); the last two come with a remedy.  The exit code is 1 when anything failed.
Read next: common/device.py (what training and serving choose from all this).
"""

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import nanochat
from nanochat.common.config import CommonOptions
from nanochat.common.errors import ConfigError
from nanochat.common.files import home_dir

__all__ = ["Config", "Finding", "examine", "run", "usable_cores", "usable_memory_bytes"]

PACKAGES = (
    "fastapi",
    "httptools",
    "httpx",
    "huggingface_hub",
    "llguidance",
    "numpy",
    "prometheus-client",
    "prompt_toolkit",
    "pyarrow",
    "pydantic",
    "rich",
    "rustbpe",
    "safetensors",
    "tiktoken",
    "tyro",
    "uvicorn",
    "zstandard",
)
# What matters to a small model on a CPU: wide vectors, and matrix units for bfloat16.
CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")
GIB = 1 << 30
LITTLE_MEMORY_BYTES = 3 * GIB  # the demo peaks under 2
LITTLE_DISK_BYTES = 5 * GIB  # torch itself takes 1 to 3, a first run under 1


@dataclass(frozen=True, kw_only=True)
class Config(CommonOptions):
    """What this machine can do, what is missing, and what to do about it."""

    port: int = 8000
    """The port that `nanochat serve` would use."""

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}, expected 1 to 65535")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at."""

    name: str
    status: Literal["ok", "warn", "fail"]
    fact: str
    remedy: str = ""


def run(config: Config) -> int:
    """0 when nothing failed, else 1."""
    findings = []
    for finding in examine(home_dir(config.home), config.port):
        findings.append(finding)
        if not config.json:
            print(_line(finding), flush=True)
    num_failed = sum(finding.status == "fail" for finding in findings)
    if config.json:
        print(json.dumps({"ok": not num_failed, "findings": [asdict(one) for one in findings]}))
    elif num_failed:
        print(f"\n{num_failed} of {len(findings)} findings need mending before things work.")
    else:
        print("\nThis machine is ready: `nanochat demo` is the next thing to type.")
    return 1 if num_failed else 0


def examine(home: Path, port: int) -> Iterator[Finding]:
    """Every finding, quick ones first; about three seconds in all, most of it importing torch."""
    yield Finding("nanochat", "ok", f"{nanochat.__version__} in {Path(nanochat.__file__).parent}")
    yield _python()
    yield Finding("system", "ok", f"{platform.system()} {platform.release()} {platform.machine()}")
    yield _cpu()
    yield _memory()
    yield _home(home)
    yield _disk(home)
    yield _port(port)
    yield from _packages()
    yield from _torch()


def usable_cores(root: Path = Path("/")) -> int:
    """Cores this process may use: those it is pinned to, less where a container is given a share.

    Source: cgroup v2 cpu.max and v1 cpu.cfs_quota_us, kernel documentation.
    """
    pinned = getattr(os, "sched_getaffinity", None)
    num_cores = len(pinned(0)) if pinned else os.cpu_count() or 1
    quota, period = "max", "100000"
    if text := _read(root / "sys/fs/cgroup/cpu.max"):
        quota, period = text.split()
    elif text := _read(root / "sys/fs/cgroup/cpu/cpu.cfs_quota_us"):
        quota, period = text, _read(root / "sys/fs/cgroup/cpu/cpu.cfs_period_us") or period
    if quota not in ("max", "-1"):
        num_cores = min(num_cores, max(1, round(int(quota) / int(period))))
    return num_cores


def usable_memory_bytes(root: Path = Path("/")) -> int:
    """Memory this process may use: the machine's, less where a container is given a share."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        limit = _read(root / "sys/fs/cgroup" / name)
        if limit.isdigit():
            total = min(total, int(limit))
    return total


def _line(finding: Finding) -> str:
    remedy = f": {finding.remedy}" if finding.remedy else ""
    return f"{finding.status:<4}  {finding.name:<12} {finding.fact}{remedy}"


def _python() -> Finding:
    return Finding("python", "ok", f"{platform.python_version()} ({sys.executable})")


def _cpu(root: Path = Path("/")) -> Finding:
    model, features = _cpu_model(root)
    words = f"{usable_cores(root)} cores of {model}"
    return Finding("cpu", "ok", f"{words}, {', '.join(features)}" if features else words)


def _cpu_model(root: Path) -> tuple[str, list[str]]:
    """The model's name and which of CPU_FEATURES it has."""
    text = _read(root / "proc/cpuinfo")
    facts = dict(
        (key.strip(), value.strip())
        for key, _, value in (line.partition(":") for line in text.splitlines())
    )
    flags = set(facts.get("flags", facts.get("Features", "")).split())
    name = facts.get("model name") or _sysctl("machdep.cpu.brand_string") or platform.machine()
    return name, [feature for feature in CPU_FEATURES if feature in flags]


def _sysctl(key: str) -> str:
    if platform.system() != "Darwin":
        return ""
    answer = subprocess.run(["sysctl", "-n", key], capture_output=True, text=True, check=False)
    return answer.stdout.strip()


def _memory() -> Finding:
    usable_bytes = usable_memory_bytes()
    fact = f"{usable_bytes / GIB:.1f} GiB"
    if usable_bytes < LITTLE_MEMORY_BYTES:
        remedy = "the demo needs about 2: close other programs, or train with a smaller --depth"
        return Finding("memory", "warn", fact, remedy)
    return Finding("memory", "ok", fact)


def _home(home: Path) -> Finding:
    place = _existing(home)
    try:
        with tempfile.TemporaryFile(dir=place):
            return Finding("home", "ok", f"{home} can be written to")
    except OSError as error:
        fact = f"{home} cannot be written to ({error.strerror} in {place})"
        return Finding("home", "fail", fact, "pass --home DIR or set NANOCHAT_HOME")


def _disk(home: Path) -> Finding:
    free_bytes = shutil.disk_usage(_existing(home)).free
    fact = f"{free_bytes / GIB:.1f} GiB free at home"
    if free_bytes < LITTLE_DISK_BYTES:
        return Finding("disk", "warn", fact, "make room, or pass --home DIR on another disk")
    return Finding("disk", "ok", fact)


def _port(port: int) -> Finding:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            fact = f"{port} cannot be served on ({error.strerror})"
            return Finding("port", "warn", fact, "pass another --port to nanochat serve")
    return Finding("port", "ok", f"{port} is free")


def _packages() -> Iterator[Finding]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            yield Finding("packages", "fail", f"{name} is not installed", "run make setup")
    yield Finding("packages", "ok", ", ".join(f"{name} {found[name]}" for name in found))


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library of another platform
        yield Finding("torch", "fail", f"cannot be imported ({error})", "run make setup")
        return
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    yield Finding("torch", "ok", f"{torch.__version__}, {build} build")
    yield _devices()
    yield _compiler()
    yield _arithmetic()
    yield _choice()


def _devices() -> Finding:
    """What torch can compute on, and whether a GPU is left unused by the wrong build."""
    import torch

    if torch.cuda.is_available():
        cards = [
            torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())
        ]
        words = ", ".join(f"{card.name} with {card.total_memory / GIB:.0f} GiB" for card in cards)
        return Finding("devices", "ok", f"CUDA: {words}")
    if torch.backends.mps.is_available():
        return Finding("devices", "ok", "MPS: the GPU of this Mac")
    if Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi"):
        fact = "an NVIDIA driver is here, but torch cannot use it"
        return Finding("devices", "warn", fact, "rm -r .venv, then make setup")
    return Finding("devices", "ok", "CPU alone: enough for the demo; depth 12 and more want a GPU")


def _compiler() -> Finding:
    from nanochat.common.device import find_compiler

    if path := find_compiler():
        return Finding("compiler", "ok", f"{path}: long runs are compiled")
    return Finding(
        "compiler", "ok", "none found and none needed; with g++ long runs would be faster"
    )


def _arithmetic() -> Finding:
    """Measured, because what a CPU claims and what torch does with it differ."""
    import torch

    from nanochat.common.device import peak_flops

    cpu = torch.device("cpu")
    float32, bfloat16 = (peak_flops(cpu, dtype) for dtype in (torch.float32, torch.bfloat16))
    fact = (
        f"the CPU multiplies at {float32 / 1e9:.0f} GFLOP/s in float32, "
        f"{bfloat16 / 1e9:.0f} in bfloat16 ({bfloat16 / float32:.1f} times)"
    )
    return Finding("arithmetic", "ok", fact)


def _choice() -> Finding:
    """What training and serving take when they are not told."""
    from nanochat.common.device import best_device, compute_dtype

    device = best_device()
    dtype = str(compute_dtype(device)).removeprefix("torch.")
    return Finding("choice", "ok", f"{device} in {dtype}, unless told otherwise")


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _existing(path: Path) -> Path:
    """The path, or the nearest directory above it that exists."""
    return next(place for place in (path, *path.parents) if place.exists())

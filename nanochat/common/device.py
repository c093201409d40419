"""What this machine computes with.   in: the machine   out: device, dtype, peak FLOPS, memory
who calls: train, engine, bench, cli   (the only part of common that imports torch)
Read next: cli/doctor.py (which prints all of it).
"""

import ctypes
import functools
import os
import platform
import re
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Literal

import torch

from nanochat.common.errors import ConfigError

__all__ = [
    "DtypeName",
    "best_device",
    "compute_dtype",
    "cpu_flags",
    "find_compiler",
    "is_out_of_memory",
    "keep_freed_memory",
    "machine_name",
    "peak_flops",
    "peak_memory_bytes",
    "total_memory_bytes",
]

DtypeName = Literal["auto", "float32", "bfloat16"]

# Dense bfloat16 peaks in FLOP/s, from the makers' data sheets.
PEAK_FLOPS = {
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "4090": 165e12,
    "3090": 71e12,
}


def best_device(name: str | None = None) -> torch.device:
    """The device asked for, or the fastest kind there is: CUDA, then Apple's MPS, then the CPU.

    Raises: ConfigError if the kind asked for is unknown or not usable here.
    """
    usable = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name is None:
        return torch.device(next(kind for kind, is_usable in usable.items() if is_usable))
    kind = name.split(":")[0]
    if not usable.get(kind, False):
        here = ", ".join(kind for kind, is_usable in usable.items() if is_usable)
        raise ConfigError(
            f"device {name!r} is not usable here: expected one of {here} (nanochat doctor says why)"
        )
    return torch.device(name)


def compute_dtype(device: torch.device, name: DtypeName = "auto") -> torch.dtype:
    """The dtype of matrices and activations.

    auto: bfloat16 where the hardware multiplies it fast (CUDA from Ampere on; CPUs with AVX512-BF16
    or AMX, on which it measured 4 to 9 times float32), float32 elsewhere.
    """
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    if device.type == "cuda":
        return (
            torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float32
        )
    if device.type == "cpu" and cpu_flags() & {"avx512_bf16", "amx_bf16"}:
        return torch.bfloat16
    return torch.float32


@functools.cache
def cpu_flags() -> frozenset[str]:
    """What Linux says this CPU can do; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(
        next((line.split(":")[1].split() for line in lines if line.startswith("flags")), [])
    )


def find_compiler() -> str | None:
    """The C++ compiler that torch.compile needs on a CPU, or None: then nothing is compiled.

    NANOCHAT needs none; where there is one, long runs are compiled and faster.
    """
    candidates = (os.environ.get("CXX"), "g++", "clang++")
    return next((path for name in candidates if name and (path := shutil.which(name))), None)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """The most FLOP/s that dense matrices reach: a data sheet's for GPUs we know, else measured."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for key, flops in PEAK_FLOPS.items():
            if key in name:
                return flops if dtype == torch.bfloat16 else flops / 2
    return _measured_flops(str(device), dtype)


@functools.cache
def _measured_flops(device: str, dtype: torch.dtype) -> float:
    """The best of five products of two square matrices, about a tenth of a second."""
    size = 1024 if device == "cpu" else 4096
    x = torch.randn(size, size, device=device).to(dtype)
    best_s = float("inf")
    for _ in range(5):
        start_s = time.perf_counter()
        (x @ x).sum().item()  # .item() waits for the device
        best_s = min(best_s, time.perf_counter() - start_s)
    return 2 * size**3 / best_s


@functools.cache
def keep_freed_memory() -> bool:
    """Ask the C library to keep what is freed for the next allocation; whether it agreed.

    A training step on a CPU allocates the same large tensors again and again; given back each time,
    the kernel has to clear every page anew, which costs 15 to 20% of a step.  Only glibc has the
    switch.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        set_option = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD of malloc.h
    return all(
        set_option(option, value) == 1
        for option, value in ((-3, 2**30), (-1, 2**31 - 1), (-2, 2**26))
    )


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory used so far: the device's own for CUDA, the process's elsewhere.

    Source: VmHWM of proc(5) on Linux, where ru_maxrss begins at the peak of the parent process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match, "Linux always reports VmHWM"
    return int(match[1]) * 1024


def total_memory_bytes(device: torch.device) -> int:
    """Memory of the device, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def machine_name(device: torch.device) -> str:
    """A name for ledger rows and plans."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was what a computation lacked.

    CUDA has an exception of its own; the CPU's and MPS's allocators only have words.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return "can't allocate memory" in text or "out of memory" in text

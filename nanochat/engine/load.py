"""A model reference -> an engine.   in: EngineSpec   out: LoadedEngine
who calls: cli/model_options.py, worker.py

Imports torch only when something is loaded.
Read next: checkpoint/resolve.py (what a reference is), engine.py.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nanochat.common.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from nanochat.engine.engine import Engine

__all__ = ["EngineSpec", "LoadedEngine", "load_engine"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSpec:
    """Which model, and what it computes with."""

    model: str
    """A model reference."""
    home: Path | None = None
    device: str | None = None
    format: Literal["auto", "float32", "bfloat16", "int8", "int4"] = "auto"
    max_rows: int = 64
    kv_memory_bytes: int | None = None
    with_hashes: bool = True
    """Whether every file is compared with its SHA-256."""
    worker: int | None = None
    """Which of several engines this is: each has a CUDA device of its own, where there are any."""
    num_workers: int = 1
    """How many they are: on a CPU each has its share of the cores and of the memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedEngine:
    """An engine, and what is known of its model."""

    engine: "Engine"
    is_chat: bool
    """Whether it has been taught conversations."""
    model_hash: str
    """SHA-256 of its manifest, which has that of every file; empty for files of others."""


def load_engine(spec: EngineSpec) -> LoadedEngine:
    """Load what is named; importing torch and reading the weights takes seconds.

    Raises: CheckpointError for the model, ConfigError for the device or the format.
    """
    import torch

    from nanochat.checkpoint.resolve import load
    from nanochat.common.device import best_device, compute_dtype
    from nanochat.engine.engine import Engine
    from nanochat.engine.room import MEMORY_SHARE, free_bytes

    device = _own_device(best_device(spec.device), spec)
    if spec.format == "int8" or spec.format == "int4":
        dtype = torch.float32  # from the most exact weights there are
    else:
        dtype = compute_dtype(device, spec.format)
    loaded = load(
        spec.model, home=spec.home, device=device, dtype=dtype, with_hashes=spec.with_hashes
    )
    kv_memory_bytes = spec.kv_memory_bytes
    if spec.num_workers > 1 and device.type != "cuda":
        torch.set_num_threads(max(1, torch.get_num_threads() // spec.num_workers))
        if kv_memory_bytes is None:
            kv_memory_bytes = int(MEMORY_SHARE * free_bytes(device) / spec.num_workers)
    engine = Engine(
        loaded.model,
        loaded.tokenizer,
        max_rows=spec.max_rows,
        format=None if spec.format == "auto" else spec.format,
        kv_memory_bytes=kv_memory_bytes,
        home=spec.home,
    )
    return LoadedEngine(
        engine=engine, is_chat=loaded.is_chat, model_hash=_manifest_hash(loaded.path)
    )


def _own_device(device: "torch.device", spec: EngineSpec) -> "torch.device":
    """The one of this worker: `cuda` means all of them, `cuda:1` just that one."""
    import torch

    if spec.worker is None or device.type != "cuda" or ":" in (spec.device or ""):
        return device
    num_devices = torch.cuda.device_count()
    if spec.worker >= num_devices:
        raise ConfigError(
            f"worker {spec.worker} has no CUDA device of its own: there are {num_devices}, pass "
            f"--workers {num_devices}"
        )
    return torch.device("cuda", spec.worker)


def _manifest_hash(path: Path) -> str:
    manifest = path / "manifest.json"
    return hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.is_file() else ""

"""How fast decoding is, beside karpathy/nanochat and llama.cpp.   in: a size, peers
out: one JSON object   who calls: cli/bench_decode.py

Weights are random; every side decodes with the same context.  A rate is that of the best stretch of
steps: other jobs on the machine only ever make it slower, for all sides alike, so the best is what
compares.  Peers run in processes of their own, before and after ours.
`bandwidth_share` is the bytes of weights, keys and values that a step reads, over its time, over
the most bytes a second that any of several ways of reading reached here, in the same run.
Read next: peer_decode.py, gguf.py; engine/forward.py (what is measured).
"""

import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nanochat.bench.gguf import write_gguf
from nanochat.bench.peer import PeerFailed, peer_figures
from nanochat.checkpoint.reference_config import their_config
from nanochat.common.device import best_device, machine_name
from nanochat.engine.blocks import BLOCK_TOKENS
from nanochat.engine.forward import FormatName, Forward, Piece
from nanochat.engine.kvmemory import KVMemory
from nanochat.engine.request import NO_TOKEN
from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT

__all__ = ["DecodeBench", "bench_decode", "memory_bandwidth"]

STRETCH_STEPS = 4  # of which the best stretch is made
PROMPT_TOKENS = 100  # of the prompt whose first token is waited for
BYTES_PER_WEIGHT = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "int4": 0.5 + 4 / 32}
LLAMA_FORMATS = {"float32": "bf16", "bfloat16": "bf16", "int8": "q8_0", "int4": "q4_0"}
BANDWIDTH_BYTES = 2**28

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeBench:
    """What is measured."""

    depth: int
    dtype: FormatName
    batch_sizes: tuple[int, ...]
    context: int
    num_steps: int
    vocab_size: int = 32_768
    head_dim: int = 128
    device: str | None = None
    peer_nanochat: Path | None = None
    llama_cpp_python: Path | None = None
    """An interpreter that has llama_cpp."""
    home: Path | None = None

    def model_config(self) -> GPTConfig:
        """The model of that depth, with room for the context and the steps."""
        return GPTConfig.from_depth(self.depth, vocab_size=self.vocab_size, head_dim=self.head_dim)


def bench_decode(bench: DecodeBench) -> dict[str, Any]:
    """Rows of ours and of each peer: batch_size, tokens_per_s, ttft_s, bandwidth_share; ratios.

    Raises: PeerFailed with a peer's last line if it fails.
    """
    device = best_device(bench.device)
    forward = _random_forward(bench, device)
    bandwidth = memory_bandwidth(device)
    ours = [_ours(bench, forward, batch_size) for batch_size in bench.batch_sizes]
    peers = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, setting in _peer_settings(bench, forward.format, Path(folder)):
            peers[name] = _peer(bench, setting)
    # Once more after the peers: what slowed the machine during one of the passes slows one only.
    again = [_ours(bench, forward, batch_size) for batch_size in bench.batch_sizes]
    rows = [_better(*pair) for pair in zip(ours, again, strict=True)]
    weight_bytes = forward.weights.num_matrix_elements * BYTES_PER_WEIGHT[forward.format]
    for row in rows:
        step_bytes = weight_bytes + row["batch_size"] * _kv_bytes(forward, bench.context)
        row["bandwidth_share"] = step_bytes * row["tokens_per_s"] / row["batch_size"] / bandwidth
    return {
        "machine": machine_name(device),
        "depth": bench.depth,
        "dtype": forward.format,
        "context": bench.context,
        "bandwidth_bytes_per_s": bandwidth,
        "weight_bytes": weight_bytes,
        "kv_bytes_per_row": _kv_bytes(forward, bench.context),
        "rows": rows,
        "peers": peers,
        "ratios": {
            name: [
                mine["tokens_per_s"] / theirs["tokens_per_s"]
                for mine, theirs in zip(rows, peer_rows, strict=True)
            ]
            for name, peer_rows in peers.items()
        },
    }


def memory_bandwidth(device: torch.device, num_bytes: int = BANDWIDTH_BYTES) -> float:
    """Bytes a second, the best of several ways of reading memory, each several times.

    Copying counts what is read and what is written.
    """
    source = torch.ones(num_bytes // 4, device=device)
    target = torch.empty_like(source)
    matrix, vector = source.view(-1, 4096), torch.ones(4096, device=device)
    ways: tuple[tuple[Callable[[], Any], int], ...] = (
        (lambda: source.sum(), 1),
        (lambda: torch.mv(matrix, vector), 1),
        (lambda: target.copy_(source), 2),
        (lambda: source.view(torch.int32).max(), 1),
    )
    best = 0.0
    for _ in range(5):
        for read, factor in ways:
            start_s = time.perf_counter()
            read()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            best = max(best, factor * num_bytes / (time.perf_counter() - start_s))
    return best


# ------------------------------------------------------------------------------------ ours


def _random_forward(bench: DecodeBench, device: torch.device) -> Forward:
    torch.manual_seed(0)
    model = GPT(bench.model_config()).requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, 0.02)
    return Forward(model, format=bench.dtype, device=device, home=bench.home)


def _ours(bench: DecodeBench, forward: Forward, batch_size: int) -> dict[str, Any]:
    """Rows of different lengths around the context, each in memory of its own."""
    longest = bench.context + batch_size // 2 + bench.num_steps + 1
    memory, tables = _memory(forward, batch_size, longest)
    first_s = []
    for _ in range(3):
        start_s = time.perf_counter()
        piece = Piece(range(2, 2 + PROMPT_TOKENS), NO_TOKEN, 0, tables[0])
        forward.logits(forward.prefill([piece], memory, last_only=True)).argmax(-1).tolist()
        first_s.append(time.perf_counter() - start_s)
    lengths = [bench.context + row - batch_size // 2 for row in range(batch_size)]
    for length, table in zip(lengths, tables, strict=True):
        prompt = [index % bench.vocab_size for index in range(length)]
        forward.prefill([Piece(prompt, NO_TOKEN, 0, table)], memory, last_only=True)
    previous, tokens = [1] * batch_size, [2] * batch_size
    seconds = []
    for step in range(bench.num_steps):
        start_s = time.perf_counter()
        positions = [length + step for length in lengths]
        hidden_BD = forward.decode(tokens, previous, positions, tables, memory)
        previous, tokens = tokens, forward.logits(hidden_BD).argmax(-1).tolist()
        seconds.append(time.perf_counter() - start_s)
    return _row({"batch_size": batch_size, "ttft_s": min(first_s), "seconds": seconds})


def _memory(
    forward: Forward, batch_size: int, longest: int
) -> tuple[KVMemory, list[dict[int | None, list[int]]]]:
    longest = max(longest, PROMPT_TOKENS)
    count = -(-longest // BLOCK_TOKENS)
    windows = set(forward.config.windows)
    memory = KVMemory(
        forward.config,
        dict.fromkeys(windows, batch_size * count),
        dtype=forward.dtype,
        device=forward.device,
    )
    tables: list[dict[int | None, list[int]]] = [
        {window: list(range(row * count, (row + 1) * count)) for window in windows}
        for row in range(batch_size)
    ]
    return memory, tables


def _row(measured: dict[str, Any]) -> dict[str, Any]:
    seconds, size = measured["seconds"], measured["batch_size"]
    stretches = [
        sum(seconds[start : start + STRETCH_STEPS])
        for start in range(max(1, len(seconds) - STRETCH_STEPS + 1))
    ]
    steps = min(STRETCH_STEPS, len(seconds))
    return {
        "batch_size": size,
        "tokens_per_s": size * steps / min(stretches),
        "tokens_per_s_mean": size * len(seconds) / sum(seconds),
        "ttft_s": measured["ttft_s"],
    }


def _kv_bytes(forward: Forward, context: int) -> int:
    """Keys and values that one row's step reads."""
    config = forward.config
    per_token = 2 * config.num_kv_heads * config.head_dim * forward.dtype.itemsize
    seen = (context if window is None else min(context, window + 1) for window in config.windows)
    return per_token * sum(seen)


def _better(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    better = dict(max(a, b, key=lambda row: row["tokens_per_s"]))
    better["ttft_s"] = min(a["ttft_s"], b["ttft_s"])
    return better


# ----------------------------------------------------------------------------------- peers


def _peer_settings(
    bench: DecodeBench, format: str, folder: Path
) -> Iterable[tuple[str, dict[str, Any]]]:
    """Each peer's name and what its process is told."""
    config = bench.model_config()
    common = {
        "context": bench.context,
        "num_steps": bench.num_steps,
        "batch_sizes": bench.batch_sizes,
        "num_threads": torch.get_num_threads(),
    }
    if bench.peer_nanochat is not None:
        fields = their_config(config, "SSSL")
        for dtype in ("float32", "bfloat16"):
            yield (
                f"nanochat_{dtype}",
                {"peer": "nanochat", "dtype": dtype, "config": fields, **common},
            )
    if bench.llama_cpp_python is not None:
        name = LLAMA_FORMATS[format]
        path = folder / f"{name}.gguf"
        write_gguf(path, config, name)
        yield (
            f"llama_cpp_{name}",
            {"peer": "llama_cpp", "file": str(path), "is_repacked": True, **common},
        )


def _peer(bench: DecodeBench, setting: dict[str, Any]) -> list[dict[str, Any]]:
    """A peer's rows, from a process of its own.

    Raises: PeerFailed with its last line if it fails.
    """
    is_llama = setting["peer"] == "llama_cpp"
    interpreter = bench.llama_cpp_python if is_llama else Path(sys.executable)
    environment = dict(os.environ)
    if not is_llama:
        environment |= {
            "PYTHONPATH": str(bench.peer_nanochat),
            "NANOCHAT_DTYPE": setting["dtype"],
        }
    script = Path(__file__).with_name("peer_decode.py")
    command = [str(interpreter), str(script), json.dumps(setting)]
    try:
        figures = peer_figures(f"the peer {setting['peer']}", command, environment)
    except PeerFailed as failed:
        if failed.signal is None or not setting.get("is_repacked"):
            raise
        # Its AMX kernels end with a segmentation fault in some virtual machines; its others run.
        logger.warning("llama.cpp ended by signal %d: without repacked weights", failed.signal)
        return _peer(bench, setting | {"is_repacked": False})
    return [_row(measured) for measured in figures]

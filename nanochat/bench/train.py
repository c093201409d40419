"""How fast training is, beside karpathy/nanochat.   in: a size, a peer's checkout   out: one JSON
object
who calls: cli/bench_train.py

The peer runs in a process of its own, from the user's checkout, on the same batches and from the
same first weights; so that after the same number of steps its loss must be ours, multiplied in the
same dtype.  Times are medians over steps, the first ones (compiling) left out.
Read next: peer_train.py (what the peer's process runs).
"""

import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nanochat.batches.batch import Batch, micro_batches
from nanochat.bench.peer import peer_figures
from nanochat.checkpoint.reference import name_of
from nanochat.checkpoint.reference_config import their_config
from nanochat.common.device import (
    best_device,
    compute_dtype,
    keep_freed_memory,
    machine_name,
    peak_flops,
)
from nanochat.model.config import GPTConfig
from nanochat.model.cost import train_flops_per_token, train_flops_per_token_causal
from nanochat.model.gpt import GPT
from nanochat.model.init import initialize
from nanochat.train.loss import compile_loss_sum, loss_sum
from nanochat.train.optim import RECIPES, Optimizer, Rates

__all__ = ["TrainBench", "bench_train"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainBench:
    """What is measured."""

    depth: int
    vocab_size: int
    context_len: int
    rows: int
    head_dim: int
    num_steps: int
    warmup_steps: int
    dtype: str
    is_compiled: bool
    device: str | None
    peer: Path | None
    seed: int

    def model_config(self) -> GPTConfig:
        """Full windows, so that both sides run their plain attention."""
        return GPTConfig.from_depth(
            self.depth,
            vocab_size=self.vocab_size,
            context_len=self.context_len,
            head_dim=self.head_dim,
            window_pattern="L",
        )


def bench_train(bench: TrainBench) -> dict[str, Any]:
    """Tokens per second and losses, ours first, then the peer's in float32 and bfloat16, all
    compiled.

    `ratios` has our speed over each of the peer's, and how far our last loss is from the peer's of
    the same dtype; our runs of both dtypes are in `ours_in`.
    Units: tokens_per_s, step_s as medians; mfu by the reference's formula, mfu_causal by keys
           really seen.
    """
    with tempfile.TemporaryDirectory() as folder:
        setting = _write_setting(bench, Path(folder))
        if bench.peer is None:
            return {"machine": _machine(bench), "ours": _ours(bench, setting)}
        # The peer goes first: it makes the first weights that both start from.
        peers = {dtype: _peer(bench, setting, dtype) for dtype in ("float32", "bfloat16")}
        ours = _ours(bench, setting)
        ours_in = {
            dtype: ours
            if dtype == ours["dtype"]
            else _ours(dataclasses.replace(bench, dtype=dtype), setting)
            for dtype in peers
        }
    rates = {
        f"over_{dtype}": ours["tokens_per_s"] / peer["tokens_per_s"]
        for dtype, peer in peers.items()
    }
    drift = {
        f"loss_in_{dtype}": abs(ours_in[dtype]["losses"][-1] / peer["losses"][-1] - 1)
        for dtype, peer in peers.items()
    }
    return {
        "machine": _machine(bench),
        "ours": ours,
        "ours_in": ours_in,
        "peer": peers,
        "ratios": rates | drift,
    }


def _write_setting(bench: TrainBench, folder: Path) -> dict[str, Any]:
    """Everything both sides share, and a file of batches."""
    generator = torch.Generator().manual_seed(bench.seed)
    # Zipf-like tokens: a loss that falls, and embedding rows of very different traffic, as in text.
    ranks = torch.rand((bench.num_steps, bench.rows, bench.context_len + 1), generator=generator)
    tokens = (bench.vocab_size ** ranks.double()).long().clamp_max(bench.vocab_size) - 1
    torch.save(tokens, folder / "tokens.pt")
    config = bench.model_config()
    return {
        "tokens": str(folder / "tokens.pt"),
        "weights": str(folder / "weights.pt"),
        "num_steps": bench.num_steps,
        "seed": bench.seed,
        "batch_scale": (bench.rows * bench.context_len / 2**19) ** 0.5,
        "config": their_config(config, "L"),
    }


def _peer(bench: TrainBench, setting: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The peer's figures, from a process of its own.

    Raises: PeerFailed with the peer's last line if it fails.
    """
    script = Path(__file__).with_name("peer_train.py")
    environment = os.environ | {"NANOCHAT_DTYPE": dtype, "PYTHONPATH": str(bench.peer)}
    command = [sys.executable, str(script), json.dumps(setting)]
    return _summary(bench, *peer_figures(f"the peer at {bench.peer}", command, environment))


def _ours(bench: TrainBench, setting: dict[str, Any]) -> dict[str, Any]:
    keep_freed_memory()
    device = best_device(bench.device)
    with torch.device(device):
        model = GPT(bench.model_config())
    if Path(setting["weights"]).exists():
        weights = torch.load(setting["weights"], weights_only=True)
        model.load_state_dict({name_of(name): value.float() for name, value in weights.items()})
    else:
        initialize(model, "v5", bench.seed)
    dtype = compute_dtype(device, bench.dtype)  # type: ignore[arg-type]
    optimizer = Optimizer(
        model, RECIPES["v5"], lr_scale=setting["batch_scale"], compute_dtype=dtype
    )
    compute = compile_loss_sum(device.type, is_padded=False) if bench.is_compiled else loss_sum
    tokens = torch.load(setting["tokens"], weights_only=True)
    rows = max(1, 4096 // bench.context_len) if device.type == "cpu" else bench.rows
    losses, seconds = [], []
    for step in range(bench.num_steps):
        start_s = time.perf_counter()
        batch = Batch(tokens[step, :, :-1].contiguous(), tokens[step, :, 1:].contiguous())
        total = torch.zeros((), device=device)
        for part in micro_batches(batch, rows):
            loss = compute(model, Batch(*(x.to(device) for x in part))) / batch.targets_BT.numel()
            loss.backward()
            total += loss.detach()
        optimizer.step(Rates(momentum=0.95))
        losses.append(float(total))  # waits for the device
        seconds.append(time.perf_counter() - start_s)
    summary = _summary(bench, losses, seconds)
    peak = peak_flops(device, dtype)
    config = bench.model_config()
    return summary | {
        "dtype": str(dtype).removeprefix("torch."),
        "compiled": bench.is_compiled,
        "mfu": summary["tokens_per_s"] * train_flops_per_token(config) / peak,
        "mfu_causal": summary["tokens_per_s"] * train_flops_per_token_causal(config) / peak,
    }


def _summary(bench: TrainBench, losses: list[float], seconds: list[float]) -> dict[str, Any]:
    step_s = statistics.median(seconds[bench.warmup_steps :])
    tokens = bench.rows * bench.context_len
    return {
        "tokens_per_s": tokens / step_s,
        "rows_per_s": bench.rows / step_s,
        "step_s": step_s,
        "first_step_s": seconds[0],
        "losses": losses,
    }


def _machine(bench: TrainBench) -> str:
    return machine_name(best_device(bench.device))

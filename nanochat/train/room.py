"""What fits a device.   in: a model's config, hardware   out: sharded? recomputed? rows, and why
who calls: plan.py   (pure)

Read next: estimate.py (the bytes).
"""

import math
from dataclasses import dataclass

from nanochat.common.errors import ConfigError
from nanochat.model.config import GPTConfig
from nanochat.train.config import StageConfig
from nanochat.train.estimate import activation_bytes_per_token, state_bytes

__all__ = ["Hardware", "free_bytes", "has_to_recompute", "outgrows_device", "rows_at_once"]

USABLE_MEMORY = 0.7  # of a device's, by the estimate: the rest is its error and the allocator's


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """What the plan needs to know of the machine."""

    device_type: str
    memory_bytes: int
    """Of a device, or this rank's part of the machine's."""
    has_compiler: bool
    num_ranks: int = 1


def free_bytes(model_config: GPTConfig, hardware: Hardware, *, is_sharded: bool) -> float:
    """What weights, gradients and moments leave for activations; less than 0 where they do not
    fit."""
    state = state_bytes(model_config, hardware.num_ranks, is_sharded=is_sharded)
    return USABLE_MEMORY * hardware.memory_bytes - state


def outgrows_device(
    config: StageConfig, model_config: GPTConfig, hardware: Hardware, reasons: dict[str, str]
) -> bool:
    """Whether the weights are cut over the ranks; the reason goes to `reasons`.

    Raises: ConfigError where it is asked for and cannot be.
    """
    if config.shard_model == "on":
        if hardware.num_ranks == 1:
            raise ConfigError(
                "--shard-model on, but there is one process: start several with torchrun, or leave "
                "it out"
            )
        if config.compile == "on":
            raise ConfigError(
                "--compile on, but a sharded model is computed without: leave out one of --compile "
                "on and --shard-model on"
            )
    if config.shard_model != "auto":
        reasons["sharded"] = f"switched {config.shard_model}"
    elif hardware.num_ranks == 1:
        reasons["sharded"] = "one process holds all of the model"
    else:
        row = model_config.context_len * activation_bytes_per_token(model_config, recomputes=True)
        outgrows = free_bytes(model_config, hardware, is_sharded=False) < row
        need = state_bytes(model_config, hardware.num_ranks) / 2**30
        have = USABLE_MEMORY * hardware.memory_bytes / 2**30
        verb = "and leaves no row room in" if outgrows else "of"
        reasons["sharded"] = f"whole on each rank it takes {need:.1f} GiB {verb} {have:.1f} GiB"
        return outgrows
    return config.shard_model == "on"


def has_to_recompute(
    config: StageConfig,
    model_config: GPTConfig,
    hardware: Hardware,
    reasons: dict[str, str],
    *,
    is_sharded: bool,
) -> bool:
    """Whether the backward pass computes blocks again: where no row fits otherwise."""
    if config.recompute != "auto":
        reasons["recomputed"] = f"switched {config.recompute}"
        return config.recompute == "on"
    row = model_config.context_len * activation_bytes_per_token(model_config)
    free = max(0.0, free_bytes(model_config, hardware, is_sharded=is_sharded))
    reasons["recomputed"] = (
        f"a row's activations take {row / 2**30:.2f} GiB, {free / 2**30:.2f} GiB are free for them"
    )
    return free < row


def rows_at_once(
    model_config: GPTConfig,
    hardware: Hardware,
    reasons: dict[str, str],
    *,
    free: float,
    recomputes: bool,
) -> int:
    """Rows computed at once, in the bytes that are free for them."""
    if hardware.device_type == "cpu":
        reasons["at once"] = (
            "about 4,096 tokens: their activations stay near the processor's caches"
        )
        return max(1, 4096 // model_config.context_len)
    per_token = activation_bytes_per_token(model_config, recomputes=recomputes)
    rows = max(1, int(free / (per_token * model_config.context_len)))
    reasons["at once"] = (
        f"{per_token * model_config.context_len / 2**30:.2f} GiB of activations a row"
    )
    return int(min(64, 2 ** int(math.log2(rows))))

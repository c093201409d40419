"""Depth, data and hardware -> every number of a run, each with its reason.
in: a config, a model config   out: Plan   who calls: pretrain.py, midtrain.py, sft.py, cli

Source: karpathy/nanochat scripts/base_train.py and scripts/chat_sft.py at 92d63d4; batch size from
        the budget,
arXiv:2505.13738; weight decay from the horizon, arXiv:2405.13698.
Read next: loop.py (which does what the plan says).
"""

import math
from dataclasses import dataclass, field
from typing import Any

from nanochat.common.errors import ConfigError
from nanochat.model.config import GPTConfig
from nanochat.model.cost import count_parameters, train_flops_per_token
from nanochat.train.config import MidtrainConfig, PretrainConfig, StageConfig
from nanochat.train.room import (
    Hardware,
    free_bytes,
    has_to_recompute,
    outgrows_device,
    rows_at_once,
)
from nanochat.train.schedule import Schedule

__all__ = ["Hardware", "Plan", "plan_chat_stage", "plan_pretrain"]

REFERENCE_BATCH_TOKENS = (
    2**19
)  # the batch at which learning rates and decay were tuned, at REFERENCE_DEPTH
REFERENCE_DEPTH = 12
MUON_WEIGHT_DECAY = 0.28
CPU_BATCH_TOKENS = (
    16_384  # on a CPU many small steps beat few large ones (karpathy/nanochat runs/runcpu.sh)
)
CHAT_LR = 0.8  # of pretraining's, karpathy/nanochat chat_sft.py at 92d63d4
COMPILE_PAYS_TOKENS = (
    5_000_000  # compiling takes about as long as a CPU needs for this share of a run
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """All numbers of a stage.  `reasons` explains those that were chosen automatically."""

    num_steps: int
    batch_rows: int
    """Rows per optimizer step."""
    device_batch_rows: int
    """Rows computed at once."""
    context_len: int
    lr_scale: float
    """Multiplies the rates that scale with the batch."""
    schedule: Schedule
    eval_every: int
    """Steps between validations; 0: only at the end."""
    save_every: int = 0
    """Steps between checkpoints; 0: only at the end."""
    is_compiled: bool
    is_sharded: bool = False
    """Whether each rank has a share of the model only."""
    recomputes: bool = False
    """Whether the backward pass computes blocks again."""
    flops_per_token: int
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def batch_tokens(self) -> int:
        """Tokens per optimizer step."""
        return self.batch_rows * self.context_len

    def validates_at(self, step: int) -> bool:
        """Whether validation is due after so many steps."""
        return _is_due(step, self.eval_every, self.num_steps)

    def saves_at(self, step: int) -> bool:
        """Whether a checkpoint is due after so many steps."""
        return _is_due(step, self.save_every, self.num_steps)

    def lines(self) -> list[tuple[str, str, str]]:
        """Name, value and reason of each number, for printing."""
        values = {
            "steps": f"{self.num_steps:,}",
            "batch": f"{self.batch_rows} rows of {self.context_len} = {self.batch_tokens:,} tokens",
            "at once": f"{self.device_batch_rows} rows",
            "tokens": f"{self.num_steps * self.batch_tokens:,}",
            "learning rates": f"x {self.lr_scale * self.schedule.peak_lr:.4f}",
            "weight decay": f"{self.schedule.weight_decay:.4f}",
            "compiled": "yes" if self.is_compiled else "no",
            "sharded": "yes" if self.is_sharded else "no",
            "recomputed": "yes" if self.recomputes else "no",
        }
        return [(name, value, self.reasons.get(name, "")) for name, value in values.items()]

    def to_json(self) -> dict[str, Any]:
        """For plan.json."""
        return {
            "num_steps": self.num_steps,
            "batch_rows": self.batch_rows,
            "device_batch_rows": self.device_batch_rows,
            "context_len": self.context_len,
            "batch_tokens": self.batch_tokens,
            "lr_scale": self.lr_scale,
            "peak_lr": self.schedule.peak_lr,
            "warmup_steps": self.schedule.warmup_steps,
            "decay_fraction": self.schedule.decay_fraction,
            "weight_decay": self.schedule.weight_decay,
            "eval_every": self.eval_every,
            "save_every": self.save_every,
            "is_compiled": self.is_compiled,
            "is_sharded": self.is_sharded,
            "recomputes": self.recomputes,
            "flops_per_token": self.flops_per_token,
            "reasons": self.reasons,
        }


def plan_pretrain(config: PretrainConfig, model_config: GPTConfig, hardware: Hardware) -> Plan:
    """The numbers of a pretraining run.

    Raises: ConfigError if the batch is not whole rows.
    """
    reasons: dict[str, str] = {}
    scaling = count_parameters(model_config).scaling
    budget_tokens = config.tokens_per_parameter * scaling
    reference_budget = config.tokens_per_parameter * _reference_scaling(config, model_config)
    batch_tokens = config.batch_tokens or _batch_tokens(
        budget_tokens, reference_budget, hardware, reasons
    )
    batch_rows = _rows(batch_tokens, model_config.context_len)
    batch_tokens = batch_rows * model_config.context_len
    num_steps = config.num_steps
    if num_steps is None:
        num_steps = max(1, int(budget_tokens // batch_tokens))
        reasons["steps"] = (
            f"{config.tokens_per_parameter:g} tokens for each of {scaling:,} weights in matrices "
            "and head"
        )
    batch_ratio = batch_tokens / REFERENCE_BATCH_TOKENS
    reasons["learning rates"] = f"square root of the batch over {REFERENCE_BATCH_TOKENS:,}"
    reasons["weight decay"] = f"{MUON_WEIGHT_DECAY} at depth 12, by batch and token budget"
    schedule = Schedule(
        num_steps=num_steps,
        warmup_steps=_warmup(config, num_steps),
        peak_lr=config.lr_scale,
        weight_decay=MUON_WEIGHT_DECAY * math.sqrt(batch_ratio) * reference_budget / budget_tokens,
    )
    return _finish(
        config, model_config, hardware, schedule, batch_rows, math.sqrt(batch_ratio), reasons
    )


def _reference_scaling(config: PretrainConfig, model_config: GPTConfig) -> int:
    """Matrices and head of the depth at which rates and decay were tuned, at this vocabulary."""
    reference = GPTConfig.from_depth(
        REFERENCE_DEPTH,
        vocab_size=model_config.vocab_size,
        context_len=model_config.context_len,
        head_dim=config.head_dim,
        aspect_ratio=config.aspect_ratio,
        window_pattern="L",
        generation=config.generation,
    )
    return count_parameters(reference).scaling


def plan_chat_stage(
    config: MidtrainConfig,
    model_config: GPTConfig,
    hardware: Hardware,
    num_rows_in_all: int,
    *,
    batch_tokens: int,
    decay_fraction: float,
) -> Plan:
    """The numbers of mid-training or SFT: as many steps as the conversations fill.

    `batch_tokens` is what pretraining used, where nothing else is asked for.
    Raises: ConfigError if the batch is not whole rows.
    """
    reasons: dict[str, str] = {}
    batch_rows = _rows(config.batch_tokens or batch_tokens, model_config.context_len)
    num_steps = config.num_steps
    if num_steps is None:
        num_steps = max(1, math.ceil(num_rows_in_all / batch_rows))
        reasons["steps"] = f"{num_rows_in_all:,} rows, each once"
    batch_ratio = batch_rows * model_config.context_len / REFERENCE_BATCH_TOKENS
    reasons["learning rates"] = f"{CHAT_LR} of pretraining's for this batch"
    schedule = Schedule(
        num_steps=num_steps,
        warmup_steps=_warmup(config, num_steps) if config.warmup_steps is not None else 0,
        peak_lr=CHAT_LR * config.lr_scale,
        decay_fraction=decay_fraction,
        final_lr=0.0,
        momentum_warmup_steps=300,
        momentum=(0.85, 0.95, 0.95),
    )
    return _finish(
        config, model_config, hardware, schedule, batch_rows, math.sqrt(batch_ratio), reasons
    )


def _finish(
    config: StageConfig,
    model_config: GPTConfig,
    hardware: Hardware,
    schedule: Schedule,
    batch_rows: int,
    lr_scale: float,
    reasons: dict[str, str],
) -> Plan:
    num_steps = schedule.num_steps
    num_tokens = num_steps * batch_rows * model_config.context_len
    is_sharded = outgrows_device(config, model_config, hardware, reasons)
    recomputes = has_to_recompute(config, model_config, hardware, reasons, is_sharded=is_sharded)
    free = free_bytes(model_config, hardware, is_sharded=is_sharded)
    device_rows = config.device_batch_rows or rows_at_once(
        model_config, hardware, reasons, free=free, recomputes=recomputes
    )
    eval_every = config.eval_every if config.eval_every is not None else max(1, num_steps // 4)
    return Plan(
        num_steps=num_steps,
        batch_rows=batch_rows,
        device_batch_rows=min(device_rows, batch_rows),
        context_len=model_config.context_len,
        lr_scale=lr_scale,
        schedule=schedule,
        eval_every=eval_every,
        save_every=config.save_every if config.save_every is not None else eval_every,
        is_compiled=_is_compiled(config, hardware, num_tokens, is_sharded, reasons),
        is_sharded=is_sharded,
        recomputes=recomputes,
        flops_per_token=train_flops_per_token(model_config),
        reasons=reasons,
    )


def _is_due(step: int, every: int, num_steps: int) -> bool:
    return step == num_steps or (every > 0 and step % every == 0)


def _batch_tokens(
    budget: float, reference: float, hardware: Hardware, reasons: dict[str, str]
) -> int:
    best = 2 ** round(math.log2(REFERENCE_BATCH_TOKENS * (budget / reference) ** 0.383))
    reasons["batch"] = "grows with the token budget to the power 0.383"
    if hardware.device_type == "cpu" and best > CPU_BATCH_TOKENS:
        reasons["batch"] = "on a CPU many small steps beat few large ones"
        return CPU_BATCH_TOKENS
    return int(best)


def _rows(batch_tokens: int, context_len: int) -> int:
    if batch_tokens < context_len:
        raise ConfigError(
            f"batch_tokens is {batch_tokens}, less than one row of context_len {context_len}: "
            "raise it, or "
            "shorten the context"
        )
    return batch_tokens // context_len


def _warmup(config: StageConfig, num_steps: int) -> int:
    return config.warmup_steps if config.warmup_steps is not None else min(40, num_steps // 10)


def _is_compiled(
    config: StageConfig,
    hardware: Hardware,
    num_tokens: int,
    is_sharded: bool,
    reasons: dict[str, str],
) -> bool:
    if is_sharded:
        reasons["compiled"] = "a sharded model is computed without"
        return False
    if config.compile == "off" or hardware.device_type == "mps":
        reasons["compiled"] = "switched off" if config.compile == "off" else "MPS runs plain"
        return False
    if not hardware.has_compiler and hardware.device_type == "cpu":
        if config.compile == "on":
            raise ConfigError(
                "--compile on needs a C++ compiler (g++ or clang++), and none was found: install "
                "one"
            )
        reasons["compiled"] = "no C++ compiler here; none is needed"
        return False
    if config.compile == "on":
        return True
    pays = num_tokens >= COMPILE_PAYS_TOKENS
    reasons["compiled"] = "the run is long enough" if pays else "the run is too short to repay it"
    return pays

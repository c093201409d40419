"""nanochat bench train   in: a size, a peer's checkout   out: one JSON object, or a table   who
calls: cli.main

Read next: bench/train.py.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nanochat.common.config import CommonOptions
from nanochat.common.errors import ConfigError

__all__ = ["Config", "run"]


@dataclass(frozen=True, kw_only=True)
class Config(CommonOptions):
    """Measure training speed at a size, beside karpathy/nanochat where a checkout of it is
    given."""

    depth: int = 6
    """Layers."""
    vocab_size: int = 32_768
    """Entries of the vocabulary."""
    context_len: int = 512
    """Tokens per row."""
    rows: int = 8
    """Rows per step."""
    head_dim: int = 64
    """Width of one attention head."""
    num_steps: int = 20
    """Steps, all on different batches."""
    warmup_steps: int = 5
    """First steps left out of the times."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What we multiply in."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Whether we compile; auto: where it can work."""
    device: str | None = None
    """cuda, mps or cpu. None: the fastest there is."""
    peer_nanochat: Path | None = None
    """A checkout of karpathy/nanochat to measure in the same run."""
    seed: int = 0
    """Of the batches and the first weights."""

    def __post_init__(self) -> None:
        if self.num_steps <= self.warmup_steps or self.warmup_steps < 0:
            raise ConfigError(
                f"num_steps is {self.num_steps} and warmup_steps {self.warmup_steps}: expected "
                "more steps than warm-up"
            )
        if (
            self.peer_nanochat is not None
            and not (self.peer_nanochat / "nanochat" / "gpt.py").is_file()
        ):
            raise ConfigError(
                f"--peer-nanochat {self.peer_nanochat}: no nanochat/gpt.py there; give a checkout"
            )


def run(config: Config) -> int:
    """0 once everything is measured."""
    from nanochat.bench.train import TrainBench, bench_train
    from nanochat.common.device import find_compiler

    result = bench_train(
        TrainBench(
            depth=config.depth,
            vocab_size=config.vocab_size,
            context_len=config.context_len,
            rows=config.rows,
            head_dim=config.head_dim,
            num_steps=config.num_steps,
            warmup_steps=config.warmup_steps,
            dtype=config.dtype,
            is_compiled=config.compile == "on"
            or (config.compile == "auto" and find_compiler() is not None),
            device=config.device,
            peer=config.peer_nanochat.resolve() if config.peer_nanochat else None,
            seed=config.seed,
        )
    )
    if config.json:
        print(json.dumps(result))
        return 0
    sides = result.get("ours_in", {result["ours"]["dtype"]: result["ours"]})
    for whose, figures in (("ours", sides), ("peer's", result.get("peer", {}))):
        for dtype, side in figures.items():
            print(
                f"{whose:<7}{dtype:<10}{side['tokens_per_s']:>10,.0f} tok/s   "
                f"loss {side['losses'][-1]:.4f}"
            )
    for name, value in result.get("ratios", {}).items():
        print(f"{name:<24}{value:.3f}")
    return 0

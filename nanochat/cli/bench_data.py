"""nanochat bench data   in: text, a peer's checkout   out: one JSON object, or a table   who calls:
cli.main

Read next: bench/data.py.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from nanochat.common.config import CommonOptions
from nanochat.common.errors import ConfigError

__all__ = ["Config", "run"]


@dataclass(frozen=True, kw_only=True)
class Config(CommonOptions):
    """Measure how fast text becomes tokens: prepared, on the fly, and in karpathy/nanochat's
    loader where a checkout of it is given."""

    data: tuple[str, ...] = ()
    """Text whose paragraphs the measured files are made of."""
    megabytes: int = 200
    """Of text."""
    vocab_size: int = 32_768
    """Entries of the vocabulary that is trained on it."""
    tokenizer: Path | None = None
    """A vocabulary instead."""
    decontaminate: tuple[Path, ...] = ()
    """Evaluation sets that preparing looks for."""
    context_len: int = 2048
    """Tokens per row."""
    rows: int = 32
    """Rows per batch."""
    workers: int | None = None
    """Processes that prepare. None: one for each processor."""
    rounds: int = 3
    """All of it so often; the middle is told."""
    train_megabytes: int = 50
    """Of text, to train vocabularies on. 0: not measured."""
    peer_nanochat: Path | None = None
    """A checkout of karpathy/nanochat to measure in the same run."""
    seed: int = 0
    """Of the text that is put together."""

    def __post_init__(self) -> None:
        if not self.data:
            raise ConfigError("no text was named: expected --data with files or folders")
        least = {
            "megabytes": 1, "context_len": 2, "rows": 1, "rounds": 1, "train_megabytes": 0,
            "seed": 0,
        }  # fmt: skip
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least {value}")
        if (
            self.peer_nanochat is not None
            and not (self.peer_nanochat / "nanochat" / "dataloader.py").is_file()
        ):
            raise ConfigError(
                f"--peer-nanochat {self.peer_nanochat}: no nanochat/dataloader.py there; give a "
                "checkout"
            )


def run(config: Config) -> int:
    """0 once everything is measured."""
    from nanochat.bench.data import DataBench, bench_data

    result = bench_data(
        DataBench(
            data=config.data,
            megabytes=config.megabytes,
            vocab_size=config.vocab_size,
            tokenizer=config.tokenizer,
            evaluation=config.decontaminate,
            context_len=config.context_len,
            rows=config.rows,
            num_workers=config.workers,
            rounds=config.rounds,
            train_megabytes=config.train_megabytes,
            peer=config.peer_nanochat.resolve() if config.peer_nanochat else None,
            seed=config.seed,
        )
    )
    if config.json:
        print(json.dumps(result))
        return 0
    for side in ("prepare", "on_the_fly", "peer"):
        if side in result:
            figures = result[side]
            print(f"{side:<14}{figures['tokens_per_s']:>12,.0f} tok/s  {figures['wall_s']:.1f} s")
    if "peer" in result:
        print(f"{'peer encodes':<14}{result['peer']['encoded_tokens_per_s']:>12,.0f} tok/s")
    if vocabulary := result.get("vocabulary"):
        print(
            f"vocabulary of {vocabulary['megabytes']} MB: {vocabulary['all_cores_s']:.1f} s, "
            f"on one core {vocabulary['one_core_s']:.1f} s"
        )
    for name, value in result.get("ratios", {}).items():
        print(f"{name:<28}{value:.3f}")
    return 0

"""What each stage can be told.   in: flags, TOML   out: frozen dataclasses   who calls: cli,
plan.py, the stages

Imports no torch, so that `nanochat pretrain --help` is instant.  None means automatic; the plan
that a stage prints and saves says what was chosen and why.
Read next: plan.py (which resolves them).
"""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from nanochat.common.config import CommonOptions
from nanochat.common.errors import ConfigError
from nanochat.train.fleet import FleetName

__all__ = ["MidtrainConfig", "PretrainConfig", "SftConfig", "StageConfig"]


@dataclass(frozen=True, kw_only=True)
class StageConfig(CommonOptions):
    """What all stages share."""

    # torchrun of Python 3.11 takes --run for an unfinished word of its own; --run-name is none.
    run: Annotated[str | None, arg(aliases=["--run-name"])] = None
    """Name of the run directory. None: d<depth> for pretraining, the model's own run after it.
    Under torchrun write --run-name."""
    overwrite: bool = False
    """Replace what this stage of this run has left before."""
    seed: int = 0
    """First weights and data order; equal seeds give equal runs on a CPU."""
    device: str | None = None
    """cuda, mps or cpu. None: the fastest there is."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What matrices are multiplied in; weights are kept in float32 always."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile; auto: where it can work here and the run is long enough to repay it."""
    shard_model: Literal["auto", "on", "off"] = "auto"
    """Cut the weights over the ranks, where a model outgrows a device; auto: where it does, by the
    estimate. Needs torchrun."""
    recompute: Literal["auto", "on", "off"] = "auto"
    """Compute blocks again in the backward pass instead of keeping what it needs: less memory, a
    third more time; auto: where not even a row fits otherwise."""
    num_steps: int | None = None
    """Optimizer steps. None: from the token budget, or once through the conversations."""
    batch_tokens: int | None = None
    """Tokens per optimizer step. None: from the token budget."""
    device_batch_rows: int | None = None
    """Rows computed at once; the rest of a step is accumulated. None: what fits."""
    lr_scale: float = 1.0
    """Multiplies every learning rate."""
    warmup_steps: int | None = None
    """Steps over which the rate rises. None: 40, at most a tenth of the run."""
    eval_every: int | None = None
    """Steps between validations. None: four times a run; 0: only at the end."""
    eval_tokens: int = 262_144
    """Tokens of validation text, and of held-out conversations."""
    eval_tasks: tuple[str, ...] = ()
    """Tasks of nanochat eval to run with each validation: names, globs, core, chatcore, or files of
    your own, .toml and .py. Their data is looked for, and loaded, before the first step."""
    eval_limit: int | None = 500
    """Questions of each of them. None: all."""
    eval_data: Path | None = None
    """Where their data is, as --data-dir of nanochat eval."""
    save_every: int | None = None
    """Steps between checkpoints. None: as often as validation; 0: only at the end."""
    keep_last: int = 2
    """Checkpoints that stay, the newest; the best by validation stays besides."""
    keep_every: int | None = None
    """Checkpoints at multiples of this many steps stay too."""
    resume: bool = False
    """Go on from the newest checkpoint where there is one. The same command does that too; with
    this, a stage that is finished is no error."""
    allow_changed: bool = False
    """Go on although settings or data are not those the run began with."""
    max_skips: int = 10
    """Updates in a row that may be thrown away because they are no finite numbers, before training
    goes back to its last checkpoint."""
    dry_run: bool = False
    """Print the plan, with estimates of memory and time, and touch nothing."""
    log_every: int = 10
    """Steps between plain lines where the terminal cannot show live progress."""

    def __post_init__(self) -> None:
        if problems := self._problems():
            raise ConfigError("; ".join(problems))

    def _problems(self) -> list[str]:
        problems = [
            f"{name} is {value}, expected at least {least}"
            for name, least in self._least().items()
            if (value := getattr(self, name)) is not None and value < least
        ]
        if not 0.0 < self.lr_scale < math.inf:
            problems.append(f"lr_scale is {self.lr_scale}, expected more than 0")
        if self.overwrite and self.resume:
            problems.append(
                "overwrite and resume are both given: the one deletes what the other goes on with; "
                "leave --overwrite out, or choose another --run"
            )
        return problems

    def _least(self) -> dict[str, int]:
        return {
            "seed": 0,
            "num_steps": 1,
            "batch_tokens": 1,
            "device_batch_rows": 1,
            "warmup_steps": 0,
            "eval_every": 0,
            "eval_tokens": 1,
            "eval_limit": 1,
            "log_every": 1,
            "save_every": 0,
            "keep_last": 1,
            "keep_every": 1,
            "max_skips": 1,
        }


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(StageConfig):
    """Train a base model on text: --data files, folders or globs, or the built-in synthetic
    world."""

    data: tuple[str, ...] = ()
    """Text: files (.txt, .md, .jsonl, .json, .csv, .parquet, .arrow; plain, .gz, .zst, .bz2),
    folders, globs, data:NAME, hf:ORG/DATASET, addresses: see docs/data.md. None: the built-in
    world."""
    world_chars: int = 8_000_000
    """Characters of the built-in world, where --data is not given."""
    val_data: tuple[str, ...] = ()
    """Validation text. None: a hundredth of the documents of --data, chosen by their content."""
    weights: tuple[float, ...] = ()
    """For each --data its share of the tokens, compared with the others'; each is then shuffled and
    repeated by itself. None: all are one text."""
    text_column: str = "text"
    """Column or key that holds the text."""
    chapter_chars: int | None = None
    """Characters of text that are tokenized before training begins; of a longer text the rest is
    tokenized while training runs, in chapters of this size. None: 64 million."""
    tokenizer: str | None = None
    """A tokenizer.json. None: one is trained on the data."""
    remainders: Literal["drop", "reuse"] | None = None
    """What does not fit the end of a row is lost, as in karpathy/nanochat, or begins another row.
    None: dropped where the text has twice the tokens of the run, reused where it is scarcer."""
    vocab_size: int = 32_768
    """Entries of the tokenizer to train."""
    depth: int = 12
    """The dial: layers; width, heads, batch, rates and length of the run follow from it."""
    context_len: int = 2048
    """Tokens per row."""
    head_dim: int = 128
    """Width of one attention head."""
    aspect_ratio: int = 64
    """Width per layer of depth, before rounding up to whole heads."""
    window_pattern: str | None = None
    """S (short) and L (long) windows, tiled over the layers. None: SSSL on a GPU, L elsewhere."""
    generation: Literal["v1", "v2", "v3", "v4", "v5"] = "v5"
    """Which generation of karpathy/nanochat's mathematics."""
    tokens_per_parameter: float = 12.0
    """Token budget: this times the weights of matrices and head."""
    plan_world_size: int | None = None
    """With --dry-run: plan for so many processes, and print what each of them holds, sends and
    waits for."""
    plan_device: FleetName = "here"
    """What each of them has: machines of eight NVIDIA devices, or a device like the one here with
    10 Gbit/s to the others."""
    plan_link_gb_s: float | None = None
    """Gigabytes per second that each sends to another machine. None: what such machines have."""

    def _problems(self) -> list[str]:
        problems = super()._problems()
        if self.plan_world_size is not None and not self.dry_run:
            problems.append("plan_world_size is for a dry run: pass --dry-run too")
        if self.plan_link_gb_s is not None and not 0.0 < self.plan_link_gb_s < math.inf:
            problems.append(f"plan_link_gb_s is {self.plan_link_gb_s}, expected more than 0")
        if not 0.0 < self.tokens_per_parameter < math.inf:
            problems.append(
                f"tokens_per_parameter is {self.tokens_per_parameter}, expected more than 0"
            )
        if self.weights and len(self.weights) != len(self.data):
            problems.append(
                f"weights has {len(self.weights)} numbers for {len(self.data)} paths of data, "
                "expected one for each"
            )
        if self.weights and self.val_data:
            problems.append(
                "with weights each source is validated on what is held out of it: leave val_data "
                "out"
            )
        return problems

    def _least(self) -> dict[str, int]:
        return super()._least() | {
            "vocab_size": 265,
            "world_chars": 1,
            "chapter_chars": 1,
            "depth": 1,
            "context_len": 2,
            "head_dim": 2,
            "aspect_ratio": 1,
            "plan_world_size": 1,
        }


@dataclass(frozen=True, kw_only=True)
class MidtrainConfig(StageConfig):
    """Teach a base model the shape of conversations: long packed rows, every conversation once,
    all tokens trained."""

    model: Positional[str]
    """The model to go on from: a run such as d12, or a directory."""
    chats: tuple[str, ...] = ()
    """Conversations: files (.jsonl, .json, .csv, .parquet, .arrow; plain, .gz, .zst, .bz2),
    folders, globs, data:NAME, hf:ORG/DATASET, addresses: see docs/data.md. None: the built-in
    world's."""
    epochs: tuple[float, ...] = ()
    """For each of --chats how often its conversations occur while all are gone through once: 3 is
    each of them three times, 0.25 every fourth. None: each once."""
    num_conversations: int = 20_000
    """How many of the built-in world's, where --chats is not given."""
    num_epochs: int = 1
    """Times through the conversations."""
    data: tuple[str, ...] = ()
    """Plain text to mix in and to validate on. None: the built-in world's prose, where --chats is
    not given."""
    world_chars: int = 2_000_000
    """Characters of the built-in world's prose to mix from."""
    text_share: float = 0.3
    """Share of plain text among the tokens, so that what it taught is not forgotten."""

    def _problems(self) -> list[str]:
        problems = super()._problems()
        if not 0.0 <= self.text_share < 1.0:
            problems.append(f"text_share is {self.text_share}, expected 0 to less than 1")
        if self.epochs and len(self.epochs) != len(self.chats):
            problems.append(
                f"epochs has {len(self.epochs)} numbers for {len(self.chats)} names of chats, "
                "expected one for each"
            )
        twice = [name for name, count in Counter(self.chats).items() if count > 1]
        if self.epochs and twice:
            problems.append(f"chats has {twice[0]} twice, expected it once, with more epochs")
        if wrong := [number for number in self.epochs if not 0.0 < number < math.inf]:
            problems.append(f"epochs has {wrong[0]}, expected numbers above 0")
        return problems

    def _least(self) -> dict[str, int]:
        return super()._least() | {"num_conversations": 1, "num_epochs": 1, "world_chars": 1}


@dataclass(frozen=True, kw_only=True)
class SftConfig(MidtrainConfig):
    """Fine-tune on conversations: one a row, padded, only what the assistant says is trained."""

    num_conversations: int = 10_000
    """How many of the built-in world's, where --chats is not given."""
    text_share: float = 0.0
    """Share of plain text among the tokens."""

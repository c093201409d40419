"""What the verbs that run a model share.   in: flags   out: an engine, sampling parameters
who calls: cli/generate.py, cli/chat.py, cli/serve.py

Read next: checkpoint/resolve.py (what a model reference is), engine/engine.py.
"""

import math
import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from nanochat.common.config import CommonOptions
from nanochat.common.errors import ConfigError
from nanochat.engine.load import EngineSpec, load_engine
from nanochat.engine.request import SamplingParams
from nanochat.tokenizer.chat import stop_tokens
from nanochat.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from nanochat.engine.engine import Engine

__all__ = [
    "ChoiceOptions",
    "ModelOptions",
    "Opened",
    "SamplingOptions",
    "name_of",
    "open_model",
    "spec_of",
]


@dataclass(frozen=True, kw_only=True)
class ModelOptions(CommonOptions):
    """Which model, and what it computes with."""

    model: tyro.conf.Positional[str]
    """A run (d12, d12/sft, d12/sft@1500), hf:org/name[@revision] on the Hugging Face Hub, or a
    directory: ours, one of karpathy/nanochat's, or one for transformers."""
    dtype: Literal["auto", "float32", "bfloat16", "int8", "int4"] = "auto"
    """What its weights are kept in. auto: bfloat16 where this machine multiplies it fast, else
    float32; int8 and int4 are faster still on a CPU, and less exact."""
    kv_memory: float | None = None
    """GiB for the keys and values of what has been read. None: what is needed, within a quarter of
    the memory there is."""
    device: str | None = None
    """cpu, cuda, cuda:1 or mps. None: the fastest there is."""
    verify: bool = True
    """Compare every file with its SHA-256 before it is used; sizes are compared always."""

    def __post_init__(self) -> None:
        if self.kv_memory is not None and not 0 < self.kv_memory < math.inf:
            raise ConfigError(
                f"kv_memory is {self.kv_memory:g}, expected GiB above 0: --kv-memory 0.5"
            )


@dataclass(frozen=True, kw_only=True)
class ChoiceOptions(ModelOptions):
    """How the next token is chosen."""

    temperature: float = 0.8
    """0 always takes the likeliest token; 1 samples from the model as it is."""
    top_k: int | None = 50
    """Only the k likeliest tokens may be chosen. None: all of them."""
    top_p: float = 1.0
    """Only the likeliest tokens whose probabilities add up to p may be chosen."""
    min_p: float = 0.0
    """Only tokens at least this many times as likely as the likeliest may be chosen."""
    repetition_penalty: float = 1.0
    """Above 1, what has been said becomes less likely."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.choice()  # it reports everything out of range at once

    def choice(self) -> SamplingParams:
        """The parameters these flags decide."""
        return SamplingParams(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
        )


@dataclass(frozen=True, kw_only=True)
class SamplingOptions(ChoiceOptions):
    """How one answer is written."""

    max_tokens: int = 256
    """Most tokens of an answer."""
    seed: int | None = None
    """Equal seeds give equal answers. None: another answer each time."""

    def choice(self) -> SamplingParams:
        """The parameters these flags decide; a seed that was not given is 0 here."""
        return replace(super().choice(), max_tokens=self.max_tokens, seed=self.seed or 0)

    def sampling(self, tokenizer: Tokenizer) -> SamplingParams:
        """The parameters of one answer, ending where an answer or a document ends."""
        return replace(
            self.choice(),
            seed=secrets.randbelow(2**63) if self.seed is None else self.seed,
            stop_tokens=stop_tokens(tokenizer),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """A model ready to be asked."""

    engine: "Engine"
    name: str
    """What to call it: the reference, or the folder's name."""
    is_chat: bool
    """Whether it has been taught conversations."""
    model_hash: str = ""
    """What tells its weights from others; empty if nothing does."""


def open_model(options: ModelOptions, *, max_rows: int = 32) -> Opened:
    """Load what `options.model` names; importing torch and reading the weights takes seconds.

    Raises: CheckpointError for the model, ConfigError for the device.
    """
    loaded = load_engine(spec_of(options, max_rows=max_rows))
    return Opened(
        engine=loaded.engine,
        name=name_of(options.model),
        is_chat=loaded.is_chat,
        model_hash=loaded.model_hash,
    )


def spec_of(options: ModelOptions, *, max_rows: int = 32) -> EngineSpec:
    """What these flags say of an engine."""
    return EngineSpec(
        model=options.model,
        home=options.home,
        device=options.device,
        format=options.dtype,
        max_rows=max_rows,
        kv_memory_bytes=None if options.kv_memory is None else int(options.kv_memory * 2**30),
        with_hashes=options.verify,
    )


def name_of(model: str) -> str:
    """What to call a model: its reference, or the folder's name."""
    path = Path(model).expanduser()
    return path.resolve().name if path.is_dir() else model

"""A meta file and its tensors -> every choice behind a model.   in: meta_*.json, weights
out: GPTConfig, a note for each choice that was left open   who calls: reference.py, resolve.py

Neither the rotary base, nor the scale of queries and keys, nor the soft cap, nor what a short
window is stands in these files: the generation, which the tensors tell, decides.
Source: karpathy/nanochat, the training scripts and nanochat/gpt.py at the generations' commits.
Read next: model/config.py (the generations).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from nanochat.checkpoint.reference_files import STAGES_BY_FOLDER, ReferenceFiles, find_files
from nanochat.checkpoint.reference_names import detect_generation
from nanochat.common.errors import CheckpointError, ConfigError
from nanochat.model.config import GENERATIONS, Generation, GPTConfig, windows_from_pattern

__all__ = [
    "MetaFile",
    "ReadOptions",
    "batch_tokens_of",
    "config_of",
    "load_config",
    "metrics_of",
    "read_meta",
    "stage_of",
    "their_config",
]

MAX_META_BYTES = 2**20
LARGEST_METRIC = 1e300  # beyond is no measurement, and no float
USUAL_CONTEXT = 2048  # --max-seq-len of every training script, where nobody said otherwise
USUAL_HEAD_DIM = 128
USUAL_SOFTCAP = 15.0
USUAL_PATTERN = "SSSL"  # --window-pattern likewise, from V2 on


# In this order: `_fill` rests on those before.
_SIZES = {
    "num_layers": "n_layer",
    "model_dim": "n_embd",
    "num_heads": "n_head",
    "num_kv_heads": "n_kv_head",
    "vocab_size": "vocab_size",
    "context_len": "sequence_len",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadOptions:
    """What the files do not say, and how much of them is wanted."""

    softcap: float | None = None
    """What logits are capped at. None: 15; only V3 models of 2 to 9 March 2026 had 20."""
    window_pattern: str | None = None
    """Such as SSSL. None: what meta says, or what the stage before says, or the usual one."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """A fork's names of tensors -> karpathy/nanochat's, * standing for a layer's number."""
    tokenizer: Path | None = None
    """None: tokenizer.pkl where karpathy/nanochat keeps it."""
    stage: str | None = None
    """None: by the folder's name, or by what meta holds."""
    with_optimizer: bool = False
    """Also read the moments, where there are any that can be read."""
    is_streamed: bool = False
    """Read each tensor only when it is asked for, instead of mapping all of them."""


@dataclass(frozen=True, slots=True)
class MetaFile:
    """What a meta_*.json says."""

    path: Path
    raw: Mapping[str, Any]

    @property
    def model_config(self) -> Mapping[str, Any]:
        """The sizes, as far as they were written down."""
        config: Mapping[str, Any] = self.raw["model_config"]
        return config

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the training script was told; empty where it did not say."""
        settings = self.raw.get("user_config")
        return settings if isinstance(settings, dict) else {}


def load_config(
    meta_path: Path, weights: Mapping[str, Tensor], options: ReadOptions = ReadOptions()
) -> GPTConfig:
    """The explicit config of a checkpoint: what meta says, and what only its tensors tell.

    Raises: CheckpointError if meta is damaged or contradicts the tensors.
    """
    stage = options.stage or STAGES_BY_FOLDER.get(meta_path.parent.parent.name, "pretrain")
    return config_of(read_meta(meta_path), weights, stage, options)[0]


def read_meta(path: Path) -> MetaFile:
    """A meta file with its model_config.

    Raises: CheckpointError unless it is a JSON object with one.
    """
    try:
        if path.stat().st_size > MAX_META_BYTES:
            raise ValueError(f"more than {MAX_META_BYTES} bytes")
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: model_config is missing or damaged ({type(error).__name__})"
        ) from error
    if not isinstance(raw, dict) or not isinstance(raw.get("model_config"), dict):
        raise CheckpointError(f"{path}: model_config is missing or damaged, expected an object")
    return MetaFile(path, raw)


def config_of(
    meta: MetaFile, weights: Mapping[str, Tensor], stage: str, options: ReadOptions
) -> tuple[GPTConfig, list[str]]:
    """The explicit config, and a note for every choice that neither meta nor tensors made.

    Raises: CheckpointError if they contradict each other.
    """
    generation = detect_generation(weights, str(meta.path))
    sizes, notes = _sizes(meta, weights)
    num_layers = sizes["num_layers"]
    if num_layers > len(weights):  # before anything of that size is made
        raise CheckpointError(
            f"{meta.path}: {len(weights)} tensors cannot be the {num_layers} layers it says"
        )
    rows = _size(weights, "transformer.wte.weight", 0) or 0
    pattern = _pattern(meta, generation, stage, options, notes)
    given: dict[str, Any] = {**GENERATIONS[generation], **sizes}
    given["logit_softcap"] = _softcap(meta, generation, options, notes)
    try:
        config = GPTConfig(
            **given,
            head_dim=sizes["model_dim"] // sizes["num_heads"],
            windows=(
                windows_from_pattern(pattern, num_layers, sizes["context_len"], generation)
                if pattern is not None
                else (None,) * num_layers
            ),
            vocab_padding=1 if rows == sizes["vocab_size"] else 64,
        )
    except ConfigError as error:
        raise CheckpointError(f"{meta.path}: {error}") from error
    if config.padded_vocab_size != rows:
        raise CheckpointError(
            f"{meta.path}: vocab_size {config.vocab_size} does not fit {rows} rows of "
            "transformer.wte"
        )
    return config, notes


def stage_of(files: ReferenceFiles, meta: MetaFile, weights: Mapping[str, Tensor]) -> str:
    """The stage, by the folder's name; where it has none of them, by what its script wrote."""
    folder = files.model.parent.resolve().parent.name  # in the Hub's cache files are links
    if folder in STAGES_BY_FOLDER:
        return STAGES_BY_FOLDER[folder]
    if "step" not in meta.raw:
        return "rl"
    if "val_loss" in meta.raw:
        return "sft"
    if "device_batch_size" in meta.raw or not meta.settings or "depth" in meta.settings:
        return "pretrain"
    # Mid-training and the SFT that replaced it on 1 February 2026 wrote the same keys.
    is_old = detect_generation(weights, str(files.model)) in ("v1", "v2")
    return "midtrain" if is_old else "sft"


def metrics_of(meta: MetaFile) -> dict[str, float]:
    """What was measured: the numbers beside the settings."""
    settings = {"step", "device_batch_size", "max_seq_len", "total_batch_size"}
    return {
        name: float(value)
        for name, value in meta.raw.items()
        if name not in settings and type(value) in (int, float) and abs(value) < LARGEST_METRIC
    }


def batch_tokens_of(meta: MetaFile) -> int | None:
    """Tokens of an optimizer step, where the training script wrote them down."""
    candidates = (meta.raw.get("total_batch_size"), meta.settings.get("total_batch_size"))
    return next((value for value in candidates if type(value) is int and value > 0), None)


def their_config(config: GPTConfig, window_pattern: str) -> dict[str, int | str]:
    """A model's sizes in karpathy/nanochat's words: the keyword arguments of its GPTConfig."""
    sizes: dict[str, int | str] = {theirs: getattr(config, ours) for ours, theirs in _SIZES.items()}
    return sizes | {"window_pattern": window_pattern}


def _softcap(
    meta: MetaFile, generation: Generation, options: ReadOptions, notes: list[str]
) -> float:
    if options.softcap is not None:
        return options.softcap
    # total_batch_size is in the meta of base models since 16 February 2026, before the cap changed.
    is_older = "dataloader_state_dict" in meta.raw and "total_batch_size" not in meta.raw
    if generation == "v3" and not is_older:
        notes.append(
            "soft cap 15: no file says it; V3 models whose base was trained with the code of 2 to "
            "9 March 2026 had 20: set it if this is one of them"
        )
    return USUAL_SOFTCAP


def _sizes(meta: MetaFile, weights: Mapping[str, Tensor]) -> tuple[dict[str, int], list[str]]:
    """Our names of the sizes in model_config; what it lacks is read off the tensors."""
    sizes: dict[str, int] = {}
    notes = []
    for ours, theirs in _SIZES.items():
        is_known = theirs in meta.model_config
        value = meta.model_config[theirs] if is_known else _fill(ours, meta, weights, sizes)
        if type(value) is not int or value < 1:
            raise CheckpointError(
                f"{meta.path}: model_config is missing or damaged: {theirs} is {value!r:.40}, "
                "expected a whole number above 0"
            )
        sizes[ours] = value
        if not is_known:
            notes.append(f"{theirs} {value}: not in meta, filled in")
    return sizes, notes


def _fill(
    name: str, meta: MetaFile, weights: Mapping[str, Tensor], sizes: Mapping[str, int]
) -> object:
    """A size that meta lacks: from the tensors, or as the training scripts had it."""
    match name:
        case "num_layers":
            blocks = (re.match(r"transformer\.h\.(\d+)\.", tensor) for tensor in weights)
            return len({block[1] for block in blocks if block})
        case "model_dim":
            return _size(weights, "transformer.wte.weight", 1)
        case "num_heads":
            return -(-sizes["model_dim"] // USUAL_HEAD_DIM)
        case "num_kv_heads":
            rows = _size(weights, "transformer.h.0.attn.c_k.weight", 0) or 0
            return rows * sizes["num_heads"] // sizes["model_dim"]
        case "vocab_size":
            return _size(weights, "transformer.wte.weight", 0)
    return meta.raw.get("max_seq_len") or meta.settings.get("max_seq_len") or USUAL_CONTEXT


def _size(weights: Mapping[str, Tensor], name: str, dimension: int) -> int | None:
    """A dimension of a matrix; None where there is no such matrix."""
    tensor = weights.get(name)
    return tensor.size(dimension) if tensor is not None and tensor.ndim == 2 else None


def _pattern(
    meta: MetaFile, generation: Generation, stage: str, options: ReadOptions, notes: list[str]
) -> str | None:
    """The pattern of windows; None where there were none yet.

    Until 1 February 2026 mid-training and SFT left window_pattern out, though they trained with the
    base model's; karpathy/nanochat then takes L, with which such a model was never trained.
    """
    pattern = options.window_pattern or meta.model_config.get("window_pattern")
    if generation == "v1" or pattern is not None:
        return None if generation == "v1" else str(pattern)
    if generation == "v2" and stage == "pretrain":
        notes.append("window_pattern: V2 without one is from before there were windows: none")
        return None
    tag = meta.path.parent.name
    base = meta.path.parent.parent.parent / "base_checkpoints" / tag
    files = find_files(base) if stage != "pretrain" and base.is_dir() else None
    inherited = read_meta(files.meta).model_config.get("window_pattern") if files else None
    origin = f"taken from base_checkpoints/{tag}" if inherited is not None else "the usual one"
    pattern = str(inherited if inherited is not None else USUAL_PATTERN)
    notes.append(f"window_pattern {pattern}: not in meta, {origin}")
    return pattern

"""karpathy/nanochat's files -> ours.   in: a directory of its format   out: GPTConfig, weights   who calls: resolve.py

Its meta files do not say which generation wrote them: the tensors do.
Source: karpathy/nanochat nanochat/checkpoint_manager.py at 92d63d4; generations as in model/config.py.
Read next: resolve.py.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanochat.common.errors import CheckpointError
from nanochat.model.config import GENERATIONS, Generation, GPTConfig, windows_from_pattern

__all__ = ["ReferenceFiles", "detect_generation", "find_files", "load_config", "load_weights", "name_of"]

UNKNOWN_VARIANTS = ("bigram_embed", "v0_lambdas", "value_embed_A", "value_embed_B", "bigram_lambdas")


@dataclass(frozen=True, slots=True)
class ReferenceFiles:
    """One step of a checkpoint directory."""

    model: Path
    meta: Path
    step: int
    optimizer: Path | None


def find_files(directory: Path) -> ReferenceFiles | None:
    """The newest step of a directory in karpathy/nanochat's format; None if it holds no model_*.pt.

    Raises: CheckpointError if the newest step has no meta file.
    """
    steps = [
        (int(match[1]), path)
        for path in directory.glob("model_*.pt")
        if (match := re.fullmatch(r"model_(\d+)\.pt", path.name))
    ]
    if not steps:
        return None
    step, model = max(steps)
    digits = model.stem.removeprefix("model_")
    meta = directory / f"meta_{digits}.json"
    if not meta.is_file():
        raise CheckpointError(f"{model}: its meta file {meta.name} is missing; both are needed")
    optimizers = [directory / f"optim_{digits}_rank0.pt", directory / f"optim_{digits}.pt"]
    return ReferenceFiles(model, meta, step, next((path for path in optimizers if path.is_file()), None))


def load_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a model_*.pt under their original names, without torch.compile's prefix.

    Only tensors are read: code in the file is refused by torch.load's weights_only.
    Raises: CheckpointError if the file is damaged or holds anything but tensors.
    """
    try:
        raw = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds for damaged or dangerous files
        raise CheckpointError(f"{path}: not readable as plain tensors ({type(error).__name__})") from error
    if not isinstance(raw, dict) or not all(isinstance(value, Tensor) for value in raw.values()):
        raise CheckpointError(f"{path}: expected a dictionary of tensors, found {type(raw).__name__}")
    return {str(key).removeprefix("_orig_mod."): value for key, value in raw.items()}


def detect_generation(weights: Mapping[str, Tensor], where: str) -> Generation:
    """Which of the five generations has exactly these tensors.

    Raises: CheckpointError for the short-lived variants nobody published, by name.
    """
    for variant in UNKNOWN_VARIANTS:
        if any(key.startswith(variant) for key in weights):
            raise CheckpointError(f"{where}: holds {variant}.*, a trial of karpathy/nanochat that is not supported")
    if "smear_gate.weight" in weights:
        return "v5"
    if "resid_lambdas" not in weights:
        return "v1"
    gates = [tensor for key, tensor in weights.items() if key.endswith("ve_gate.weight")]
    if not gates:
        return "v2"
    return "v4" if gates[0].size(-1) == 12 else "v3"


def load_config(meta_path: Path, weights: Mapping[str, Tensor]) -> GPTConfig:
    """The explicit config of a checkpoint: what meta says, and what only its tensors tell.

    Raises: CheckpointError if meta is damaged or contradicts the tensors.
    """
    try:
        raw: dict[str, Any] = json.loads(meta_path.read_text())["model_config"]
        num_layers, model_dim, num_heads = int(raw["n_layer"]), int(raw["n_embd"]), int(raw["n_head"])
        context_len, vocab_size = int(raw["sequence_len"]), int(raw["vocab_size"])
        num_kv_heads = int(raw["n_kv_head"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{meta_path}: model_config is missing or damaged ({error})") from error
    generation = detect_generation(weights, str(meta_path))
    rows = weights["transformer.wte.weight"].size(0)
    config = GPTConfig(
        num_layers=num_layers,
        model_dim=model_dim,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=model_dim // num_heads,
        vocab_size=vocab_size,
        context_len=context_len,
        windows=windows_from_pattern(str(raw.get("window_pattern", "L")), num_layers, context_len, generation),
        vocab_padding=1 if rows == vocab_size else 64,
        **GENERATIONS[generation],
    )
    if config.padded_vocab_size != rows:
        raise CheckpointError(f"{meta_path}: vocab_size {vocab_size} does not fit {rows} rows of transformer.wte")
    return config


def name_of(reference_name: str) -> str:
    """Our name of one of karpathy/nanochat's tensors.

    Example: name_of("transformer.h.3.attn.c_q.weight") == "blocks.3.attention.query.weight"
    Raises:  CheckpointError for a name outside the table.
    """
    if reference_name in _PLAIN:
        return _PLAIN[reference_name]
    if match := re.fullmatch(r"transformer\.h\.(\d+)\.(.+)", reference_name):
        if match[2] in _BLOCK:
            return f"blocks.{match[1]}.{_BLOCK[match[2]]}"
    elif match := re.fullmatch(r"value_embeds\.(\d+)\.weight", reference_name):
        return f"value_embeddings.{match[1]}.weight"
    raise CheckpointError(f"tensor {reference_name} has no place in any of the five generations")


_PLAIN = {
    "transformer.wte.weight": "embedding.weight",
    "lm_head.weight": "head.weight",
    "resid_lambdas": "residual_lambdas",
    "x0_lambdas": "input_lambdas",
    "smear_gate.weight": "smear_gate.weight",
    "smear_lambda": "smear_lambda",
    "backout_lambda": "backout_lambda",
}
_BLOCK = {
    "attn.c_q.weight": "attention.query.weight",
    "attn.c_k.weight": "attention.key.weight",
    "attn.c_v.weight": "attention.value.weight",
    "attn.c_proj.weight": "attention.output.weight",
    "attn.ve_gate.weight": "attention.value_gate.weight",
    "mlp.c_fc.weight": "mlp.expand.weight",
    "mlp.c_proj.weight": "mlp.contract.weight",
}

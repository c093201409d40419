"""karpathy/nanochat's files -> ours.   in: a directory of its format   out: GPTConfig, weights,
moments
who calls: resolve.py

Its meta files do not say which generation wrote them: the tensors do.
Source: karpathy/nanochat nanochat/checkpoint_manager.py at 92d63d4; generations as in
        model/config.py.
Read next: resolve.py.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanochat.common.errors import CheckpointError, ConfigError
from nanochat.model.config import GENERATIONS, Generation, GPTConfig, windows_from_pattern

__all__ = [
    "ReferenceFiles",
    "detect_generation",
    "find_files",
    "load_config",
    "load_optimizer",
    "load_weights",
    "name_of",
]

UNKNOWN_VARIANTS = (
    "bigram_embed",
    "v0_lambdas",
    "value_embed_A",
    "value_embed_B",
    "bigram_lambdas",
)


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
    return ReferenceFiles(
        model, meta, step, next((path for path in optimizers if path.is_file()), None)
    )


def load_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a model_*.pt under their original names, without torch.compile's prefix.

    Only tensors are read: code in the file is refused by torch.load's weights_only.
    Raises: CheckpointError if the file is damaged or holds anything but tensors.
    """
    raw = _load_plain(path)
    if not isinstance(raw, dict) or not all(isinstance(value, Tensor) for value in raw.values()):
        raise CheckpointError(
            f"{path}: expected a dictionary of tensors, found {type(raw).__name__}"
        )
    return {str(key).removeprefix("_orig_mod."): value for key, value in raw.items()}


def detect_generation(weights: Mapping[str, Tensor], where: str) -> Generation:
    """Which of the five generations has exactly these tensors.

    Raises: CheckpointError for the short-lived variants nobody published, by name.
    """
    for variant in UNKNOWN_VARIANTS:
        if any(key.startswith(variant) for key in weights):
            raise CheckpointError(
                f"{where}: holds {variant}.*, a trial of karpathy/nanochat that is not supported"
            )
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
        raw: dict[str, Any] = json.loads(meta_path.read_text(encoding="utf-8"))["model_config"]
        sizes: dict[str, Any] = {ours: int(raw[theirs]) for ours, theirs in _SIZES.items()}
        pattern = str(raw.get("window_pattern", "L"))
        head_dim = sizes["model_dim"] // sizes["num_heads"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"{meta_path}: model_config is missing or damaged ({error!r})"
        ) from error
    generation = detect_generation(weights, str(meta_path))
    table = weights.get("transformer.wte.weight")
    rows = 0 if table is None else table.size(0)
    num_layers, vocab_size = sizes["num_layers"], sizes["vocab_size"]
    if num_layers > len(weights):  # before anything of that size is made
        raise CheckpointError(
            f"{meta_path}: {len(weights)} tensors cannot be the {num_layers} layers it says"
        )
    try:
        config = GPTConfig(
            **sizes,
            head_dim=head_dim,
            windows=windows_from_pattern(pattern, num_layers, sizes["context_len"], generation),
            vocab_padding=1 if rows == vocab_size else 64,
            **GENERATIONS[generation],
        )
    except ConfigError as error:
        raise CheckpointError(f"{meta_path}: {error}") from error
    if config.padded_vocab_size != rows:
        raise CheckpointError(
            f"{meta_path}: vocab_size {vocab_size} does not fit {rows} rows of transformer.wte"
        )
    return config


def load_optimizer(path: Path, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The moments of an optim_*.pt by our names: `<name>/first`, `<name>/second`, and `num_steps`.

    AdamW's first and second moments, Muon's momentum and variance.  The file knows its tensors by
    number only; the order of `weights`, as load_weights gives those of the same step, says which
    number is whose.
    Raises: CheckpointError if the file is damaged, holds code, was written by V1 or V2 (whose
            optimizers were others) or by one of several ranks, or does not fit the weights.
    Source: karpathy/nanochat GPT.setup_optimizer at 2f09686 (V3), 6ed7d1d (V4), 92d63d4 (V5).
    """
    generation = detect_generation(weights, str(path))
    if generation in ("v1", "v2"):
        raise CheckpointError(
            f"{path}: {generation} had other optimizers than v3 to v5, whose moments can be read: "
            "go on from the weights alone"
        )
    groups = _optimizer_groups(weights)
    sizes, states = _optimizer_states(path)
    expected = [len(group) for group in groups]
    if sizes != expected or not all(isinstance(state, dict) for state in states.values()):
        raise CheckpointError(
            f"{path}: groups of {sizes} tensors, expected {expected} for these weights"
        )
    moments: dict[str, Tensor] = {}
    number = 0
    for group in groups:
        if group[0].startswith("transformer.h."):  # the state of a stack stands at its first number
            moments |= _muon_moments(states.get(number, {}), group, weights, path)
        else:
            for offset, name in enumerate(group):
                moments |= _adam_moments(states.get(number + offset, {}), name, weights, path)
        number += len(group)
    return moments | {"num_steps": _num_steps(states, path)}


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


_SIZES = {
    "num_layers": "n_layer",
    "model_dim": "n_embd",
    "num_heads": "n_head",
    "num_kv_heads": "n_kv_head",
    "vocab_size": "vocab_size",
    "context_len": "sequence_len",
}
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


def _load_plain(path: Path) -> Any:
    """What torch saved, as long as it is tensors, numbers, strings and containers of them."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds for damaged or dangerous files
        raise CheckpointError(
            f"{path}: not readable as plain tensors ({type(error).__name__})"
        ) from error


def _optimizer_groups(weights: Mapping[str, Tensor]) -> list[list[str]]:
    """Reference names as the optimizer numbers them: AdamW's groups, then Muon's by shape."""
    matrices = [name for name in weights if name.startswith("transformer.h.")]
    scalars = [
        name for name in ("smear_gate.weight", "smear_lambda", "backout_lambda") if name in weights
    ]
    groups = [
        ["lm_head.weight"],
        ["transformer.wte.weight"],
        [name for name in weights if name.startswith("value_embeds.")],
        ["resid_lambdas"],
        ["x0_lambdas"],
        scalars,
    ]
    shapes = sorted({tuple(weights[name].shape) for name in matrices})
    groups += [
        [name for name in matrices if tuple(weights[name].shape) == shape] for shape in shapes
    ]
    return [group for group in groups if group]


def _optimizer_states(path: Path) -> tuple[list[int], dict[int, Any]]:
    """How many tensors each group has, and the states by number."""
    raw = _load_plain(path)
    try:
        return [len(group["params"]) for group in raw["param_groups"]], dict(raw["state"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: not the state of one optimizer ({error!r})") from error


def _adam_moments(
    state: Mapping[str, Any], name: str, weights: Mapping[str, Tensor], path: Path
) -> dict[str, Tensor]:
    shape = tuple(weights[name].shape)
    return {
        f"{name_of(name)}/first": _moment(state, "exp_avg", shape, f"{path}: {name}"),
        f"{name_of(name)}/second": _moment(state, "exp_avg_sq", shape, f"{path}: {name}"),
    }


def _muon_moments(
    state: Mapping[str, Any], names: list[str], weights: Mapping[str, Tensor], path: Path
) -> dict[str, Tensor]:
    """The moments of matrices of one shape, which the file holds stacked."""
    count, (rows, columns) = len(names), weights[names[0]].shape
    where = f"{path}: {names[0]} and {count - 1} more"
    shape = (count, rows, 1) if rows >= columns else (count, 1, columns)
    first = _moment(state, "momentum_buffer", (count, rows, columns), where)
    second = _moment(state, "second_momentum_buffer", shape, where)
    return {
        f"{name_of(name)}/{which}": stack[index]
        for index, name in enumerate(names)
        for which, stack in (("first", first), ("second", second))
    }


def _moment(state: Mapping[str, Any], key: str, shape: tuple[int, ...], where: str) -> Tensor:
    value = state.get(key)
    found = tuple(value.shape) if isinstance(value, Tensor) else None
    if not isinstance(value, Tensor) or found != shape:
        raise CheckpointError(
            f"{where}: {key} is {found or 'missing'}, expected {shape} (several devices write a "
            "part each, which "
            "cannot be read): go on from the weights alone"
        )
    return value.float()


def _num_steps(states: Mapping[int, Any], path: Path) -> Tensor:
    """AdamW counts its steps in every state; Muon does not."""
    steps = {state["step"] for state in states.values() if "step" in state}
    if len(steps) != 1 or not all(isinstance(step, int) for step in steps):
        raise CheckpointError(f"{path}: its tensors have made {steps} steps, expected one number")
    return torch.tensor(steps.pop())

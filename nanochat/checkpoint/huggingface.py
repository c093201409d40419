"""Hugging Face directories -> our checkpoints.   in: a directory   out: Checkpoint
who calls: resolve.py, huggingface_export.py (which writes such directories)

    config.json               sizes under transformers' names; "nanochat": GPTConfig, every choice
    model.safetensors         V1 under the names of transformers' own NanoChat, others under ours
    tokenizer.json            and tokenizer_config.json, chat_template.jinja, generation_config.json
    modeling_nanochat.py      V2 to V5: what transformers runs with trust_remote_code
    padding.safetensors       V1: the rows past the vocabulary, which transformers would count

A directory may also be anybody's V1 in transformers' format: then it is read as transformers
computes it.  Code in a directory is never run, whoever wrote it; weights are safetensors only.
Source: transformers 5.23, models/nanochat (names, norms, the rotary table in float32).
Read next: huggingface_export.py, tokenizer/huggingface.py, hub.py (where directories come from).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nanochat.checkpoint.format import FORMAT_VERSION, Checkpoint
from nanochat.checkpoint.upgrades import Contents, upgraded
from nanochat.common.errors import CheckpointError, ConfigError, DataError, TokenizerError
from nanochat.common.files import read_json
from nanochat.model.config import GENERATIONS, GPTConfig
from nanochat.tokenizer.huggingface import load_hf_tokenizer
from nanochat.tokenizer.tokenizer import Tokenizer

__all__ = [
    "INDEX",
    "MODEL_TYPES",
    "PADDING",
    "TEMPLATE",
    "WEIGHTS",
    "check_model_type",
    "is_huggingface",
    "is_native",
    "read_huggingface",
    "v1_name",
    "weight_parts",
]

MODEL_TYPES = ("nanochat", "nanochat_gpt")  # transformers' own V1; ours, with a model file
WEIGHTS, PADDING = "model.safetensors", "padding.safetensors"
INDEX = "model.safetensors.index.json"
TEMPLATE = "chat_template.jinja"
STAGES = ("pretrain", "midtrain", "sft", "rl")  # what a config.json may name
USUAL_PADDING = 64  # rows of karpathy/nanochat's tables are a multiple of it since December 2025


def is_native(config: GPTConfig) -> bool:
    """Whether transformers' own NanoChat computes this: V1, whatever its size and rope base."""
    v1 = GENERATIONS["v1"]
    fixed = ("qk_scale", "residual_lambdas", "value_embedding", "smear_channels", "backout")
    return all(getattr(config, name) == v1[name] for name in fixed) and all(
        window is None for window in config.windows
    )


def is_huggingface(directory: Path) -> bool:
    """Whether a directory is one that `read_huggingface` is meant for."""
    return not (directory / "manifest.json").exists() and (
        (directory / WEIGHTS).is_file() or (directory / INDEX).is_file()
    )


def read_huggingface(directory: Path) -> Checkpoint:
    """The checkpoint in a directory written by `export_huggingface`, or V1 in transformers' format.

    Its weights are read from the disk one by one, as they are asked for.
    Raises: CheckpointError naming the file and the reason.
    """
    raw = check_model_type(directory / "config.json")
    stored = {name: place for part in weight_parts(directory) for name, place in _tensors_in(part)}
    tokenizer = _read_tokenizer(directory / "tokenizer.json")
    try:
        if "nanochat" in raw:
            contents = _exported(raw, stored, directory)
        else:
            contents = _foreign(raw, stored, tokenizer, directory)
        return Checkpoint(
            config=GPTConfig.from_json(contents.config),
            weights=contents.weights,
            tokenizer=tokenizer,
            state=contents.state,
        )
    except ConfigError as error:
        raise CheckpointError(f"{directory / 'config.json'}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise CheckpointError(f"{directory / 'config.json'}: damaged ({error!r})") from error


def check_model_type(path: Path) -> dict[str, Any]:
    """The content of a config.json, if it is for a model of ours or for transformers' NanoChat.

    Raises: CheckpointError naming the file and what it is for.
    """
    raw = _read_object(path)
    kind = raw.get("model_type")
    if kind not in MODEL_TYPES:
        raise CheckpointError(f"{path}: is for {kind!r:.40}, expected {' or '.join(MODEL_TYPES)}")
    return raw


def weight_parts(directory: Path) -> list[Path]:
    """The files that hold the weights: one, or the parts that an index lists.

    Raises: CheckpointError naming what is missing, or an index that is damaged.
    """
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    index = directory / INDEX
    weight_map = _read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: no weight_map, expected a part's name by tensor")
    names = sorted(set(map(str, weight_map.values())))
    if strange := [name for name in names if not re.fullmatch(r"[\w.-]+\.safetensors", name)]:
        raise CheckpointError(f"{index}: names {strange[0]!r:.60}, expected a file beside it")
    parts = [directory / name for name in names]
    if missing := [part for part in parts if not part.is_file()]:
        raise CheckpointError(f"{missing[0]}: missing, though {INDEX} lists it")
    return parts


# ------------------------------------------------------------------------------------- names

_PLAIN = {"embedding.weight": "model.embed_tokens.weight", "head.weight": "lm_head.weight"}
_BLOCK = {
    "attention.query.weight": "self_attn.q_proj.weight",
    "attention.key.weight": "self_attn.k_proj.weight",
    "attention.value.weight": "self_attn.v_proj.weight",
    "attention.output.weight": "self_attn.o_proj.weight",
    "mlp.expand.weight": "mlp.fc1.weight",
    "mlp.contract.weight": "mlp.fc2.weight",
}


def v1_name(ours: str) -> str:
    """transformers' name of one of V1's weights.

    Example: v1_name("blocks.3.attention.query.weight") == "model.layers.3.self_attn.q_proj.weight"
    """
    if ours in _PLAIN:
        return _PLAIN[ours]
    _, layer, part = ours.split(".", 2)
    return f"model.layers.{layer}.{_BLOCK[part]}"


def _our_name(theirs: str, directory: Path) -> str:
    """Raises: CheckpointError for a tensor that V1 does not have."""
    for ours, name in _PLAIN.items():
        if theirs == name:
            return ours
    if match := re.fullmatch(r"model\.layers\.(\d+)\.(.+)", theirs):
        for ours, name in _BLOCK.items():
            if match[2] == name:
                return f"blocks.{match[1]}.{ours}"
    raise CheckpointError(
        f"{directory}: tensor {theirs:.80} has no place in transformers' NanoChat"
    )


# ------------------------------------------------------------------------------------- reading


@dataclass(frozen=True, slots=True)
class _Place:
    path: Path
    name: str


class _Lazy(Mapping[str, Tensor]):
    """Tensors in float32, each read when it is asked for; several parts are joined by rows."""

    def __init__(self, places: Mapping[str, list[_Place]]) -> None:
        self._places = places

    def __getitem__(self, name: str) -> Tensor:
        parts = [_tensor(place) for place in self._places[name]]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _tensor(place: _Place) -> Tensor:
    try:
        with safe_open(place.path, "pt") as file:
            tensor: Tensor = file.get_tensor(place.name)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{place.path}: {place.name} cannot be read ({error})") from error
    if not tensor.is_floating_point():
        raise CheckpointError(f"{place.path}: {place.name} is {tensor.dtype}, expected floats")
    return tensor.float()


def _tensors_in(path: Path) -> list[tuple[str, _Place]]:
    try:
        with safe_open(path, "pt") as file:
            return [(name, _Place(path, name)) for name in file.keys()]
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from error


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except (DataError, OSError) as error:
        raise CheckpointError(str(error)) from error  # it names the file
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is a {type(value).__name__}, expected a JSON object")
    return value


def _read_tokenizer(path: Path) -> Tokenizer:
    try:
        return load_hf_tokenizer(path)
    except TokenizerError as error:
        raise CheckpointError(str(error)) from error  # it names the file


def _exported(raw: Mapping[str, Any], stored: Mapping[str, _Place], directory: Path) -> Contents:
    """What `export_huggingface` wrote, of this version of the format or an older one."""
    state = raw["nanochat_state"]
    version = state["format_version"]
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise CheckpointError(
            f"{directory}: format version {version!r}, this nanochat reads 1 to {FORMAT_VERSION}: "
            "it was exported by a newer one"
        )
    config = dict(raw["nanochat"])
    places = {name: [place] for name, place in stored.items()}
    if raw["model_type"] == MODEL_TYPES[0]:
        places = {_our_name(name, directory): [place] for name, place in stored.items()}
        if (directory / PADDING).is_file():
            for name, place in _tensors_in(directory / PADDING):
                places.setdefault(name, []).append(place)
        else:  # nothing was cut off, or transformers saved it again: it keeps the vocabulary alone
            if config["vocab_size"] % config["vocab_padding"]:
                config["vocab_padding"] = 1
    stage, step = state["stage"], state["step"]
    if stage not in STAGES or type(step) is not int or step < 0:
        raise CheckpointError(
            f"{directory}: stage {stage!r:.40}, step {step!r:.40}, expected one of "
            f"{', '.join(STAGES)} and a number"
        )
    contents = Contents(
        config=config,
        state={"stage": stage, "step": step, "imported": _imported()},
        weights=_Lazy(places),
        optimizer=None,
    )
    return upgraded(contents, version)


def _foreign(
    raw: Mapping[str, Any], stored: Mapping[str, _Place], tokenizer: Tokenizer, directory: Path
) -> Contents:
    """Anybody's V1 as transformers computes it: float32 rotary table, its config's epsilon."""
    num_layers, width = int(raw["num_hidden_layers"]), int(raw["hidden_size"])
    num_heads, rows = int(raw["num_attention_heads"]), int(raw["vocab_size"])
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    padded = -(-tokenizer.vocab_size // USUAL_PADDING) * USUAL_PADDING
    demands = {
        "model_type": (raw["model_type"], MODEL_TYPES[0]),
        "hidden_act": (raw.get("hidden_act", "relu2"), "relu2"),
        "intermediate_size": (raw.get("intermediate_size", 8192), 4 * width),
        "attention_bias": (raw.get("attention_bias", False), False),
        "tie_word_embeddings": (raw.get("tie_word_embeddings", False), False),
        "rope_type": (rope.get("rope_type", "default"), "default"),
        "vocab_size": (rows, padded if rows == padded else tokenizer.vocab_size),
    }
    for name, (found, expected) in demands.items():
        if found != expected:
            raise CheckpointError(
                f"{directory}: {name} is {found!r:.40}, expected {expected!r} as nanochat has it"
            )
    if num_layers > len(stored):  # before anything of that size is made
        raise CheckpointError(f"{directory}: {len(stored)} tensors cannot be {num_layers} layers")
    config = GPTConfig(
        num_layers=num_layers,
        model_dim=width,
        num_heads=num_heads,
        num_kv_heads=int(raw.get("num_key_value_heads") or num_heads),
        head_dim=int(raw.get("head_dim") or width // num_heads),
        vocab_size=tokenizer.vocab_size,
        context_len=int(raw.get("max_position_embeddings", 2048)),
        windows=(None,) * num_layers,
        vocab_padding=1 if rows == tokenizer.vocab_size else USUAL_PADDING,
        norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        logit_softcap=float(raw.get("final_logit_softcapping", 15.0)),
        **GENERATIONS["v1"]
        | {
            "rope_dtype": "compute",
            "rope_base": float(rope.get("rope_theta") or raw.get("rope_theta", 10_000.0)),
        },
    )
    return Contents(
        config=config.to_json(),
        state={
            "stage": "sft" if _has_template(directory) else "pretrain",
            "step": 0,
            "imported": _imported(
                "it computes what transformers computes, with the rotary table in float32 and "
                f"eps {config.norm_eps:g}; karpathy/nanochat rounded it to bfloat16"
            ),
        },
        weights=_Lazy({_our_name(name, directory): [place] for name, place in stored.items()}),
        optimizer=None,
    )


def _imported(*notes: str) -> dict[str, Any]:
    return {"format": "Hugging Face", "notes": list(notes)}


def _has_template(directory: Path) -> bool:
    """Whether somebody meant the model for conversations."""
    config = directory / "tokenizer_config.json"
    return (directory / TEMPLATE).is_file() or (
        config.is_file() and "chat_template" in _read_object(config)
    )

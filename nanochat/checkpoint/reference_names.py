"""karpathy/nanochat's tensors -> ours, by name.   in: the names in a file   out: our names, the
generation   who calls: reference.py, reference_optimizer.py

Four tables, and nothing outside them is accepted: what wraps a name without meaning (WRAPPERS),
renamings (none by default: no release renamed a tensor; forks did, so they can be given), the names
themselves, and trials that were never released (UNKNOWN_VARIANTS), which are refused as such.
Source: karpathy/nanochat nanochat/gpt.py at 3a5e0bc (V1), fbc1484 (V2), 2f09686 (V3), 6ed7d1d
        (V4), 92d63d4 (V5).
Read next: reference.py.
"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from nanochat.common.errors import CheckpointError
from nanochat.model.config import Generation

__all__ = [
    "UNKNOWN_VARIANTS",
    "WRAPPERS",
    "canonical_names",
    "detect_generation",
    "name_of",
    "reference_name_of",
]

WRAPPERS = frozenset({"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Parts of a name that torch.compile, DDP, FSDP and activation checkpointing put in."""

UNKNOWN_VARIANTS = frozenset(
    {
        "bigram_embed",
        "bigram_lambdas",
        "v0_lambdas",
        "value_embed",
        "value_embed_A",
        "value_embed_B",
    }
)
"""First parts of names of trials between V2 and V3; no checkpoint of theirs is known."""

VALUE_GATE_CHANNELS: dict[int, Generation] = {32: "v3", 12: "v4"}

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
_REFERENCE_PLAIN = {ours: theirs for theirs, ours in _PLAIN.items()}
_REFERENCE_BLOCK = {ours: theirs for theirs, ours in _BLOCK.items()}


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


def reference_name_of(name: str) -> str:
    """karpathy/nanochat's name of one of our tensors: the inverse of `name_of`."""
    if name in _REFERENCE_PLAIN:
        return _REFERENCE_PLAIN[name]
    first, number, rest = name.split(".", 2)
    if first == "blocks":
        return f"transformer.h.{number}.{_REFERENCE_BLOCK[rest]}"
    return f"value_embeds.{number}.{rest}"


def canonical_names(
    names: Iterable[str], where: str, aliases: Mapping[str, str] | None = None
) -> dict[str, str]:
    """karpathy/nanochat's name -> the name in the file, in the file's order.

    `aliases` says what a fork calls its tensors: its name -> karpathy/nanochat's, with * for a
    layer's number: {"transformer.h.*.attn.gate.weight": "transformer.h.*.attn.ve_gate.weight"}.
    Raises: CheckpointError where two names become one.
    """
    patterns = [
        (re.compile(re.escape(theirs).replace(r"\*", r"(\d+)")), ours.replace("*", r"\1"))
        for theirs, ours in (aliases or {}).items()
    ]
    found: dict[str, str] = {}
    for name in names:
        plain = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        for pattern, replacement in patterns:
            if match := pattern.fullmatch(plain):
                plain = match.expand(replacement) if match.groups() else replacement
                break
        if plain in found:
            raise CheckpointError(f"{where}: {found[plain]} and {name} are both {plain}")
        found[plain] = name
    return found


def detect_generation(weights: Mapping[str, Tensor], where: str) -> Generation:
    """Which of the five generations has these tensors, by those that only it has.

    Raises: CheckpointError for a trial that was never released and for a value gate of a size that
            no generation has, by name.
    """
    for name in weights:
        if name.split(".")[0] in UNKNOWN_VARIANTS:
            raise CheckpointError(
                f"{where}: holds {name}, of a trial of karpathy/nanochat that is not supported"
            )
    if "smear_gate.weight" in weights:
        return "v5"
    if "resid_lambdas" not in weights:
        return "v1"
    gates = {name: tensor for name, tensor in weights.items() if name.endswith("ve_gate.weight")}
    if not gates:
        return "v2"
    name, gate = next(iter(gates.items()))
    channels = gate.size(-1) if gate.ndim else 0
    if channels not in VALUE_GATE_CHANNELS:
        raise CheckpointError(f"{where}: {name} has {channels} channels, expected 32 (V3), 12 (V4)")
    return VALUE_GATE_CHANNELS[channels]

"""karpathy/nanochat's files -> ours.   in: one step's files   out: Checkpoint
who calls: resolve.py, cli (`nanochat import`)

Its meta files do not say which generation wrote them: the tensors do.  What neither says is
filled in, and every such choice is noted in `state["imported"]["notes"]`.  Every tensor must have a
place, and every place a tensor: nothing is skipped.
Source: karpathy/nanochat nanochat/checkpoint_manager.py at 92d63d4; generations as in
        model/config.py.
Read next: reference_files.py, reference_config.py, reference_names.py, reference_optimizer.py,
torch_file.py (why nothing in a file runs).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanochat.checkpoint.fit import check_vocabulary
from nanochat.checkpoint.format import Checkpoint
from nanochat.checkpoint.reference_config import (
    ReadOptions,
    batch_tokens_of,
    config_of,
    load_config,
    metrics_of,
    read_meta,
    stage_of,
)
from nanochat.checkpoint.reference_files import (
    ReferenceFiles,
    find_files,
    find_tokenizer,
    locate,
)
from nanochat.checkpoint.reference_names import (
    canonical_names,
    detect_generation,
    name_of,
    reference_name_of,
)
from nanochat.checkpoint.reference_optimizer import load_optimizer, stored_optimizer
from nanochat.checkpoint.torch_file import FLOATS, Piece, StoredTensors, load_torch_file
from nanochat.common.errors import CheckpointError
from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.tokenizer.load import load_tokenizer

__all__ = [
    "ReadOptions",
    "ReferenceFiles",
    "detect_generation",
    "find_files",
    "find_tokenizer",
    "load_config",
    "load_optimizer",
    "load_weights",
    "locate",
    "name_of",
    "read_reference",
]


_AS_FOUND = ReadOptions()


def read_reference(files: ReferenceFiles, options: ReadOptions = _AS_FOUND) -> Checkpoint:
    """A checkpoint of karpathy/nanochat as one of ours, weights in float32, every tensor in its
    place.

    `state["imported"]` says what it was: source, generation, soft cap, and `notes`, a sentence for
    every choice that the files left open.
    Raises: CheckpointError naming the file and the reason; TokenizerError for the tokenizer.
    """
    weights, places = _load_places(files.model, options.aliases)
    meta = read_meta(files.meta)
    stage = options.stage or stage_of(files, meta, weights)
    config, notes = config_of(meta, weights, stage, options)
    _check_weights(config, weights, files.model)
    directory = files.model.parent
    tokenizer = load_tokenizer(options.tokenizer or find_tokenizer(directory))
    check_vocabulary(config, tokenizer.vocab_size, str(files.meta))
    optimizer = _optimizer(files, weights, notes, options) if options.with_optimizer else None
    state: dict[str, Any] = {
        "stage": stage,
        "step": files.step,
        "metrics": metrics_of(meta),
        "parent": str(files.model),
        "imported": {
            "format": "karpathy/nanochat",
            "generation": detect_generation(weights, str(files.model)),
            "logit_softcap": config.logit_softcap,
            "notes": notes,
        },
    }
    if batch_tokens := batch_tokens_of(meta):
        state["batch_tokens"] = batch_tokens
    return Checkpoint(
        config=config,
        weights=_ours(files.model, weights, places, options.is_streamed),
        tokenizer=tokenizer,
        optimizer=optimizer,
        state=state,
    )


def load_weights(path: Path, aliases: Mapping[str, str] | None = None) -> dict[str, Tensor]:
    """The tensors of a model_*.pt, memory-mapped, under karpathy/nanochat's names, without what
    torch.compile and others put before them.

    Only tensors are read: a file with code in it is refused.
    Raises: CheckpointError if the file is damaged or holds anything but tensors of weights.
    """
    return _load_places(path, aliases or {})[0]


def _load_places(
    path: Path, aliases: Mapping[str, str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by karpathy/nanochat's names, and the names they have in the file."""
    raw = load_torch_file(path)
    if not isinstance(raw, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in raw.items()
    ):
        raise CheckpointError(
            f"{path}: expected a dictionary of tensors by name, found {type(raw).__name__}"
        )
    places = canonical_names(raw, str(path), aliases)
    weights = {name: raw[place].detach() for name, place in places.items()}
    for name, tensor in weights.items():
        if tensor.dtype not in FLOATS:
            raise CheckpointError(
                f"{path}: {name} is {tensor.dtype}, expected float32, bfloat16 or float16"
            )
    claimed, held = sum(tensor.nbytes for tensor in weights.values()), path.stat().st_size
    if claimed > held:  # a few bytes can describe a tensor that repeats one number for ever
        raise CheckpointError(f"{path}: its tensors claim {claimed:,} bytes, it has {held:,}")
    return weights, places


def _ours(
    path: Path, weights: Mapping[str, Tensor], places: Mapping[str, str], is_streamed: bool
) -> Mapping[str, Tensor]:
    if not is_streamed:
        return {name_of(name): tensor.float() for name, tensor in weights.items()}
    return StoredTensors(
        {name_of(name): (Piece(path, (place,)),) for name, place in places.items()},
        {name_of(name): tuple(tensor.shape) for name, tensor in weights.items()},
    )


def _optimizer(
    files: ReferenceFiles, weights: Mapping[str, Tensor], notes: list[str], options: ReadOptions
) -> Mapping[str, Tensor] | None:
    generation = detect_generation(weights, str(files.model))
    if files.optimizer is None:
        notes.append("optimizer: the file is not there; training goes on from the weights alone")
        return None
    if generation in ("v1", "v2"):
        notes.append(
            f"optimizer: {generation} had others than ours, its moments are left out; training "
            "goes on from the weights alone"
        )
        return None
    read = stored_optimizer if options.is_streamed else load_optimizer
    return read(files.optimizer, weights)


def _check_weights(config: GPTConfig, weights: Mapping[str, Tensor], path: Path) -> None:
    """Raises: CheckpointError naming tensors that have no place, are missing or do not fit."""
    with torch.device("meta"):
        model = GPT(config)
    wanted = {
        reference_name_of(name): tuple(parameter.shape)
        for name, parameter in model.named_parameters()
    }
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for what, names in (
        ("tensors that have no place in this generation", found.keys() - wanted.keys()),
        ("tensors missing", wanted.keys() - found.keys()),
    ):
        if names:
            raise CheckpointError(
                f"{path}: {len(names)} {what}: {_listed(names)}; where a fork renamed them, say so "
                "with aliases"
            )
    if wrong := [name for name in wanted if found[name] != wanted[name]]:
        shapes = [f"{name} is {found[name]}, expected {wanted[name]}" for name in wrong[:3]]
        raise CheckpointError(f"{path}: {len(wrong)} tensors do not fit: {'; '.join(shapes)}")


def _listed(names: set[str]) -> str:
    shown = sorted(names)[:5]
    return ", ".join(shown) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

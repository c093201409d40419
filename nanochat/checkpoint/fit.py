"""Tensors against the config they are meant for.   in: GPTConfig, tensors   out: what does not fit
who calls: format.py, resolve.py

Nothing of a size that only a config claims is ever made: what is claimed is compared with what is
held before the model is drawn up, and it is drawn up without memory.
Read next: model/gpt.py (whose names these are).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from nanochat.common.errors import CheckpointError
from nanochat.model.config import GPTConfig
from nanochat.model.cost import count_parameters
from nanochat.model.gpt import GPT

__all__ = ["check_moments", "check_vocabulary", "check_weights"]


def check_weights(
    config: GPTConfig,
    weights: Mapping[str, Tensor],
    where: str,
    dtype: torch.dtype | None = None,
) -> None:
    """Nothing, if there is exactly one weight of the right shape, and of `dtype`, for every one of
    the model's.

    Raises: CheckpointError naming tensors that are missing, left over or otherwise.
    """
    claimed = count_parameters(config).total
    held = sum(tensor.numel() for tensor in weights.values())
    if claimed > 2 * held:
        raise CheckpointError(f"{where}: the config is for {claimed:,} weights, it holds {held:,}")
    with torch.device("meta"):
        model = GPT(config)
    suffix = f" {_name(dtype)}" if dtype else ""
    wanted = {name: f"{tuple(p.shape)}{suffix}" for name, p in model.named_parameters()}
    found = {
        name: f"{tuple(tensor.shape)}" + (f" {_name(tensor.dtype)}" if dtype else "")
        for name, tensor in weights.items()
    }
    names = wanted.keys() | found.keys()
    if odd := sorted(name for name in names if wanted.get(name) != found.get(name)):
        first = odd[0]
        raise CheckpointError(
            f"{where}: {len(odd)} tensors do not fit the config, such as {first}: "
            f"expected {wanted.get(first, 'none')}, found {found.get(first, 'none')}"
        )


def check_moments(weights: Mapping[str, Tensor], moments: Mapping[str, Tensor], where: str) -> None:
    """Nothing, if every `<weight>/first` and `<weight>/second` belongs to a weight: the first has
    its shape, the second its shape or 1 along a dimension.

    Raises: CheckpointError naming the first that does not.
    """
    for key, moment in moments.items():
        name, _, which = key.rpartition("/")
        if not name:
            continue
        if name not in weights:
            raise CheckpointError(f"{where}: {key} belongs to no weight of the model")
        shape, full = tuple(moment.shape), tuple(weights[name].shape)
        is_reduced = len(shape) == len(full) and all(
            ours in (1, theirs) for ours, theirs in zip(shape, full, strict=True)
        )
        if shape != full and not (which == "second" and is_reduced):
            raise CheckpointError(f"{where}: {key} has shape {shape}, its weight {full}")
        if moment.dtype != torch.float32:
            raise CheckpointError(f"{where}: {key} is {_name(moment.dtype)}, expected float32")


def check_vocabulary(config: GPTConfig, num_tokens: int, where: str) -> None:
    """Nothing, if the tokenizer has as many tokens as the model.

    Raises: CheckpointError with both numbers.
    """
    if num_tokens != config.vocab_size:
        raise CheckpointError(
            f"{where}: the tokenizer has {num_tokens} tokens, the model {config.vocab_size}"
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

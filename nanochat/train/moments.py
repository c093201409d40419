"""What the moments of a weight look like.   in: names, shapes   out: names, shapes, refusals
who calls: optim.py, fsdp.py

Saved and loaded they are whole tensors by weight name, whoever holds which part while training.
Read next: optim.py.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from nanochat.common.errors import CheckpointError
from nanochat.train.recipes import role_of

__all__ = ["MOMENTS", "complete_state", "moment_shape"]

MOMENTS = ("first", "second")


def moment_shape(name: str, which: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A moment is as large as its weight, but of Muon's second there is one a row, or a column."""
    if which != "second" or role_of(name) != "matrix":
        return tuple(shape)
    rows, columns = shape
    return (rows, 1) if rows >= columns else (1, columns)


def complete_state(
    state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> Mapping[str, Tensor]:
    """A state with all moments of weights of these shapes; before the first update, when AdamW has
    made none, those that are missing are zeros, which take no memory.

    Raises: CheckpointError naming moments that are missing or have another shape.
    """
    expected = {
        f"{name}/{which}": moment_shape(name, which, shape)
        for name, shape in shapes.items()
        for which in MOMENTS
    }
    missing = sorted({"num_steps", *expected} - set(state))
    if missing and ("num_steps" in missing or int(state["num_steps"]) > 0):
        raise CheckpointError(f"optimizer state lacks {len(missing)} moments, such as {missing[0]}")
    for key, shape in expected.items():
        if key in state and (found := tuple(state[key].shape)) != shape:
            raise CheckpointError(f"optimizer state {key} has shape {found}, expected {shape}")
    if not missing:
        return state
    return {**state, **{key: torch.zeros(()).expand(expected[key]) for key in missing}}

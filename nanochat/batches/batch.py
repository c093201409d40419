"""Rows of tokens -> a batch.   in: rows of T + 1 tokens, which of them are trained   out: Batch
who calls: stream, train

The target of a position is the token after it; where that token is not trained the target is
IGNORE, which `torch.nn.functional.cross_entropy` leaves out.
Read next: stream.py (who fills the rows), train/loss.py (who reads the targets).
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["IGNORE", "Batch", "batch_from_rows", "micro_batches"]

IGNORE = -100  # PyTorch's own default for cross_entropy's ignore_index


class Batch(NamedTuple):
    """What a model reads and what it should have said next; int64, both of shape B, T."""

    inputs_BT: Tensor
    targets_BT: Tensor

    @property
    def num_targets(self) -> int:
        """Positions that are trained; a part of a batch may have none."""
        return int((self.targets_BT != IGNORE).sum())


def batch_from_rows(rows_BS: npt.NDArray[np.int64], is_trained_BS: npt.NDArray[np.bool_]) -> Batch:
    """Inputs are all tokens but the last, targets all but the first, IGNORE where not trained.

    Shapes: rows_BS, is_trained_BS with S = T + 1 -> inputs_BT, targets_BT.
    """
    assert rows_BS.shape == is_trained_BS.shape, f"{rows_BS.shape} and {is_trained_BS.shape}"
    inputs = np.ascontiguousarray(rows_BS[:, :-1])
    targets = np.where(is_trained_BS[:, 1:], rows_BS[:, 1:], IGNORE)
    return Batch(torch.from_numpy(inputs), torch.from_numpy(targets))


def micro_batches(batch: Batch, num_rows: int, multiple: int | None = None) -> Iterator[Batch]:
    """The batch in parts of `num_rows` rows (the last may be smaller), for gradient accumulation.

    With `multiple`, columns at the end in which nothing is trained are cut off, down to a multiple
    of it: nothing trained is lost, because a position never depends on what follows it.  The
    longest rows come first, so that short ones are not padded to the length of a long one.
    """
    assert num_rows > 0, f"num_rows is {num_rows}"
    if multiple:
        order = _trained_lengths(batch.targets_BT).argsort(descending=True, stable=True)
        batch = Batch(batch.inputs_BT[order], batch.targets_BT[order])
    for start in range(0, batch.inputs_BT.shape[0], num_rows):
        inputs_BT = batch.inputs_BT[start : start + num_rows]
        targets_BT = batch.targets_BT[start : start + num_rows]
        width = _trained_width(targets_BT, multiple) if multiple else inputs_BT.shape[1]
        yield Batch(inputs_BT[:, :width].contiguous(), targets_BT[:, :width].contiguous())


def _trained_lengths(targets_BT: Tensor) -> Tensor:
    """For every row the position after its last target, 0 without any."""
    positions_T = torch.arange(1, targets_BT.shape[1] + 1, device=targets_BT.device)
    return torch.where(targets_BT != IGNORE, positions_T, 0).amax(dim=1)


def _trained_width(targets_BT: Tensor, multiple: int) -> int:
    width = max(1, int(_trained_lengths(targets_BT).max()))
    return min(-(-width // multiple) * multiple, targets_BT.shape[1])

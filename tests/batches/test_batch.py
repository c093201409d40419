"""Rows to tensors: the target is the next token, or IGNORE."""

import numpy as np
import pytest
import torch

from nanochat.batches.batch import IGNORE, Batch, batch_from_rows, micro_batches

pytestmark = pytest.mark.req("FR-033")


def test_targets_are_the_next_tokens() -> None:
    rows = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    is_trained = np.array([[1, 0, 1, 1], [0, 1, 1, 0]], bool)
    batch = batch_from_rows(rows, is_trained)
    assert batch.inputs_BT.tolist() == [[1, 2, 3], [5, 6, 7]]
    assert batch.targets_BT.tolist() == [[IGNORE, 3, 4], [6, 7, IGNORE]]
    assert batch.inputs_BT.dtype == batch.targets_BT.dtype == torch.int64
    assert batch.inputs_BT.is_contiguous() and batch.targets_BT.is_contiguous()
    assert batch.num_targets == 4


def test_ignore_is_what_cross_entropy_leaves_out() -> None:
    assert torch.nn.CrossEntropyLoss().ignore_index == IGNORE


def wide_batch() -> Batch:
    targets_BT = torch.full((4, 8), IGNORE)
    targets_BT[0, 6] = targets_BT[1, 2] = targets_BT[2, 1] = 1
    return Batch(torch.arange(32).view(4, 8), targets_BT)


def test_parts_are_the_whole() -> None:
    parts = list(micro_batches(wide_batch(), 3))
    assert [part.inputs_BT.shape for part in parts] == [(3, 8), (1, 8)]
    assert torch.equal(torch.cat([part.inputs_BT for part in parts]), wide_batch().inputs_BT)
    assert torch.equal(torch.cat([part.targets_BT for part in parts]), wide_batch().targets_BT)


def test_parts_are_cut_where_nothing_more_is_trained() -> None:
    parts = list(micro_batches(wide_batch(), 1, multiple=2))
    assert [part.inputs_BT.shape[1] for part in parts] == [8, 4, 2, 2]
    assert sum(part.num_targets for part in parts) == wide_batch().num_targets
    assert all(part.inputs_BT.is_contiguous() for part in parts)
    # A multiple that does not divide the width never makes it wider.
    assert next(micro_batches(wide_batch(), 1, multiple=5)).inputs_BT.shape[1] == 8


def test_the_longest_rows_come_first_where_parts_are_cut() -> None:
    """Two long and two short rows in turn: each part is as wide as its own rows."""
    targets_BT = torch.full((4, 8), IGNORE)
    targets_BT[0, 1] = targets_BT[1, 7] = targets_BT[2, 0] = targets_BT[3, 6] = 1
    batch = Batch(torch.arange(32).view(4, 8), targets_BT)
    parts = list(micro_batches(batch, 2, multiple=2))
    assert [part.inputs_BT.shape for part in parts] == [(2, 8), (2, 2)]
    assert [part.inputs_BT[:, 0].tolist() for part in parts] == [[8, 24], [0, 16]]
    assert sum(part.num_targets for part in parts) == batch.num_targets

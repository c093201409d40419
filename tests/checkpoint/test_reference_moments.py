"""Moments of karpathy/nanochat's optimizer, of one device or several, become ours."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nanochat.checkpoint.format import load_checkpoint, save_checkpoint
from nanochat.checkpoint.reference import (
    ReadOptions,
    read_reference,
)
from nanochat.checkpoint.reference_optimizer import load_optimizer, stored_optimizer
from nanochat.checkpoint.torch_file import StoredTensors
from nanochat.common.errors import CheckpointError
from nanochat.model.config import GENERATIONS, Generation
from tests.checkpoint.conftest import ReferenceDirectory
from tests.checkpoint.directories import files_of
from tests.golden import parity


def split(raw: dict[str, Any], num_ranks: int) -> list[dict[str, Any]]:
    """The state of one device as several would have written it, after DistMuonAdamW's docstring."""
    ranks: list[dict[str, Any]] = [
        {"state": {}, "param_groups": raw["param_groups"]} for _ in range(num_ranks)
    ]
    for number, state in raw["state"].items():
        for rank, written in enumerate(ranks):
            written["state"][number] = {
                key: share(key, value, rank, num_ranks) for key, value in state.items()
            }
    return ranks


def share(key: str, value: Any, rank: int, num_ranks: int) -> Any:
    if not isinstance(value, Tensor):
        return value
    if key.startswith("exp_avg"):
        return value if value.numel() < 1024 else value.chunk(num_ranks)[rank].clone()
    size = -(-len(value) // num_ranks)
    filled = torch.cat((value, torch.zeros(size * num_ranks - len(value), *value.shape[1:])))
    return filled[rank * size : (rank + 1) * size].clone()


@pytest.mark.parametrize("num_ranks", [2, 16])
@pytest.mark.req("FR-020", "FR-046", "FR-048")
def test_moments_of_several_devices_are_put_together(num_ranks: int, tmp_path: Path) -> None:
    figures = parity.from_golden("v5")
    assert figures.optimizer is not None
    torch.save(figures.optimizer, tmp_path / "optim_000030.pt")
    whole = load_optimizer(tmp_path / "optim_000030.pt", figures.weights)
    for rank, state in enumerate(split(figures.optimizer, num_ranks)):
        torch.save(state, tmp_path / f"optim_000030_rank{rank}.pt")
    (tmp_path / "optim_000030_rankx.pt").write_text("")  # is not one of them
    for rank in {0, num_ranks - 1}:
        parts = load_optimizer(tmp_path / f"optim_000030_rank{rank}.pt", figures.weights)
        assert parts.keys() == whole.keys()
        assert all(torch.equal(parts[name], moment) for name, moment in whole.items())


@pytest.mark.req("FR-047", "EC-2")
def test_a_device_too_few(tmp_path: Path) -> None:
    figures = parity.from_golden("v5")
    assert figures.optimizer is not None
    paths = [tmp_path / f"optim_000030_rank{rank}.pt" for rank in range(4)]
    for path, state in zip(paths, split(figures.optimizer, 4), strict=True):
        torch.save(state, path)
    paths[3].rename(tmp_path / "last.pt")
    message = (
        r"optim_000030_rank0.pt: lm_head.weight: exp_avg is \(128, 64\), expected \(512, 64\) "
        r"of each of 3 devices \(several devices write a part each: are all their files here\?\)"
    )
    with pytest.raises(CheckpointError, match=message):
        load_optimizer(paths[0], figures.weights)
    (tmp_path / "last.pt").rename(paths[3])
    paths[1].unlink()
    with pytest.raises(CheckpointError, match=r"optim_000030_rank1.pt is missing: every device"):
        load_optimizer(paths[0], figures.weights)


def test_matrices_that_are_none(tmp_path: Path) -> None:
    figures = parity.from_golden("v5")
    torch.save(figures.optimizer, tmp_path / "optim_000030.pt")
    odd = {n: w[0] if w.shape == (64, 64) else w for n, w in figures.weights.items()}
    with pytest.raises(
        CheckpointError, match=r"optim_000030.pt: .*c_q.weight is \(64,\), expected"
    ):
        load_optimizer(tmp_path / "optim_000030.pt", odd)


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.req("FR-020", "FR-045", "FR-046")
def test_moments_come_through_our_format(
    is_streamed: bool, reference_directory: ReferenceDirectory, tmp_path: Path
) -> None:
    figures = parity.from_golden("v5")
    files = files_of(reference_directory("v5"))
    options = ReadOptions(with_optimizer=True, is_streamed=is_streamed)
    checkpoint = read_reference(files, options)
    assert isinstance(checkpoint.optimizer, StoredTensors) == is_streamed
    save_checkpoint(tmp_path / "ours", checkpoint)
    loaded = load_checkpoint(tmp_path / "ours", with_optimizer=True)
    assert files.optimizer is not None and loaded.optimizer is not None
    expected = stored_optimizer(files.optimizer, figures.weights)
    assert set(loaded.optimizer) == set(expected) and int(loaded.optimizer["num_steps"]) == 30
    assert all(torch.equal(loaded.optimizer[name], moment) for name, moment in expected.items())


@pytest.mark.parametrize("generation", GENERATIONS)
def test_moments_that_are_not_there_are_said(
    generation: Generation, reference_directory: ReferenceDirectory
) -> None:
    directory = reference_directory(generation)
    optimizer = directory / "optim_000030_rank0.pt"
    optimizer.unlink(missing_ok=True)
    checkpoint = read_reference(files_of(directory), ReadOptions(with_optimizer=True))
    assert checkpoint.optimizer is None
    (note,) = checkpoint.state["imported"]["notes"]
    assert note == "optimizer: the file is not there; training goes on from the weights alone"
    if generation in ("v1", "v2"):
        torch.save([{}, {}], optimizer)
        checkpoint = read_reference(files_of(directory), ReadOptions(with_optimizer=True))
        assert checkpoint.optimizer is None
        (note,) = checkpoint.state["imported"]["notes"]
        assert note.startswith(f"optimizer: {generation} had others than ours, its moments are")

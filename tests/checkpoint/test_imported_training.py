"""Training goes on from an imported run as karpathy/nanochat's own went on."""

import shutil
from pathlib import Path

import pytest
import torch

from nanochat.checkpoint.resolve import read_newest, restore
from nanochat.cli.main import main
from nanochat.model.config import Generation
from nanochat.train.loss import loss_sum
from nanochat.train.optim import Optimizer
from tests.checkpoint.conftest import ReferenceDirectory
from tests.conftest import RESUME_BFLOAT16_RTOL, RESUME_RTOL
from tests.golden import parity
from tests.train.test_resume import CONSTANT, batch_of, furthest, recipe_of

NUM_STEPS = 6


def losses_after_import(directory: Path, figures: parity.Figures) -> list[float]:
    assert main(["import", str(directory), "--run", "theirs"]) == 0
    path, checkpoint = read_newest("theirs", with_optimizer=True)
    assert checkpoint.optimizer is not None
    model = restore(checkpoint, str(path))
    optimizer = Optimizer(model, recipe_of(figures.generation))
    optimizer.load_state(checkpoint.optimizer)
    losses = []
    for index in range(30, 30 + NUM_STEPS):
        batch = batch_of(figures, index)
        loss = loss_sum(model, batch) / batch.num_targets
        loss.backward()
        optimizer.step(CONSTANT)
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("num_devices", [1, 2])
@pytest.mark.req("FR-020", "FR-046", "FR-048", "FR-070")
def test_v5_goes_on(num_devices: int, reference_directory: ReferenceDirectory) -> None:
    figures = parity.from_golden("v5")
    directory = reference_directory("v5")
    if num_devices > 1:
        from tests.checkpoint.test_reference_read import split

        assert figures.optimizer is not None
        for rank, state in enumerate(split(figures.optimizer, num_devices)):
            torch.save(state, directory / f"optim_000030_rank{rank}.pt")
    assert furthest(losses_after_import(directory, figures), figures) <= RESUME_RTOL


@pytest.mark.parametrize("generation", ["v3", "v4"])
@pytest.mark.req("FR-020", "FR-046", "FR-048", "FR-070")
def test_the_shared_checkpoints_go_on(
    generation: Generation, shared_dir: Path, tmp_path: Path
) -> None:
    """V3's and V4's moments, in their files; what bfloat16 does: tests/train/test_resume.py."""
    figures = parity.from_shared(shared_dir, generation)
    folder = shared_dir / "parity" / parity.FOLDERS[generation] / "base"
    shutil.copytree(folder, tmp_path / "base")
    directory = tmp_path / "base" / "base_checkpoints"
    assert furthest(losses_after_import(directory, figures), figures) <= RESUME_BFLOAT16_RTOL


@pytest.mark.req("FR-046", "FR-048")
def test_v1_goes_on_from_its_weights(
    reference_directory: ReferenceDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = reference_directory("v1")
    torch.save([{}, {}], directory / "optim_000030.pt")
    assert main(["import", str(directory), "--run", "theirs"]) == 0
    assert "optimizer: v1 had others than ours, its moments are left out" in capsys.readouterr().out
    _, checkpoint = read_newest("theirs", with_optimizer=True)
    assert checkpoint.optimizer is None
    assert checkpoint.state["imported"]["generation"] == "v1"

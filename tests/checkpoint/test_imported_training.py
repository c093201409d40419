"""Training goes on from an imported run as karpathy/nanochat's own went on."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nanochat.checkpoint.lineage import lineage
from nanochat.checkpoint.resolve import read_newest, restore
from nanochat.cli.main import main
from nanochat.model.config import Generation
from nanochat.tokenizer.tokenizer import Tokenizer
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
        from tests.checkpoint.test_reference_moments import split

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


def pretrain(*more: str) -> int:
    """Two steps on from the figures' step 30, where nothing else is said."""
    words = "--run theirs --depth 4 --world-chars 20000 --batch-tokens 512 --num-steps 32"
    words += " --device cpu --dtype float32 --compile off --eval-every 0 --eval-tokens 256"
    return main(["pretrain", *words.split(), *more])


def saved(step: int) -> tuple[Path, dict[str, Any], int]:
    """The checkpoint of a step, its state, and how many updates its moments have seen."""
    path, checkpoint = read_newest(f"theirs/pretrain@{step}", with_optimizer=True)
    moments = load_file(path / "optimizer.safetensors")
    return path, dict(checkpoint.state), int(moments["num_steps"])


@pytest.mark.req("FR-020", "FR-046", "FR-048")
def test_pretraining_goes_on_from_an_import(
    reference_directory: ReferenceDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the model and the tokenizer that are there, which no flags could spell out: this one
    has two heads for keys where --depth 4 gives four."""
    assert main(["import", str(reference_directory("v5")), "--run", "theirs"]) == 0
    first, _ = read_newest("theirs", with_optimizer=True)
    for said, what in (
        (["--depth", "2"], "an imported model of 4 layers, --depth is 2: pass --depth 4"),
        (["--num-steps", "30"], "come to step 30, and the plan ends after 30: expected .*least 31"),
    ):
        capsys.readouterr()
        assert pretrain(*said) == 2
        assert what.partition(".*")[0] in capsys.readouterr().err
    assert pretrain("--save-every", "1", "--num-steps", "31") == 0
    assert "going on after step 30 of 31" in capsys.readouterr().err
    assert pretrain("--num-steps", "32") == 2, "the plan is another one"
    assert pretrain("--resume", "--allow-changed") == 0
    assert pretrain() == 2
    assert "has finished pretrain already" in capsys.readouterr().err
    path, state, num_updates = saved(32)
    assert num_updates == 32 and state["progress"]["step"] == 32
    lines = (path.parents[1] / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [31, 32]
    assert state["imported"]["generation"] == "v5"
    assert [ancestor.path for ancestor in lineage(path)][:2] == [path, first.absolute()]


@pytest.mark.req("FR-020", "FR-046", "FR-048")
def test_pretraining_goes_on_without_moments_where_none_came(
    reference_directory: ReferenceDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = reference_directory("v5")
    assert main(["import", str(directory), "--run", "theirs", "--no-optimizer"]) == 0
    assert pretrain() == 0
    assert "imported without moments: its weights alone go on" in capsys.readouterr().err
    assert saved(32)[2] == 2


@pytest.mark.req("FR-020", "FR-047")
def test_an_import_goes_on_with_its_own_tokenizer(
    reference_directory: ReferenceDirectory,
    tiny_tokenizer: Tokenizer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["import", str(reference_directory("v5")), "--run", "theirs"]) == 0
    tiny_tokenizer.save(tmp_path / "tokenizer.json")
    assert pretrain("--tokenizer", str(tmp_path / "tokenizer.json")) == 2
    told = capsys.readouterr().err
    assert "the tokenizer has" in told and "step_000030/tokenizer/tokenizer.json" in told


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

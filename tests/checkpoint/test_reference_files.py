"""Which of karpathy/nanochat's folders, stages and steps is meant, and what its meta file says."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from nanochat.checkpoint.reference import (
    ReferenceFiles,
    locate,
)
from nanochat.checkpoint.reference_config import MetaFile, batch_tokens_of, metrics_of, stage_of
from nanochat.checkpoint.reference_files import STAGES_BY_FOLDER
from nanochat.common.errors import CheckpointError
from nanochat.model.config import Generation
from tests.golden import parity


@pytest.mark.parametrize(
    ("meta", "generation", "expected"),
    [
        ({"model_config": {}}, "v1", "rl"),
        ({"step": 1, "val_loss": 1.0, "mmlu_acc": 0.3}, "v1", "sft"),
        ({"step": 1, "device_batch_size": 32, "user_config": {}}, "v1", "pretrain"),
        ({"step": 1, "user_config": {"depth": 4}}, "v5", "pretrain"),
        ({"step": 1, "val_bpb": 0.4}, "v5", "pretrain"),
        ({"step": 1, "user_config": {"init_lr_frac": 1.0}}, "v1", "midtrain"),
        ({"step": 1, "user_config": {"init_lr_frac": 1.0}}, "v2", "midtrain"),
        ({"step": 1, "user_config": {"init_lr_frac": 1.0}}, "v3", "sft"),
    ],
)
@pytest.mark.req("FR-048")
def test_the_stage_of_a_lone_folder_is_told_by_what_its_script_wrote(
    meta: dict[str, Any], generation: Generation, expected: str, tmp_path: Path
) -> None:
    model = tmp_path / "some" / "folder" / "model_000001.pt"
    files = ReferenceFiles(model, model.with_name("meta_000001.json"), 1, None)
    weights = parity.from_golden(generation).weights
    assert stage_of(files, MetaFile(files.meta, meta), weights) == expected
    known = tmp_path / "mid_checkpoints" / "d4" / "model_000001.pt"
    files = dataclasses.replace(files, model=known)
    assert stage_of(files, MetaFile(files.meta, meta), weights) == "midtrain"


def test_what_was_measured_and_how_large_a_step_was() -> None:
    raw = {
        "step": 5,
        "val_bpb": 0.5,
        "val_loss": float("nan"),
        "huge": 10**400,
        "flag": True,
        "mmlu_acc": 1,
        "model_config": {},
        "device_batch_size": 2,
        "user_config": {"total_batch_size": 512},
    }
    meta = MetaFile(Path("meta"), raw)
    assert metrics_of(meta) == {"val_bpb": 0.5, "mmlu_acc": 1.0}
    assert batch_tokens_of(meta) == 512
    assert batch_tokens_of(MetaFile(Path("meta"), raw | {"total_batch_size": 1024})) == 1024
    for settings in ({"total_batch_size": -1}, {}, None, []):
        assert batch_tokens_of(MetaFile(Path("meta"), {"user_config": settings})) is None


def model_folder(path: Path, *steps: int) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for step in steps:
        for name in (f"model_{step:06d}.pt", f"meta_{step:06d}.json"):
            (path / name).write_text("")
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """<base> with models of three stages."""
    base = tmp_path / "base"
    for folder, tag, *steps in (
        ("base_checkpoints", "d12", 100, 2000, 300),
        ("base_checkpoints", "d4", 5000),
        ("base_checkpoints", "d26_long", 7),
        ("mid_checkpoints", "d12", 80),
        ("chatsft_checkpoints", "d4", 10),
        ("chatsft_checkpoints", "d12", 20),
        ("chatrl_checkpoints", "empty"),
    ):
        model_folder(base / folder / str(tag), *map(int, steps))
    (base / "base_checkpoints" / "notes.txt").write_text("")
    return base


def place(files: ReferenceFiles | None) -> str:
    assert files is not None
    return "/".join(files.model.parts[-3:])


@pytest.mark.req("FR-046", "FR-048")
def test_the_last_stage_the_deepest_tag_the_last_step(tree: Path) -> None:
    assert place(locate(tree)) == "chatsft_checkpoints/d12/model_000020.pt"
    assert place(locate(tree, stage="pretrain")) == "base_checkpoints/d26_long/model_000007.pt"
    assert place(locate(tree, stage="midtrain")) == "mid_checkpoints/d12/model_000080.pt"
    bases = tree / "base_checkpoints"
    assert place(locate(bases)) == "base_checkpoints/d26_long/model_000007.pt"
    assert place(locate(bases, tag="d12")) == "base_checkpoints/d12/model_002000.pt"
    assert place(locate(bases, tag="d12", step=300)) == "base_checkpoints/d12/model_000300.pt"
    assert place(locate(bases / "d12")) == "base_checkpoints/d12/model_002000.pt"
    assert place(locate(bases / "d12", step=100)) == "base_checkpoints/d12/model_000100.pt"


def test_names_without_a_depth_by_time(tmp_path: Path) -> None:
    for index, tag in enumerate(("new", "old")):
        model_folder(tmp_path / tag, 1)
        os.utime(tmp_path / tag, (1000 - index, 1000 - index))
    assert place(locate(tmp_path)).endswith("new/model_000001.pt")
    model_folder(tmp_path / "d1", 1)
    os.utime(tmp_path / "d1", (1, 1))
    assert place(locate(tmp_path)).endswith("d1/model_000001.pt")


def test_forks_folders_are_known(tmp_path: Path) -> None:
    for folder, stage in STAGES_BY_FOLDER.items():
        base = tmp_path / folder
        model_folder(base / folder / "d4", 1)
        assert place(locate(base, stage=stage)).startswith(folder)


@pytest.mark.req("EC-2")
def test_what_is_not_there(tree: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ({"stage": "mid"}, "stage is 'mid', expected one of pretrain, midtrain, sft, rl"),
        ({"stage": "rl"}, "no model of stage rl, it has base_checkpoints, mid_checkpoints, chat"),
        ({"tag": "d5"}, "chatsft_checkpoints: no model 'd5', it has d12, d4"),
        ({"step": 21}, "d12 has no step 21: it has 20"),
    ):
        with pytest.raises(CheckpointError, match=message):
            locate(tree, **arguments)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="it has 100, 300, 2000"):
        locate(tree / "base_checkpoints" / "d12", step=5)
    (tree / "base_checkpoints" / "d12" / "meta_002000.json").unlink()
    message = r"model_002000.pt: its meta file .* is missing.*steps here: 100, 300, 2000"
    with pytest.raises(CheckpointError, match=message):
        locate(tree / "base_checkpoints" / "d12")
    assert place(locate(tree / "base_checkpoints" / "d12", step=300)).endswith("000300.pt")
    assert locate(tmp_path / "base" / "chatrl_checkpoints") is None
    (tmp_path / "nothing").mkdir()
    assert locate(tmp_path / "nothing") is None

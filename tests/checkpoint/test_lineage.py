"""Where a model came from, also when its home was moved or a parent is gone."""

import json
import shutil
from pathlib import Path

import pytest

from nanochat.checkpoint.format import save_checkpoint
from nanochat.checkpoint.lineage import Ancestor, lineage, run_of
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.checkpoint.conftest import tiny_checkpoint


@pytest.fixture
def child(home: Path, tiny_tokenizer: Tokenizer) -> Path:
    """d2: pretrain@10 -> midtrain@7 -> sft@3."""
    parent = None
    for stage, step in (("pretrain", 10), ("midtrain", 7), ("sft", 3)):
        path = home / "runs" / "d2" / stage / "checkpoints" / f"step_{step:06d}"
        state = {"stage": stage, "step": step, "parent": parent}
        save_checkpoint(path, tiny_checkpoint(tiny_tokenizer, **state))
        parent = str(path)
    return path


def names(line: list[Ancestor]) -> list[str]:
    return [ancestor.name for ancestor in line]


@pytest.mark.req("FR-045")
def test_back_to_the_first(child: Path) -> None:
    line = lineage(child)
    assert names(line) == ["d2/sft@3", "d2/midtrain@7", "d2/pretrain@10"]
    assert all(ancestor.is_there for ancestor in line) and line[0].path == child


def test_a_moved_home(child: Path, tmp_path: Path, home: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.move(home, moved)
    line = lineage(moved / "runs/d2/sft/checkpoints/step_000003")
    assert names(line) == ["d2/sft@3", "d2/midtrain@7", "d2/pretrain@10"]
    assert all(moved in ancestor.path.parents and ancestor.is_there for ancestor in line)


def test_a_parent_that_is_gone(child: Path, home: Path, tmp_path: Path) -> None:
    shutil.rmtree(home / "runs/d2/midtrain")
    line = lineage(child)
    assert names(line) == ["d2/sft@3", "d2/midtrain@7"]
    assert [ancestor.is_there for ancestor in line] == [True, False]
    copied = tmp_path / "copied"
    shutil.copytree(child, copied)
    line = lineage(copied)
    assert names(line) == [str(copied), "d2/midtrain@7"]
    assert (line[0].run, line[0].stage, line[0].step) == (None, "sft", 3)


@pytest.mark.req("FR-062")
def test_a_circle_ends_and_odd_parents_are_none(child: Path, tmp_path: Path) -> None:
    path = child / "state.json"
    path.write_text(json.dumps({"stage": "sft", "step": True, "parent": str(child)}))
    assert names(lineage(child)) == ["d2/sft@3"]
    for parent in (5, "", None, ["x"]):
        path.write_text(json.dumps({"parent": parent}))
        line = lineage(child)
        assert names(line) == ["d2/sft@3"] and line[0].is_there
    path.write_text("{")
    assert names(lineage(child)) == ["d2/sft@3"]
    assert names(lineage(tmp_path / "nothing")) == [str(tmp_path / "nothing")]


def test_runs_by_path(child: Path) -> None:
    assert run_of(child) == ("d2", "sft")
    assert run_of(child.parent) is None and run_of(Path("/")) is None

"""Saving beside training: what was handed over is read back, errors surface, old ones go."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.checkpoint import saver as module
from nanochat.checkpoint.format import Checkpoint, find_steps, load_checkpoint, newest_valid
from nanochat.checkpoint.saver import Retention, Saver
from nanochat.common.errors import CheckpointError, ConfigError
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.checkpoint.conftest import tiny_checkpoint

KINDS = pytest.mark.parametrize("is_background", [True, False], ids=["background", "foreground"])


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    (tmp_path / "stage" / "checkpoints").mkdir(parents=True)
    return tmp_path / "stage"


class Gate:
    """save_checkpoint that waits to be let through, or fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: BaseException | None = None) -> None:
        self.opened, self.reached, self.error = threading.Event(), threading.Event(), error
        self._save = module.save_checkpoint
        monkeypatch.setattr(module, "save_checkpoint", self)

    def __call__(self, *args: Any) -> None:
        self.reached.set()
        assert self.opened.wait(20)
        if self.error is not None:
            raise self.error
        self._save(*args)


def damage(path: Path) -> None:
    content = bytearray((path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "model.safetensors").write_bytes(content)


def save_all(saver: Saver, tokenizer: Tokenizer, steps: list[int]) -> None:
    for step in steps:
        saver.save(step, tiny_checkpoint(tokenizer, step=step))
    saver.finish()


# ------------------------------------------------------------------------------ what is written


@KINDS
@pytest.mark.req("FR-019", "FR-045", "SC-008")
def test_what_was_handed_over_comes_back(
    is_background: bool, stage: Path, checkpoint: Checkpoint
) -> None:
    saver = Saver(stage / "checkpoints", is_background=is_background)
    saver.save(5, checkpoint)
    saver.finish()
    loaded = load_checkpoint(stage / "checkpoints" / "step_000005", with_optimizer=True)
    assert loaded.state == checkpoint.state and loaded.tokenizer == checkpoint.tokenizer
    assert loaded.optimizer is not None and checkpoint.optimizer is not None
    for name, tensor in {**checkpoint.weights, **checkpoint.optimizer}.items():
        assert torch.equal({**loaded.weights, **loaded.optimizer}[name], tensor), name


@pytest.mark.req("FR-019", "SC-008")
def test_training_may_go_on_at_once(
    stage: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, moments and state change while the write waits; what was saved is as it was."""
    gate = Gate(monkeypatch)
    before = {name: tensor.clone() for name, tensor in checkpoint.weights.items()}
    saver = Saver(stage / "checkpoints")
    state = {"stage": "pretrain", "step": 5, "metrics": {"loss": 1.0}}
    saver.save(5, module.dataclasses.replace(checkpoint, state=state))
    assert gate.reached.wait(20) and find_steps(stage) == {}
    saver.check()  # nothing is wrong, and it does not wait
    for tensor in (*checkpoint.weights.values(), *(checkpoint.optimizer or {}).values()):
        tensor.add_(1)
    state["metrics"] = {"loss": 2.0}
    gate.opened.set()
    saver.finish()
    loaded = load_checkpoint(find_steps(stage)[5])
    assert loaded.state["metrics"] == {"loss": 1.0}
    assert all(torch.equal(loaded.weights[name], tensor) for name, tensor in before.items())


@pytest.mark.req("FR-019", "SC-008")
def test_memory_is_used_again_and_shapes_may_change(stage: Path, tiny_tokenizer: Tokenizer) -> None:
    saver = Saver(stage / "checkpoints", Retention(keep_last=9))
    checkpoints = {step: tiny_checkpoint(tiny_tokenizer, seed=step) for step in (1, 2, 4)}
    taken = []
    for step in (1, 2):
        saver.save(step, checkpoints[step])
        saver.finish()
        taken.append({name: room.data_ptr() for name, room in saver._memory._room.items()})
    assert taken[0] == taken[1]
    moments = {"num_steps": torch.tensor([3]), "head.weight/first": torch.zeros(320, 32)}
    saver.save(3, module.dataclasses.replace(checkpoints[2], optimizer=moments))
    saver.save(4, checkpoints[4])
    saver.finish()
    loaded = load_checkpoint(find_steps(stage)[3], with_optimizer=True).optimizer
    assert loaded is not None and torch.equal(loaded["num_steps"], torch.tensor([3]))
    for step, checkpoint in checkpoints.items():
        weights = load_checkpoint(find_steps(stage)[step]).weights
        assert all(torch.equal(weights[name], w) for name, w in checkpoint.weights.items())


@pytest.mark.req("FR-019")
def test_one_write_at_most_is_in_flight(
    stage: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    saver = Saver(stage / "checkpoints")
    saver.save(1, checkpoint)
    threading.Timer(0.1, gate.opened.set).start()
    saver.save(2, checkpoint)  # waits for the gate
    assert gate.opened.is_set() and list(find_steps(stage))[0] == 1
    saver.finish()
    assert list(find_steps(stage)) == [1, 2]


def test_a_valid_one_stays_and_a_damaged_one_is_replaced(
    stage: Path, tiny_tokenizer: Tokenizer
) -> None:
    saver = Saver(stage / "checkpoints")
    save_all(saver, tiny_tokenizer, [7])
    path = find_steps(stage)[7]
    inode = path.stat().st_ino
    save_all(saver, tiny_tokenizer, [7])
    assert path.stat().st_ino == inode
    damage(path)
    save_all(saver, tiny_tokenizer, [7])
    assert newest_valid(stage) == (7, path)
    assert os.listdir(path.parent) == ["step_000007"]


# ---------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (CheckpointError("step_000005: not saved, disk full"), "not saved, disk full"),
        (MemoryError("too much"), "step_000005: not saved, MemoryError: too much"),
    ],
)
@KINDS
@pytest.mark.req("FR-019", "EC-5")
def test_an_error_surfaces_once(
    is_background: bool,
    error: Exception,
    message: str,
    stage: Path,
    checkpoint: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = Gate(monkeypatch, error)
    gate.opened.set()
    saver = Saver(stage / "checkpoints", is_background=is_background)
    if is_background:
        saver.save(5, checkpoint)
        saver._thread.join()  # type: ignore[union-attr]
        with pytest.raises(CheckpointError, match=message):
            saver.check()
        saver.check()
        saver.save(5, checkpoint)
        with pytest.raises(CheckpointError, match=message):
            saver.save(6, checkpoint)
    else:
        with pytest.raises(CheckpointError, match=message):
            saver.save(5, checkpoint)
    saver.finish()
    assert find_steps(stage) == {}


def test_an_old_one_that_cannot_be_removed(
    stage: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = Saver(stage / "checkpoints", Retention(keep_last=1))
    save_all(saver, tiny_tokenizer, [1])
    rename = Path.rename

    def refusing(source: Path, target: Path) -> Path:
        if source.name == "step_000001":
            raise PermissionError("not yours")
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", refusing)
    with pytest.raises(CheckpointError, match="step_000001: cannot be removed, not yours"):
        save_all(saver, tiny_tokenizer, [2])
    assert list(find_steps(stage)) == [1, 2]


# ------------------------------------------------------------------------------------- retention


@pytest.mark.parametrize(
    ("retention", "best", "kept"),
    [
        (Retention(), None, {70, 80}),
        (Retention(keep_last=1), 30, {30, 80}),
        (Retention(keep_last=1, keep_every=40), None, {40, 80}),
        (Retention(keep_last=3, keep_every=25), 10, {10, 50, 60, 70, 80}),
        (Retention(keep_last=100), 999, set(range(10, 90, 10))),
    ],
)
@pytest.mark.req("FR-019")
def test_which_stay(retention: Retention, best: int | None, kept: set[int]) -> None:
    assert retention.kept([*range(80, 0, -10)], best) == kept


@pytest.mark.parametrize(
    ("unsteady", "kept"),
    [
        ({80}, {60, 70, 80}),
        ({70, 80}, {50, 60, 80}),
        ({70}, {60, 80}),
        ({60, 70, 80}, {40, 50, 80}),
    ],
)
@pytest.mark.req("FR-019", "EC-8")
def test_unsteady_ones_do_not_count(unsteady: set[int], kept: set[int]) -> None:
    assert Retention(keep_last=2).kept([*range(80, 0, -10)], None, unsteady) == kept


@pytest.mark.req("FR-019", "EC-8")
def test_unsteady_ones_can_be_told_and_dropped(stage: Path, tiny_tokenizer: Tokenizer) -> None:
    saver = Saver(stage / "checkpoints")
    for step, streak in ((1, 0), (2, 1), (3, 0), (4, 2)):
        progress = {"step": step, "streak": streak}
        saver.save(step, tiny_checkpoint(tiny_tokenizer, step=step, progress=progress))
        saver.finish()
    assert newest_valid(stage) == (4, stage / "checkpoints/step_000004")
    assert newest_valid(stage, is_to_be_steady=True) == (3, stage / "checkpoints/step_000003")
    saver.drop_unsteady(after=3)
    assert [*find_steps(stage)] == [1, 3]


@pytest.mark.parametrize("changes", [{"keep_last": 0}, {"keep_every": 0}, {"keep_every": -3}])
def test_retention_that_keeps_nothing_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="keep_.* expected at least 1"):
        Retention(**changes)


@KINDS
@pytest.mark.req("FR-019")
def test_the_newest_and_the_best_stay(
    is_background: bool, stage: Path, tiny_tokenizer: Tokenizer
) -> None:
    saver = Saver(stage / "checkpoints", Retention(keep_last=2), is_background=is_background)
    for step, val_bpb in ((1, 2.0), (2, 1.5), (3, 1.8), (4, 1.7), (5, 1.6)):
        saver.save(step, tiny_checkpoint(tiny_tokenizer, step=step))
        saver.validated(step, val_bpb)
    saver.finish()
    assert list(find_steps(stage)) == [2, 4, 5]
    saver = Saver(stage / "checkpoints", Retention(keep_last=1))  # it is remembered
    save_all(saver, tiny_tokenizer, [6])
    assert list(find_steps(stage)) == [2, 6]
    saver.validated(6, 1.4)
    save_all(saver, tiny_tokenizer, [7])
    assert list(find_steps(stage)) == [6, 7]


def test_a_validation_without_a_checkpoint_or_a_number_decides_nothing(
    stage: Path, tiny_tokenizer: Tokenizer
) -> None:
    saver = Saver(stage / "checkpoints", Retention(keep_last=1))
    saver.validated(1, 0.1)
    save_all(saver, tiny_tokenizer, [2])
    saver.validated(2, float("nan"))
    assert not (stage / "checkpoints" / "best.json").exists()
    saver.validated(2, 2.0)
    saver.validated(3, 0.1)
    save_all(saver, tiny_tokenizer, [4])
    assert list(find_steps(stage)) == [2, 4]


@pytest.mark.parametrize("text", ["", "[]", '{"val_bpb": 3}', '{"val_bpb": {"x": 1}}', "{}"])
def test_a_damaged_best_stops_nothing(text: str, stage: Path, tiny_tokenizer: Tokenizer) -> None:
    (stage / "checkpoints" / "best.json").write_text(text)
    saver = Saver(stage / "checkpoints")
    save_all(saver, tiny_tokenizer, [1])
    saver.validated(1, 2.0)
    assert list(find_steps(stage)) == [1]


def test_a_best_that_cannot_be_written(
    stage: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = Saver(stage / "checkpoints")
    save_all(saver, tiny_tokenizer, [1])

    def refuse(path: Path, value: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(module, "write_json_atomically", refuse)
    with pytest.raises(CheckpointError, match="best.json: not written, disk full"):
        saver.validated(1, 2.0)


@pytest.mark.req("FR-019", "EC-2")
def test_damaged_newer_ones_neither_count_nor_go(stage: Path, tiny_tokenizer: Tokenizer) -> None:
    """Training went back to 20 because 30 is damaged: what is written now is what counts."""
    saver = Saver(stage / "checkpoints", Retention(keep_last=2))
    save_all(saver, tiny_tokenizer, [20, 30])
    damage(find_steps(stage)[30])
    saver = Saver(stage / "checkpoints", Retention(keep_last=2))
    save_all(saver, tiny_tokenizer, [25])
    assert list(find_steps(stage)) == [20, 25, 30]
    save_all(saver, tiny_tokenizer, [30])
    assert newest_valid(stage) == (30, stage / "checkpoints" / "step_000030")
    assert list(find_steps(stage)) == [25, 30]


@pytest.mark.req("EC-5")
def test_what_a_kill_left_goes(stage: Path, tiny_tokenizer: Tokenizer) -> None:
    """With the first save, so that a process that never saves takes nothing from one that does."""
    checkpoints = stage / "checkpoints"
    left = [".step_000003.writing", ".step_000001.removing", ".step_notes", "mine"]
    for name in left:
        (checkpoints / name / "tokenizer").mkdir(parents=True)
    saver = Saver(checkpoints)
    assert sorted(os.listdir(checkpoints)) == sorted(left)
    save_all(saver, tiny_tokenizer, [3])
    assert sorted(os.listdir(checkpoints)) == [".step_notes", "mine", "step_000003"]


@pytest.mark.gpu
@pytest.mark.req("FR-019", "SC-008")
def test_a_gpu_goes_on_at_once(stage: Path, checkpoint: Checkpoint) -> None:
    """What is queued after the copies cannot change them."""
    weights = {name: tensor.cuda() for name, tensor in checkpoint.weights.items()}
    saver = Saver(stage / "checkpoints")
    saver.save(1, module.dataclasses.replace(checkpoint, weights=weights))
    for tensor in weights.values():
        tensor.zero_()
    saver.finish()
    loaded = load_checkpoint(find_steps(stage)[1]).weights
    assert all(torch.equal(loaded[name], tensor) for name, tensor in checkpoint.weights.items())

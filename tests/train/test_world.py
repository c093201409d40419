"""One, two and four processes train the same model on the same batches in the same order."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed

from nanochat.batches.batch import IGNORE, Batch
from nanochat.common.dist import World, current_world
from nanochat.common.errors import Stopped
from nanochat.train import loop, sharding
from nanochat.train.loop import Stage, fit
from nanochat.train.loss import loss_sum
from tests.train.makers import Counting, Recorder, stage_of
from tests.train.ranks import PATIENCE_S, exit_codes

NUM_STEPS = 50

pytestmark = pytest.mark.timeout(2 * PATIENCE_S)


def in_processes(size: int, task: str, folder: Path) -> list[Any]:
    """What `task` returned in each of so many ranks."""

    def run(world: World) -> None:
        torch.save(TASKS[task](world, folder), folder / f"{task}_{world.rank}_{size}.pt")
        assert world.watch is not None
        world.watch.leave()
        torch.distributed.destroy_process_group()

    assert exit_codes(size, run) == [0] * size
    return [torch.load(folder / f"{task}_{rank}_{size}.pt") for rank in range(size)]


class Rows(Counting):
    """Batches of which every rank takes its rows; the last row of some has no target."""

    def batch(self, index: int, num_rows: int, rank: int = 0, world_size: int = 1) -> Batch:
        inputs, targets = super().batch(index, num_rows)
        if index % 3 == 0:
            targets = targets.clone()
            targets[-1] = IGNORE
        return Batch(inputs[rank::world_size], targets[rank::world_size])


def _train(world: World, folder: Path) -> dict[str, Any]:
    stage = stage_of(
        num_steps=NUM_STEPS, stream=Rows(), device_batch_rows=1, dtype=torch.float64, world=world
    )
    rows = fit(stage)
    return {
        "losses": [row["loss"] for row in rows],
        "targets": [row["num_targets"] for row in rows],
        "weights": dict(stage.optimizer.masters()),
        "asked": stage.stream.asked,  # type: ignore[attr-defined]
    }


def _stage(world: World, num_steps: int = NUM_STEPS, **changes: Any) -> Stage:
    changes = {"device_batch_rows": 1, **changes}
    return stage_of(num_steps=num_steps, stream=Rows(seed=1), world=world, **changes)


def _go_on(world: World, folder: Path) -> dict[str, Any]:
    """From the warmed state in the folder, in float32."""
    stage = _stage(world)
    weights, moments = torch.load(folder / "warm.pt")
    stage.optimizer.load_masters(weights)
    stage.optimizer.load_state(moments)
    rows = fit(stage)
    return {
        "losses": [row["loss"] for row in rows],
        "norms": [row["grad_norm"] for row in rows],
        "weights": dict(stage.optimizer.masters()),
        "moments": dict(stage.optimizer.state()),
        "bytes": stage.optimizer.state_bytes(),
        "num_sent": stage.optimizer.num_sent_in_backward,
    }


def _narrow(world: World, folder: Path) -> dict[str, Any]:
    """A few steps in bfloat16, where only owners have masters; into another world and back."""
    stage = _stage(world, num_steps=4, compute_dtype=torch.bfloat16)
    fit(stage)
    weights, moments = dict(stage.optimizer.masters()), dict(stage.optimizer.state())
    again = _stage(world, num_steps=4, compute_dtype=torch.bfloat16)
    again.optimizer.load_masters(weights)
    again.optimizer.load_state(moments)
    return {
        "weights": weights,
        "moments": moments,
        "model": {name: weight.detach() for name, weight in again.model.named_parameters()},
        "weights again": dict(again.optimizer.masters()),
        "moments again": dict(again.optimizer.state()),
        "bytes": again.optimizer.state_bytes(),
        "texts": world.texts("ä" * world.rank),
    }


def _agree(world: World, folder: Path) -> dict[str, Any]:
    """Numbers, order at the door, and one rank's troubles."""
    order = folder / "order"
    with world.first_alone():
        with order.open("a") as file:
            file.write(f"{world.rank}\n")
    world.wait()
    told = {
        "total": world.total(world.rank + 1),
        "largest": world.largest(10 * world.rank),
        "order": order.read_text().split(),
    }
    # Only the last rank runs out of memory, and only it is sent a signal: all do the same.
    display = Recorder()
    stage = stage_of(
        num_steps=9,
        device_batch_rows=2,
        display=display,
        batch_rows=8,
        stream=Rows(),
        world=world,
    )

    def loss(model: Any, batch: Batch) -> torch.Tensor:
        if world.rank == world.size - 1 and batch.inputs_BT.size(0) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss_sum(model, batch)

    loop.loss_sum = loss  # type: ignore[assignment]
    step = stage.optimizer.step

    def step_and_send(*arguments: Any) -> None:
        step(*arguments)
        if world.rank == world.size - 1 and stage.optimizer.num_steps == 3:
            os.kill(os.getpid(), 15)

    stage.optimizer.step = step_and_send  # type: ignore[method-assign]
    try:
        fit(stage)
    except Stopped as stopped:
        told["stopped"] = str(stopped)
    told["rows"] = [line for line in display.told if "computed at once" in str(line)]
    return told


TASKS = {"train": _train, "go on": _go_on, "narrow": _narrow, "agree": _agree}


@pytest.mark.req("FR-016", "FR-018", "FR-020", "SC-011")
def test_any_number_of_ranks_trains_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Messages are what four ranks on two cores wait for; the next test cuts as training does.
    monkeypatch.setattr(sharding, "PIECES_PER_RANK", 1)
    alone = _train(World(), tmp_path)
    for size in (2, 4):
        ranks = in_processes(size, "train", tmp_path)
        for rank in ranks:
            assert rank["asked"] == alone["asked"] and rank["targets"] == alone["targets"]
            assert rank["losses"] == pytest.approx(alone["losses"], rel=1e-9)
            assert all(
                torch.equal(rank["weights"][name], ranks[0]["weights"][name])
                for name in alone["weights"]
            )


@pytest.mark.req("FR-016", "FR-020", "SC-011")
def test_any_number_of_ranks_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    """From the same float32 weights and moments, 50 steps; each rank has its share of moments."""
    warm = _stage(World(), num_steps=60, device_batch_rows=4)
    fit(warm)
    state = (dict(warm.optimizer.masters()), dict(warm.optimizer.state()))
    torch.save(state, tmp_path / "warm.pt")
    alone = _go_on(World(), tmp_path)
    assert alone["losses"][-1] < 1.0
    for size in (2, 4):
        ranks = in_processes(size, "go on", tmp_path)
        for rank in ranks:
            assert rank["losses"] == pytest.approx(alone["losses"], rel=1e-5)
            assert rank["norms"] == pytest.approx(alone["norms"], rel=1e-3)
            for name, weight in alone["weights"].items():
                furthest = float((rank["weights"][name] - weight).abs().max())
                assert furthest <= 1e-3 * float(weight.abs().max()), name
                assert torch.equal(rank["weights"][name], ranks[0]["weights"][name])
            assert rank["moments"].keys() == alone["moments"].keys()
            assert rank["num_sent"] > 0  # while backward was still running
        assert sum(rank["bytes"] for rank in ranks) == alone["bytes"]
        assert max(rank["bytes"] for rank in ranks) <= {2: 0.6, 4: 0.35}[size] * alone["bytes"]


@pytest.mark.req("FR-016", "FR-020", "SC-007")
def test_narrowed_weights_are_shared_and_come_back_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "peak_flops", lambda device, dtype: 1e12)  # measuring takes a while
    ranks = in_processes(2, "narrow", tmp_path)
    alone = _narrow(World(), tmp_path)
    for rank in ranks:
        for kind in ("weights", "moments"):
            assert rank[kind].keys() == alone[kind].keys()
            for name, tensor in rank[kind].items():
                assert torch.equal(tensor, ranks[0][kind][name])
                assert torch.equal(tensor, rank[f"{kind} again"][name])
                assert (tensor.shape, tensor.dtype) == (alone[kind][name].shape, torch.float32) or (
                    name == "num_steps"
                )
        for name, weight in rank["model"].items():
            assert torch.equal(weight, rank["weights"][name].to(weight.dtype))
        assert rank["texts"] == ["", "ä"]
        assert rank["bytes"] <= 0.6 * alone["bytes"]
    world = World()
    stage = _stage(world, compute_dtype=torch.bfloat16)
    stage.optimizer.load_state(ranks[0]["moments"])  # one rank goes on from two ranks' moments
    for name, moment in stage.optimizer.state().items():
        assert torch.equal(moment, ranks[0]["moments"][name])


@pytest.mark.req("FR-016", "EC-1", "EC-5")
def test_ranks_agree(tmp_path: Path) -> None:
    for told in in_processes(2, "agree", tmp_path):
        assert (told["total"], told["largest"], told["order"]) == (3, 10, ["0", "1"])
        assert told["rows"] == ["  out of memory: 1 rows are computed at once from now on"]
        assert "stopped by SIGTERM after step 3 of 9" in told["stopped"]


def test_a_world_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    current_world.cache_clear()
    world = current_world()
    assert world == World() and world.is_first
    tensor = torch.ones(3)
    world.sum_([tensor])
    world.wait()
    with world.first_alone():
        assert (world.total(5), world.largest(7)) == (5, 7)
    assert tensor.tolist() == [1.0, 1.0, 1.0]

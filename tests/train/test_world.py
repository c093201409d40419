"""One, two and four processes train the same model on the same batches in the same order."""

import dataclasses
import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed

from nanochat.batches.batch import IGNORE, Batch
from nanochat.common.dist import World, current_world
from nanochat.common.errors import Stopped
from nanochat.train import loop
from nanochat.train.loop import fit
from nanochat.train.loss import loss_sum
from tests.train.test_loop import Counting, Recorder, stage_of

NUM_STEPS = 50


def in_processes(size: int, task: str, folder: Path) -> list[Any]:
    """What `task` returned in each of so many ranks; forked, so that torch is imported already."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    ranks = [
        context.Process(target=_rank, args=(rank, size, port, task, folder)) for rank in range(size)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    assert [process.exitcode for process in ranks] == [0] * size
    return [torch.load(folder / f"{task}_{rank}_{size}.pt") for rank in range(size)]


def _rank(rank: int, size: int, port: int, task: str, folder: Path) -> None:
    torch.set_num_threads(1)
    names = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    current_world.cache_clear()
    world = current_world()
    torch.save(TASKS[task](world, folder), folder / f"{task}_{rank}_{size}.pt")
    torch.distributed.destroy_process_group()


class Rows(Counting):
    """Batches of which every rank takes its rows; the last row of some has no target."""

    def batch(self, index: int, num_rows: int, rank: int = 0, world_size: int = 1) -> Batch:
        inputs, targets = super().batch(index, num_rows)
        if index % 3 == 0:
            targets = targets.clone()
            targets[-1] = IGNORE
        return Batch(inputs[rank::world_size], targets[rank::world_size])


def _train(world: World, folder: Path) -> dict[str, Any]:
    stage = stage_of(num_steps=NUM_STEPS, stream=Rows(), device_batch_rows=1, dtype=torch.float64)
    stage = dataclasses.replace(stage, world=world)
    rows = fit(stage)
    return {
        "losses": [row["loss"] for row in rows],
        "targets": [row["num_targets"] for row in rows],
        "weights": stage.optimizer.masters(),
        "asked": stage.stream.asked,  # type: ignore[attr-defined]
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
    stage = stage_of(num_steps=9, device_batch_rows=2, display=display, batch_rows=8, stream=Rows())

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
        fit(dataclasses.replace(stage, world=world))
    except Stopped as stopped:
        told["stopped"] = str(stopped)
    told["rows"] = [line for line in display.told if "computed at once" in str(line)]
    return told


TASKS = {"train": _train, "agree": _agree}


@pytest.mark.req("FR-016", "FR-018", "FR-020", "SC-011")
def test_any_number_of_ranks_trains_the_same_model(tmp_path: Path) -> None:
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

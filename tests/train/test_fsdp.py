"""A model cut over two ranks trains as a whole one; blocks computed again change nothing."""

import dataclasses
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as torch_dist
from torch import Tensor

from nanochat.batches.batch import IGNORE, Batch
from nanochat.common.dist import World
from nanochat.common.errors import CheckpointError, TrainingError
from nanochat.train import loop
from nanochat.train.fsdp import ShardedOptimizer, shard_model
from nanochat.train.loop import Stage, fit
from nanochat.train.loss import bits_per_byte, loss_sum
from nanochat.train.recipes import RECIPES
from nanochat.train.sharding import Span, rows_of
from tests.conftest import DOUBLE_ATOL
from tests.fakes import random_gpt, tiny_config
from tests.train import test_world
from tests.train.makers import Counting, Recorder, plan_of, stage_of
from tests.train.test_world import in_processes

NUM_STEPS = 12


class Uneven(Counting):
    """Three rows, of which a rank has two and the other one, or one without targets."""

    def batch(self, index: int, num_rows: int, rank: int = 0, world_size: int = 1) -> Batch:
        inputs, targets = super().batch(index, num_rows)
        if index % 3 == 0:
            targets = targets.clone()
            targets[-1] = IGNORE
        return Batch(inputs[rank::world_size], targets[rank::world_size])


def sharded_stage(world: World, num_steps: int = NUM_STEPS, **said: Any) -> Stage:
    dtype = said.pop("dtype", torch.float64)
    compute_dtype = said.pop("compute_dtype", dtype)
    plan = plan_of(num_steps, batch_rows=3, device_batch_rows=1, eval_every=5, is_sharded=True)
    model = random_gpt(tiny_config(3), dtype=dtype)
    model.recompute(said.pop("recomputes", False))
    shard_model(model, world, torch.device(said.pop("device", "cpu")), compute_dtype)
    optimizer = ShardedOptimizer(
        model, RECIPES["v5"], world, lr_scale=plan.lr_scale, compute_dtype=compute_dtype
    )
    batch = Counting().batch(99, 2)
    return Stage(
        name="test",
        model=model,
        optimizer=optimizer,
        stream=Uneven(),
        plan=plan,
        validate=lambda: bits_per_byte(model, [batch], [1] * 70),
        world=world,
        **said,
    )


def whole_stage(num_steps: int = NUM_STEPS, dtype: torch.dtype = torch.float64) -> Stage:
    stage = stage_of(
        num_steps=num_steps,
        batch_rows=3,
        device_batch_rows=1,
        eval_every=5,
        stream=Uneven(),
        dtype=dtype,
    )
    batch = Counting().batch(99, 2)
    return dataclasses.replace(
        stage, validate=lambda: bits_per_byte(stage.model, [batch], [1] * 70)
    )


def report(stage: Stage) -> dict[str, Any]:
    rows = fit(stage)
    return {
        "losses": [row["loss"] for row in rows],
        "norms": [row["grad_norm"] for row in rows],
        "bpb": [row["val_bpb"] for row in rows if "val_bpb" in row],
        "weights": dict(stage.optimizer.masters()),
        "moments": dict(stage.optimizer.state()),
        "bytes": stage.optimizer.state_bytes(),
        "digest": stage.optimizer.digest(),
        "rates": stage.optimizer.rates_by_role(),
    }


def _sharded(world: World, folder: Path) -> dict[str, Any]:
    return report(sharded_stage(world))


def _lagging(world: World, folder: Path) -> list[str]:
    """The second rank is slow in every block, and the first one waits for it in every block."""
    display = Recorder()
    stage = sharded_stage(world, num_steps=6, display=display)
    if world.rank == 1:
        for block in stage.model.blocks:
            # A block of this size takes 1 ms, on a busy machine some more.
            block.mlp.register_forward_pre_hook(lambda *said: time.sleep(0.02))
    fit(stage)
    return [str(line) for line in display.told if "is slow" in str(line)]


def _recomputed(world: World, folder: Path) -> dict[str, Any]:
    """From a whole model's weights and moments, with blocks computed again; then back to them."""
    weights, moments = torch.load(folder / "warm.pt")
    stage = sharded_stage(world, recomputes=True)
    validate = stage.validate
    assert validate is not None
    validate()  # brings weights together that are not to be used after what follows
    stage.optimizer.load_masters(weights)
    stage.optimizer.load_state(moments)
    told = report(stage)
    lacking = {name: each for name, each in moments.items() if name != "head.weight/first"}
    try:
        stage.optimizer.load_state(lacking)
    except CheckpointError as error:
        told["refused"] = str(error)
    return told


def _narrow(world: World, folder: Path) -> dict[str, Any]:
    stage = sharded_stage(world, dtype=torch.float32, compute_dtype=torch.bfloat16)
    told = report(stage)

    def loss(model: Any, batch: Batch) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    loop.loss_sum = loss  # type: ignore[assignment]
    try:
        fit(sharded_stage(world))
    except TrainingError as error:
        told["error"] = str(error)
    return told


@pytest.fixture(autouse=True)
def tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    more = {"sharded": _sharded, "recomputed": _recomputed, "sharded narrow": _narrow}
    more["lagging"] = _lagging
    monkeypatch.setattr(test_world, "TASKS", test_world.TASKS | more)
    monkeypatch.setattr(loop, "peak_flops", lambda device, dtype: 1e12)  # measuring takes a while


def compare(ranks: list[dict[str, Any]], whole: dict[str, Any]) -> None:
    for rank in ranks:
        for kind in ("losses", "norms", "bpb"):
            assert rank[kind] == pytest.approx(whole[kind], rel=1e-9)
        for kind in ("weights", "moments"):
            assert rank[kind].keys() == whole[kind].keys()
            for name, tensor in whole[kind].items():
                torch.testing.assert_close(
                    rank[kind][name], tensor, atol=DOUBLE_ATOL, rtol=1e-7, msg=name
                )
        assert rank["rates"] == whole["rates"]


@pytest.mark.req("FR-016", "FR-018", "SC-011")
def test_two_ranks_with_half_a_model_each_train_the_whole_one(tmp_path: Path) -> None:
    """Rows do not divide, parts differ in number, one rank has nothing to learn now and then."""
    whole = report(whole_stage())
    ranks = in_processes(2, "sharded", tmp_path)
    compare(ranks, whole)
    assert max(rank["bytes"] for rank in ranks) <= 0.6 * whole["bytes"]
    assert sum(rank["bytes"] for rank in ranks) == whole["bytes"]
    assert ranks[0]["digest"] == ranks[1]["digest"]


@pytest.mark.req("FR-016")
def test_a_slow_rank_is_named_though_all_wait_in_every_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "PACE_EVERY", 6)
    for told in in_processes(2, "lagging", tmp_path):
        assert len(told) == 1 and told[0].startswith("  step 6: rank 1 (")
        assert re.search(r"s a thousand tokens in a block, [\d.]+ times the others'", told[0])


@pytest.mark.req("FR-016", "FR-020")
def test_a_whole_models_checkpoint_goes_on_in_halves(tmp_path: Path) -> None:
    warm = whole_stage(num_steps=3)
    fit(warm)
    weights = {name: weight.clone() for name, weight in warm.optimizer.masters().items()}
    moments = {name: moment.clone() for name, moment in warm.optimizer.state().items()}
    torch.save((weights, moments), tmp_path / "warm.pt")
    stage = whole_stage()
    stage.optimizer.load_masters(weights)
    stage.optimizer.load_state(moments)
    ranks = in_processes(2, "recomputed", tmp_path)
    compare(ranks, report(stage))
    assert "lacks 1 moments, such as head.weight/first" in ranks[0]["refused"]


@pytest.mark.req("FR-016", "EC-1", "SC-007")
def test_halves_in_bfloat16(tmp_path: Path) -> None:
    ranks = in_processes(2, "sharded narrow", tmp_path)
    whole = report(whole_stage(dtype=torch.float32))
    for rank in ranks:
        assert rank["losses"] == pytest.approx(whole["losses"], rel=0.1)
        assert {weight.dtype for weight in rank["weights"].values()} == {torch.float32}
        assert "lower --device-batch-rows, or pass --recompute on" in rank["error"]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.req("FR-016")
def test_a_world_of_one_can_be_sharded_too(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one GPU can show of the path on many: the same code, with nobody to send to."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    store = torch_dist.FileStore(str(tmp_path / "store"), 1)
    torch_dist.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        sharded = sharded_stage(World(), device=device, dtype=torch.float32, num_steps=6)
        found = report(sharded)
        sharded.optimizer.load_masters(found["weights"])
        sharded.optimizer.load_state(found["moments"])
        assert sharded.optimizer.num_steps == 6
        for name, moment in sharded.optimizer.state().items():
            assert torch.equal(moment, found["moments"][name])
    finally:
        torch_dist.destroy_process_group()
    whole = report(whole_stage(num_steps=6, dtype=torch.float32))
    assert found["losses"] == pytest.approx(whole["losses"], rel=1e-3)
    assert found["bytes"] == whole["bytes"]
    assert all(weight.device.type == device for weight in found["weights"].values())


def test_rows_of_ranks() -> None:
    assert [rows_of(5, rank, 4) for rank in range(4)] == [
        Span(0, 2),
        Span(2, 4),
        Span(4, 5),
        Span(5, 5),
    ]


@pytest.mark.req("FR-016", "EC-1")
def test_blocks_computed_again_keep_less_and_change_nothing() -> None:
    batch = Counting().batch(0, 2)
    kept, gradients = [], []
    for recomputes in (False, True):
        model = random_gpt(tiny_config(3), dtype=torch.float64)
        model.recompute(recomputes)
        held: dict[int, int] = {}

        def pack(tensor: Tensor, held: dict[int, int] = held) -> Tensor:
            storage = tensor.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = loss_sum(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        kept.append(sum(size for place, size in held.items() if place not in own))
        gradients.append([weight.grad for weight in model.parameters()])
    assert kept[1] < 0.4 * kept[0]
    for plain, again in zip(*gradients, strict=True):
        assert plain is not None and again is not None and torch.equal(plain, again)

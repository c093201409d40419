"""What is planned for many ranks is what one, two and four of them hold and send."""

import ctypes
import dataclasses
import fcntl
import json
import math
import multiprocessing
import os
import socket
import struct
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nanochat.batches.batch import Batch
from nanochat.cli.main import main
from nanochat.common.dist import World
from nanochat.common.errors import ConfigError
from nanochat.model.config import GPTConfig
from nanochat.train import loop
from nanochat.train.config import PretrainConfig
from nanochat.train.fleet import FLEETS, Fleet, fleet_here, fleet_named
from nanochat.train.loop import Stage, fit
from nanochat.train.optim import RECIPES, Optimizer
from nanochat.train.plan import plan_pretrain
from nanochat.train.pretrain import plan_of, scale_of_run
from nanochat.train.room import Hardware
from nanochat.train.scale import Scale, scale_of, shapes_of
from nanochat.train.traffic import (
    Collective,
    RankMemory,
    memory_sharded,
    memory_whole,
    muon_flops,
    traffic_sharded,
    traffic_whole,
)
from tests.fakes import random_gpt, tiny_config
from tests.train import test_world
from tests.train.makers import Counting, stage_of
from tests.train.test_fsdp import sharded_stage
from tests.train.test_world import in_processes

NUM_STEPS = 3
ROWS = 4  # of a batch, each computed alone
KINDS = {
    "reduce_": "reduce",
    "broadcast_": "broadcast",
    "allreduce_": "all_reduce",
    "_allgather_base_": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
    "alltoall_base_": "all_to_all",
}


class Even(Counting):
    """Batches of which every rank takes its rows, all with targets."""

    def batch(self, index: int, num_rows: int, rank: int = 0, world_size: int = 1) -> Batch:
        inputs, targets = super().batch(index, num_rows)
        return Batch(inputs[rank::world_size], targets[rank::world_size])


class Ledger(TorchDispatchMode):
    """Writes down every collective: how often each kind, and the bytes of its whole tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.num_calls: Counter[str] = Counter()
        self.payload_bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        room, _, name = op.name().partition("::")
        if room == "c10d":
            kind = KINDS[name.split(".")[0]]
            # (tensors, ...), or (output, input, ...): a gathering's output is whole, else the input
            whole = args[1] if kind in ("reduce_scatter", "all_to_all") else args[0]
            tensors = whole if isinstance(whole, list | tuple) else [whole]
            self.num_calls[kind] += 1
            self.payload_bytes[kind] += sum(each.numel() * each.element_size() for each in tensors)
        return op(*args, **(kwargs or {}))


def _measured(stage: Stage, memory: dict[str, int]) -> dict[str, Any]:
    """What was sent in each step, and what is held after the last."""
    with Ledger() as ledger:
        fit(stage)
    if stage.world.size > 1:  # once, after the last: whether a signal came
        ledger.num_calls["all_reduce"] -= 1
        ledger.payload_bytes["all_reduce"] -= torch.tensor(0).nbytes
    return {
        "num_calls": {kind: num / NUM_STEPS for kind, num in ledger.num_calls.items()},
        "payload_bytes": {kind: num / NUM_STEPS for kind, num in ledger.payload_bytes.items()},
        "moments": stage.optimizer.state_bytes(),
        "shapes": {name: tuple(each.shape) for name, each in stage.model.named_parameters()},
        **memory,
    }


def _whole(world: World, folder: Path, **said: Any) -> dict[str, Any]:
    stage = stage_of(
        num_steps=NUM_STEPS,
        stream=Even(),
        batch_rows=ROWS,
        device_batch_rows=1,
        world=world,
        **said,
    )
    storages = stage.optimizer._storages  # type: ignore[union-attr]
    memory = {
        "weights": sum(each.weights.nbytes for each in storages),
        "gradients": sum(each.grads.nbytes for each in storages),
    }
    return _measured(stage, memory)


def _narrow(world: World, folder: Path) -> dict[str, Any]:
    return _whole(world, folder, compute_dtype=torch.bfloat16)


def _sharded(world: World, folder: Path) -> dict[str, Any]:
    stage = sharded_stage(
        world, num_steps=NUM_STEPS, dtype=torch.float32, compute_dtype=torch.bfloat16
    )
    plan = dataclasses.replace(stage.plan, batch_rows=ROWS)
    stage = dataclasses.replace(stage, stream=Even(), plan=plan, validate=None)
    memory = {"weights": sum(each.nbytes for each in stage.optimizer._shards.values())}  # type: ignore[union-attr]
    step = stage.optimizer.step

    def step_and_look(*arguments: Any) -> None:
        memory["gradients"] = sum(each.nbytes for each in stage.optimizer.gradients())
        step(*arguments)

    stage.optimizer.step = step_and_look  # type: ignore[method-assign]
    return _measured(stage, memory) | memory


def compare(ranks: list[dict[str, Any]], memory: list[RankMemory], sent: list[Collective]) -> None:
    size = len(ranks)
    shapes = shapes_of(tiny_config(3))
    for rank, planned in zip(ranks, memory, strict=True):
        assert rank["shapes"] == shapes
        for name in ("weights", "gradients", "moments"):
            assert rank[name] == getattr(planned, name), (size, name)
        assert rank["num_calls"] == {each.kind: each.num_calls for each in sent}
    for each in sent:
        measured = [rank["payload_bytes"][each.kind] for rank in ranks]
        if each.kind == "all_to_all":  # ranks own different matrices
            assert sum(measured) / size == pytest.approx(each.payload_bytes, abs=1)
        else:
            assert measured == [each.payload_bytes] * size


@pytest.mark.parametrize(("task", "compute_bytes"), [("whole", 4), ("narrow", 2)])
@pytest.mark.req("FR-016", "EC-1")
def test_what_ranks_with_the_whole_model_hold_and_send(
    task: str, compute_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "peak_flops", lambda device, dtype: 1e12)  # measuring takes a while
    monkeypatch.setattr(test_world, "TASKS", {"whole": _whole, "narrow": _narrow})
    shapes = shapes_of(tiny_config(3))
    for size in (1, 2, 4):
        ranks = (
            [test_world.TASKS[task](World(), tmp_path)]
            if size == 1
            else in_processes(size, task, tmp_path)
        )
        compare(
            ranks,
            memory_whole(shapes, size, compute_bytes),
            traffic_whole(shapes, size, compute_bytes),
        )


@pytest.mark.req("FR-016", "EC-1")
def test_what_ranks_with_a_share_of_the_model_hold_and_send(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "peak_flops", lambda device, dtype: 1e12)
    monkeypatch.setattr(test_world, "TASKS", {"sharded": _sharded})
    shapes = shapes_of(tiny_config(3))
    for size in (2, 4):
        ranks = in_processes(size, "sharded", tmp_path)
        sent = traffic_sharded(shapes, size, 2, ROWS // size)
        compare(ranks, memory_sharded(shapes, size, 2), sent)
    alone = memory_sharded(shapes, 1, 2)[0]
    assert alone.weights == memory_whole(shapes, 1, 4)[0].weights
    assert traffic_sharded(shapes, 1, 2, 1) == []


# ------------------------------------------------------------------------------- on the wire

NEW_NETWORK, NEW_USER = 0x40000000, 0x10000000  # CLONE_NEWNET, CLONE_NEWUSER
SET_FLAGS, IS_UP = 0x8914, 1  # SIOCSIFFLAGS, IFF_UP
NUM_WIRE_STEPS = 8


def wide_config() -> GPTConfig:
    """Large enough that heads of packets do not count: 590,000 weights."""
    return tiny_config(2, vocab_size=512, model_dim=128, num_heads=4, num_kv_heads=4, head_dim=32)


def _sent_so_far() -> int:
    lines = Path("/proc/self/net/dev").read_text().splitlines()
    numbers = next(
        line.split(":")[1].split() for line in lines if line.split(":")[0].strip() == "lo"
    )
    return int(numbers[8])


def _wire(world: World, folder: Path) -> float:
    """Bytes that all ranks together send in a step, as the network counts them."""
    model = random_gpt(wide_config())
    stage = dataclasses.replace(
        stage_of(num_steps=NUM_WIRE_STEPS, stream=Even(), world=world),
        model=model,
        optimizer=Optimizer(model, RECIPES["v5"], world=world),
    )
    world.wait()
    before = _sent_so_far()
    world.wait()
    fit(stage)
    world.wait()
    return (_sent_so_far() - before) / NUM_WIRE_STEPS


def _in_a_network_of_its_own(size: int, folder: Path) -> None:
    """Run by a process that does nothing else; exit code 3 where that is not permitted."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NEW_NETWORK) and libc.unshare(NEW_USER | NEW_NETWORK):
        os._exit(3)
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SET_FLAGS, struct.pack("16sh14x", b"lo", IS_UP))
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.save(max(in_processes(size, "wire", folder)), folder / f"sent_{size}.pt")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs network namespaces")
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.req("FR-016")
def test_what_the_network_carries(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Around a ring a sum passes every link but one; gloo cuts it in parts, which it sums so, and
    then sends to where they are wanted: once more an N-th."""
    monkeypatch.setattr(loop, "peak_flops", lambda device, dtype: 1e12)
    monkeypatch.setattr(test_world, "TASKS", {"wire": _wire})
    context = multiprocessing.get_context("fork")
    alone = context.Process(target=_in_a_network_of_its_own, args=(size, tmp_path))
    alone.start()
    alone.join(90)
    if alone.exitcode == 3:
        pytest.skip("network namespaces are not permitted here")
    assert alone.exitcode == 0
    sent = {
        each.kind: size * each.sent_bytes(size)
        for each in traffic_whole(shapes_of(wide_config()), size, 4)
    }
    assert sent["reduce"] == sent["broadcast"] > 1000 * sent["all_reduce"]
    measured = torch.load(tmp_path / f"sent_{size}.pt")
    assert measured == pytest.approx(sum(sent.values()) + sent["reduce"] / size, rel=0.05)


# --------------------------------------------------------------------------------- the estimate


def planned(num_ranks: int, depth: int = 12, fleet: Fleet = FLEETS["h100"], **said: Any) -> Scale:
    config = PretrainConfig(depth=depth, **said)
    model = GPTConfig.from_depth(depth, vocab_size=32_768)
    hardware = Hardware(
        device_type="cuda",
        memory_bytes=fleet.memory_bytes,
        has_compiler=True,
        num_ranks=num_ranks,
    )
    plan = plan_pretrain(config, model, hardware)
    return scale_of(model, plan, fleet, num_ranks, compute_bytes=2)


@pytest.mark.req("FR-016", "EC-1")
def test_more_ranks_hold_less_and_wait_more() -> None:
    one, eight, many = planned(1), planned(8), planned(64)
    assert one.sent_bytes == one.waiting_s == 0 and one.efficiency == pytest.approx(1)
    assert (one.rows, eight.rows, many.rows) == (256, 32, 4)
    for fewer, more in ((one, eight), (eight, many)):
        assert more.memory.moments < fewer.memory.moments / 6
        assert more.memory_bytes < fewer.memory_bytes
        assert more.compute_s == pytest.approx(fewer.compute_s / 8)
        assert more.efficiency < fewer.efficiency and more.waiting_s > fewer.waiting_s
    # Gradients of four bytes to their owners, weights of two back, but for each rank's own.
    assert eight.sent_bytes == pytest.approx(6 * eight.parameters * 7 / 8, rel=1e-3)
    assert eight.memory.weights == pytest.approx(2 * eight.parameters, rel=1e-3)
    slow = planned(64, fleet=dataclasses.replace(FLEETS["h100"], between_bytes_per_s=1e9))
    assert slow.waiting_s > 5 * many.waiting_s and slow.compute_s == many.compute_s


@pytest.mark.req("FR-016", "EC-1")
def test_ranks_without_a_row_are_counted() -> None:
    crowd = planned(512)
    assert (crowd.rows, crowd.num_idle) == (1, 256)
    assert crowd.efficiency < 0.5
    reasons = {name: reason for name, _, reason in crowd.lines()}
    assert reasons["rows a rank"] == "1 at once; 256 ranks have none"


@pytest.mark.req("FR-016")
def test_a_share_of_the_model_is_less_to_hold_and_more_to_send() -> None:
    whole, cut = planned(8, depth=20), planned(8, depth=20, shard_model="on")
    assert cut.is_sharded and not whole.is_sharded
    assert cut.memory.weights + cut.memory.gradients + cut.memory.moments < 0.5 * (
        whole.memory.weights + whole.memory.gradients + whole.memory.moments
    )
    assert cut.sent_bytes > whole.sent_bytes
    many, more = (planned(size, depth=20, shard_model="on") for size in (256, 512))
    assert many.num_messages == more.num_messages < planned(256, depth=20).num_messages
    assert "brought together" in dict((n, r) for n, _, r in cut.lines())["memory a rank"]


@pytest.mark.req("FR-016")
def test_lines_and_json_tell_the_same() -> None:
    scale = planned(8)
    values = {name: value for name, value, _ in scale.lines()}
    told = scale.to_json()
    assert set(values) == {
        *("parameters", "ranks", "rows a rank", "memory a rank", "sent a step", "a step", "time")
    }
    assert values["memory a rank"] == f"{told['memory_bytes'] / 2**30:.2f} GiB"
    assert values["a step"] == f"{told['step_s']:.3f} s"
    assert told["num_messages"] == sum(each["num_calls"] for each in told["collectives"])
    alone = {name: reason for name, _, reason in planned(1).lines()}
    assert alone["sent a step"] == "by each rank; there is nobody to send to"


def test_the_products_of_muon() -> None:
    shapes = {"blocks.0.a.weight": (4, 6), "blocks.1.a.weight": (4, 6), "head.weight": (9, 4)}
    each = 5 * (4 * 4 * 4 * 6 + 2 * 4**3)
    assert muon_flops(shapes, 1, is_sharded=False) == [2 * each]
    assert muon_flops(shapes, 4, is_sharded=False) == [each, each, 0, 0]
    assert muon_flops(shapes, 2, is_sharded=True) == [each, each]


def test_what_passes_a_link() -> None:
    def sent(kind: Any) -> int:
        one = Collective(kind=kind, what="", num_calls=1, payload_bytes=800)
        return one.sent_bytes(4)

    assert (sent("reduce"), sent("all_gather"), sent("all_reduce")) == (600, 600, 1200)
    memory = RankMemory(weights=1, gradients=2, moments=3, gathered=4)
    assert memory.total == 10


def test_fleets() -> None:
    h100 = FLEETS["h100"]
    assert h100.link_bytes_per_s(8) == 0.8 * 450e9 and h100.link_bytes_per_s(9) == 0.8 * 50e9
    assert math.isclose(h100.ring_s(8), 7 * 2e-6)
    assert math.isclose(h100.ring_s(16), 13 * 2e-6 + 2 * 8e-6)
    here = fleet_here("cpu", 2**30, 1e9)
    assert here.ring_s(1) == 0 and math.isclose(here.ring_s(3), 2 * 50e-6)
    assert fleet_named("here", here=here) == here
    assert fleet_named("a100", is_narrow=False).flops_per_s == 156e12
    assert fleet_named("h200", between_bytes_per_s=1e9).link_bytes_per_s(64) == 0.8e9


@pytest.mark.req("FR-016")
def test_a_run_is_planned_for_other_machines_than_this_one() -> None:
    config = PretrainConfig(
        depth=12, dry_run=True, plan_world_size=64, plan_device="h100", plan_link_gb_s=25.0
    )
    model, plan = plan_of(config, 32_768)
    scale = scale_of_run(config, model, plan)
    assert set(model.windows) == {512, 2048}  # as on a GPU
    assert plan.batch_tokens == 2**19 and scale.fleet.between_bytes_per_s == 25e9
    assert scale.memory == planned(64).memory
    wide = dataclasses.replace(config, dtype="float32")
    assert scale_of_run(wide, model, plan).fleet.flops_per_s == scale.fleet.flops_per_s / 2
    small = PretrainConfig(depth=2, context_len=128, dry_run=True, plan_world_size=2, device="cpu")
    scale = scale_of_run(small, *plan_of(small, 512))
    assert scale.fleet.name == "cpu as here" and scale.sent_bytes > 0


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"plan_world_size": 2}, "plan_world_size is for a dry run: pass --dry-run too"),
        ({"plan_world_size": 0, "dry_run": True}, "plan_world_size is 0, expected at least 1"),
        ({"plan_link_gb_s": 0.0}, "plan_link_gb_s is 0.0, expected more than 0"),
    ],
)
def test_plans_that_cannot_be_are_refused(said: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PretrainConfig(**said)


@pytest.mark.req("FR-016", "FR-078")
def test_the_command_tells_the_plan_and_touches_nothing(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["pretrain", "--dry-run", "--depth", "4", "--device", "cpu", "--plan-world-size", "16"]
    assert main([*words, "--plan-device", "a100", "--json"]) == 0
    told = capsys.readouterr()
    scale = json.loads(told.out)["scale"]
    assert (scale["num_ranks"], scale["fleet"]["name"]) == (16, "a100")
    assert f"memory a rank   {scale['memory_bytes'] / 2**30:.2f} GiB" in told.err
    assert main(words) == 0
    told = capsys.readouterr()
    assert told.out == "" and "cpu as here" in told.err
    assert not any(home.rglob("*"))

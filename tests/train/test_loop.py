"""The only training loop: what it learns, reports, evaluates, saves, and when it stops."""

import dataclasses
import json
import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nanochat.batches.batch import IGNORE, Batch
from nanochat.common.errors import DataError, Stopped, TrainingError
from nanochat.model.gpt import GPT
from nanochat.train import loop as module
from nanochat.train import step as step_module
from nanochat.train.display import Display
from nanochat.train.loop import Stage, fit
from nanochat.train.loss import loss_sum
from nanochat.train.optim import RECIPES, Optimizer, Rates
from nanochat.train.plan import Plan
from nanochat.train.progress import Progress
from nanochat.train.schedule import Schedule
from tests.conftest import LAYER_ATOL
from tests.fakes import random_gpt, tiny_config

Rows = list[dict[str, float]]
WIDTH = 32


class Counting:
    """A stream whose rows count upwards from a place that the batch's number decides."""

    fingerprint = "counting"

    def __init__(
        self, seed: int = 0, *, change: Callable[[int, Batch], Batch] | None = None
    ) -> None:
        self.seed, self.change = seed, change
        self.asked: list[tuple[int, int]] = []

    def batch(self, index: int, num_rows: int, rank: int = 0, world_size: int = 1) -> Batch:
        self.asked.append((index, num_rows))
        generator = torch.Generator().manual_seed(self.seed * 1000 + index)
        starts = torch.randint(0, 70, (num_rows, 1), generator=generator)
        rows = (starts + torch.arange(WIDTH + 1)) % 70
        batch = Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())
        return self.change(index, batch) if self.change else batch


def plan_of(num_steps: int, **changes: Any) -> Plan:
    schedule = Schedule(num_steps=num_steps, warmup_steps=2)
    values: dict[str, Any] = {
        "num_steps": num_steps,
        "batch_rows": 4,
        "device_batch_rows": 4,
        "context_len": WIDTH,
        "lr_scale": 0.2,
        "schedule": schedule,
        "eval_every": 0,
        "is_compiled": False,
        "flops_per_token": 1000,
    }
    return Plan(**{**values, **changes})


def stage_of(num_steps: int = 3, seed: int = 0, **changes: Any) -> Stage:
    """A tiny model that is to learn to count; `changes` are fields of the stage or of its plan."""
    dtype = changes.pop("dtype", torch.float32)
    compute_dtype = changes.pop("compute_dtype", None)
    plan_fields = {field.name for field in dataclasses.fields(Plan)}
    plan = plan_of(num_steps, **{k: v for k, v in changes.items() if k in plan_fields})
    model = random_gpt(tiny_config(3), seed=seed, dtype=dtype)
    values: dict[str, Any] = {
        "name": "test",
        "model": model,
        "optimizer": Optimizer(
            model,
            RECIPES["v5"],
            lr_scale=plan.lr_scale,
            compute_dtype=compute_dtype,
            world=changes.get("world"),
        ),
        "stream": Counting(seed),
        "plan": plan,
    }
    return Stage(**{**values, **{k: v for k, v in changes.items() if k not in plan_fields}})


def masters(stage: Stage) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in stage.optimizer.masters().items()}


def furthest(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)


# ------------------------------------------------------------------------------------ learning


@pytest.mark.req("FR-021")
def test_the_loss_falls() -> None:
    rows = fit(stage_of(num_steps=60, lr_scale=0.5))
    assert rows[0]["loss"] > 4.0 > 0.4 > rows[-1]["loss"]
    assert [row["step"] for row in rows] == list(range(1, 61))


@pytest.mark.req("SC-011", "FR-033")
def test_equal_seeds_give_equal_bits() -> None:
    once, again, other = stage_of(seed=1), stage_of(seed=1), stage_of(seed=2)
    losses = [[row["loss"] for row in fit(stage)] for stage in (once, again, other)]
    assert losses[0] == losses[1] != losses[2]
    assert furthest(masters(once), masters(again)) == 0.0 < furthest(masters(once), masters(other))


def test_batches_are_asked_for_once_in_order() -> None:
    stream = Counting()
    fit(stage_of(num_steps=5, stream=stream, batch_rows=3))
    assert stream.asked == [(index, 3) for index in range(5)]


@pytest.mark.req("FR-018")
def test_rows_at_once_change_nothing_but_rounding() -> None:
    """One step: after it, rounding that AdamW divides by itself is not rounding any more."""
    whole = stage_of(num_steps=1)
    fit(whole)
    for rows_at_once in (1, 3):
        parts = stage_of(num_steps=1, device_batch_rows=rows_at_once)
        assert fit(parts)[0]["loss"] == pytest.approx(fit(stage_of(num_steps=1))[0]["loss"])
        assert furthest(masters(parts), masters(whole)) <= 10 * LAYER_ATOL


def some_ignored(index: int, batch: Batch) -> Batch:
    """Rows end in padding of different lengths; the last row has no target at all."""
    targets = batch.targets_BT.clone()
    for row, kept in enumerate((20, 5, 9, 0)):
        targets[row, kept:] = IGNORE
    return Batch(batch.inputs_BT, targets)


@pytest.mark.parametrize("rows_at_once", [1, 2, 4])
@pytest.mark.req("FR-018", "FR-023", "SC-007")
def test_padding_need_not_be_computed(rows_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_module, "MICRO_BATCH_MULTIPLE", 4)
    stream = Counting(change=some_ignored)
    whole = stage_of(num_steps=1, stream=stream)
    cut = stage_of(num_steps=1, stream=stream, is_padded=True, device_batch_rows=rows_at_once)
    widths: list[int] = []
    hidden = GPT.hidden
    monkeypatch.setattr(
        GPT,
        "hidden",
        lambda self, tokens, **k: widths.append(tokens.size(1)) or hidden(self, tokens, **k),
    )
    expected = fit(whole)[0]
    assert widths == [WIDTH]
    found = fit(cut)[0]
    assert widths[1:] == {1: [20, 12, 8], 2: [20, 8], 4: [20]}[rows_at_once]
    assert found["loss"] == pytest.approx(expected["loss"])
    assert found["num_targets"] == expected["num_targets"] == 34
    assert furthest(masters(cut), masters(whole)) <= 10 * LAYER_ATOL


@pytest.mark.req("FR-060", "SC-007")
def test_a_batch_without_targets_changes_nothing() -> None:
    def without(index: int, batch: Batch) -> Batch:
        empty = torch.full_like(batch.targets_BT, IGNORE)
        return Batch(batch.inputs_BT, empty) if index == 1 else batch

    stage = stage_of(num_steps=2, stream=Counting(change=without))
    only_first = stage_of(num_steps=1, plan=stage.plan)
    rows = fit(stage)
    assert rows[1]["loss"] == 0.0 and rows[1]["num_targets"] == 0
    assert all(math.isfinite(value) for row in rows for value in row.values())
    fit(dataclasses.replace(only_first, plan=dataclasses.replace(stage.plan, num_steps=1)))
    assert furthest(masters(stage), masters(only_first)) == 0.0
    assert stage.optimizer.num_steps == 1


# ------------------------------------------------------------------------------------- metrics


@pytest.mark.req("FR-025")
def test_every_step_is_a_complete_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "peak_flops", lambda device, dtype: 1e6)
    path = tmp_path / "metrics.jsonl"
    stage = stage_of(num_steps=4, metrics_path=path, validate=lambda: 1.5, eval_every=2)
    rows = fit(stage)
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows
    for index, row in enumerate(rows):
        assert set(row) - {"val_bpb"} == {
            "step",
            "loss",
            "grad_norm",
            "lr",
            "data_wait_s",
            "num_targets",
            "tokens_per_s",
            "mfu",
            "memory_bytes",
            "eta_s",
            "elapsed_s",
        }
        assert row["lr"] == stage.plan.schedule.lr_at(index)
        assert row["num_targets"] == 4 * WIDTH
        assert row["mfu"] == pytest.approx(row["tokens_per_s"] * 1000 / 1e6)
        assert row["memory_bytes"] > 1e7
    elapsed = [row["elapsed_s"] for row in rows]
    assert elapsed == sorted(elapsed) and elapsed[0] > 0.0
    assert rows[-1]["eta_s"] == 0.0 < rows[0]["eta_s"]


@pytest.mark.req("FR-025")
def test_the_clock_stands_still_while_validating(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def validate() -> float:
        now[0] += 100.0
        return 1.0

    stage = stage_of(num_steps=4, validate=validate, eval_every=1)
    step = stage.optimizer.step

    def step_of_two_seconds(rates: Rates, is_good: Tensor) -> None:
        now[0] += 2.0
        step(rates, is_good)

    monkeypatch.setattr(stage.optimizer, "step", step_of_two_seconds)
    rows = fit(stage)
    assert [row["elapsed_s"] for row in rows] == [2.0, 4.0, 6.0, 8.0]
    assert [row["eta_s"] for row in rows] == pytest.approx([6.0, 4.0, 2.0, 0.0])
    assert {row["tokens_per_s"] for row in rows} == {4 * WIDTH / 2.0}


@pytest.mark.parametrize(
    ("eval_every", "steps"), [(3, [3, 6, 8]), (0, [8]), (8, [8]), (1, list(range(1, 9)))]
)
@pytest.mark.req("FR-025")
def test_when_it_validates(eval_every: int, steps: list[int]) -> None:
    was_training: list[bool] = []

    def validate() -> float:
        was_training.append(stage.model.training)
        return 2.0

    stage = stage_of(num_steps=8, validate=validate, eval_every=eval_every)
    rows = fit(stage)
    assert [int(row["step"]) for row in rows if "val_bpb" in row] == steps
    assert was_training == [False] * len(steps) and stage.model.training
    assert not [row for row in fit(stage_of(num_steps=2, eval_every=1)) if "val_bpb" in row]


class Memory:
    """A keeper of weights and moments in memory, and of what it was asked."""

    def __init__(self) -> None:
        self.stage: Stage | None = None
        self.told: list[Any] = []
        self.kept: dict[int, tuple[Any, Any, Progress]] = {}

    def save(self, progress: Progress, metrics: dict[str, float]) -> None:
        assert self.stage is not None
        optimizer = self.stage.optimizer
        state = {name: moment.clone() for name, moment in optimizer.state().items()}
        self.kept[progress.step] = (masters(self.stage), state, progress)
        self.told.append(("save", progress.step, metrics["step"]))

    def validated(self, step: int, val_bpb: float) -> None:
        self.told.append(("validated", step, val_bpb))

    def check(self) -> None:
        pass

    def finish(self) -> None:
        self.told.append("finish")

    def go_back(self) -> Progress | None:
        assert self.stage is not None
        if not self.kept:
            return None
        weights, state, progress = self.kept[max(self.kept)]
        self.stage.optimizer.load_masters(weights)
        self.stage.optimizer.load_state(state)
        return progress


def kept_stage(memory: Memory, **changes: Any) -> Stage:
    stage = stage_of(keeper=memory, **changes)
    memory.stage = stage
    return stage


@pytest.mark.parametrize(
    ("save_every", "steps"), [(0, [7]), (3, [3, 6, 7]), (7, [7]), (1, list(range(1, 8)))]
)
@pytest.mark.req("FR-019")
def test_when_it_saves(save_every: int, steps: list[int]) -> None:
    memory = Memory()
    fit(kept_stage(memory, num_steps=7, save_every=save_every))
    assert memory.told == [*(("save", step, step) for step in steps), "finish"]


@pytest.mark.req("FR-019", "EC-5")
def test_it_saves_before_it_validates() -> None:
    memory = Memory()

    def validate() -> float:
        memory.told.append("validate")
        if len(memory.told) > 3:
            raise DataError("the validation text is gone")
        return 1.5

    stage = kept_stage(memory, num_steps=4, save_every=2, eval_every=2, validate=validate)
    with pytest.raises(DataError, match="validation text is gone"):
        fit(stage)
    assert memory.told == [
        ("save", 2, 2),
        "validate",
        ("validated", 2, 1.5),
        ("save", 4, 4),
        "validate",
    ]


@pytest.mark.req("FR-020", "EC-5")
def test_validation_that_was_missed_is_made_up_for(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    stage = stage_of(num_steps=4, eval_every=2, validate=lambda: 1.5, metrics_path=path)
    rows = fit(stage)
    del rows[1]["val_bpb"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 5, "lo')
    again = dataclasses.replace(stage, progress=Progress(step=2), validate=lambda: 2.5)
    assert [row.get("val_bpb") for row in fit(again)] == [None, 2.5, None, 2.5]
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]


class Recorder(Display):
    """A display that writes down what it is told."""

    def __init__(self) -> None:
        super().__init__(is_quiet=True)
        self.told: list[Any] = []

    def start(self, stage: str, num_steps: int) -> None:
        self.told.append((stage, num_steps))

    def note(self, text: str) -> None:
        self.told.append(text)

    def step(self, metrics: Any) -> None:
        self.told.append(int(metrics["step"]))

    def stop(self) -> None:
        self.told.append("stop")


def test_the_display_is_told() -> None:
    display = Recorder()
    fit(stage_of(num_steps=3, display=display))
    assert display.told == [("test", 3), 1, 2, 3, "stop"]


# ------------------------------------------------------------------------------------- failing


def poison(stage: Stage, bad: set[int]) -> tuple[Stage, Callable[[GPT, Batch], Tensor]]:
    """The same stage, and a loss that is NaN for these batches."""
    counting = Counting()
    numbers: dict[tuple[int, ...], int] = {}

    def remember(index: int, batch: Batch) -> Batch:
        numbers[tuple(batch.inputs_BT[:, 0].tolist())] = index
        return batch

    def loss(model: GPT, batch: Batch) -> Tensor:
        is_bad = numbers[tuple(batch.inputs_BT[:, 0].tolist())] in bad
        return loss_sum(model, batch) * (math.nan if is_bad else 1.0)

    counting.change = remember
    poisoned = dataclasses.replace(stage, stream=counting)
    if isinstance(stage.keeper, Memory):
        stage.keeper.stage = poisoned
    return poisoned, loss


@pytest.mark.req("FR-060", "SC-007", "EC-8")
def test_an_update_that_is_no_number_is_thrown_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, path = Memory(), tmp_path / "metrics.jsonl"
    display = Recorder()
    stage, loss = poison(kept_stage(memory, num_steps=6, metrics_path=path, display=display), {2})
    monkeypatch.setattr(module, "loss_sum", loss)
    rows = fit(stage)
    assert [math.isfinite(row["loss"]) for row in rows] == [True, True, False, True, True, True]
    assert json.loads(path.read_text().splitlines()[2])["loss"] is None
    assert stage.optimizer.num_steps == 5
    assert memory.kept[6][2].discarded == (2,) and memory.kept[6][2].skipped == ()
    assert "step 3 (batch 2): loss nan, gradient norm nan: its update is thrown away" in (
        " ".join(str(line) for line in display.told)
    )


@pytest.mark.req("FR-060", "SC-007", "EC-8")
def test_too_many_send_it_back_once(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory()
    stage = kept_stage(memory, num_steps=8, save_every=2, max_skips=2)
    stage, loss = poison(stage, {4, 5})
    monkeypatch.setattr(module, "loss_sum", loss)
    rows = fit(stage)
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert all(math.isfinite(row["loss"]) for row in rows)
    progress = memory.kept[8][2]
    assert progress.skipped == (4, 5) and progress.num_returns == 1
    assert progress.discarded == (4, 5)
    # The very weights of a run that never saw those batches.
    other = Memory()
    clean = kept_stage(other, num_steps=8)
    clean = dataclasses.replace(clean, progress=Progress(skipped=(4, 5)))
    monkeypatch.setattr(module, "loss_sum", loss_sum)
    fit(clean)
    assert furthest(other.kept[8][0], memory.kept[8][0]) == 0.0


@pytest.mark.req("FR-060", "SC-007", "EC-8")
def test_the_second_time_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, display = Memory(), Recorder()
    stage = kept_stage(memory, num_steps=20, save_every=2, max_skips=2, display=display)
    stage, loss = poison(stage, set(range(4, 20)))
    monkeypatch.setattr(module, "loss_sum", loss)
    with pytest.raises(
        TrainingError, match=r"2 updates in a row .* gone back once .* batches 4 to 5: lower --lr"
    ):
        fit(stage)
    assert display.told[-1] == "stop" and max(memory.kept) == 4
    nothing_kept, loss = poison(stage_of(num_steps=9, max_skips=3), set(range(9)))
    monkeypatch.setattr(module, "loss_sum", loss)
    with pytest.raises(TrainingError, match="there is no checkpoint to go back to"):
        fit(nothing_kept)


@pytest.mark.req("FR-060", "EC-8")
def test_a_spike_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    display = Recorder()

    def loss(model: GPT, batch: Batch) -> Tensor:
        height = 9.0 if stage.optimizer.num_steps == 27 else 1.0
        return loss_sum(model, batch) * height

    stage = stage_of(num_steps=30, display=display, lr_scale=1e-6)
    monkeypatch.setattr(module, "loss_sum", loss)
    fit(stage)
    said = [line for line in display.told if isinstance(line, str) and "deviations" in line]
    assert len(said) == 1 and "step 28 (batch 27): loss" in said[0]


def fill_memory(stage: Stage, most_rows: int) -> Callable[[GPT, Batch], Tensor]:
    """A loss for which no more than so many rows fit."""

    def loss(model: GPT, batch: Batch) -> Tensor:
        total = loss_sum(model, batch)
        if batch.inputs_BT.size(0) > most_rows:
            total.backward()  # some gradients are there already when it happens
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return total

    return loss


@pytest.mark.req("EC-1")
def test_memory_that_runs_out_halves_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[Plan] = []
    display = Recorder()
    stage = stage_of(num_steps=2, display=display, replanned=plans.append)
    whole = stage_of(num_steps=2, device_batch_rows=1)
    fit(whole)
    monkeypatch.setattr(module, "loss_sum", fill_memory(stage, 1))
    rows = fit(stage)
    assert len(rows) == 2 and [plan.device_batch_rows for plan in plans] == [1]
    assert plans[0].reasons["at once"] == "memory ran out with more"
    assert furthest(masters(stage), masters(whole)) == 0.0  # redone, not half done
    assert any("1 rows are computed at once" in str(line) for line in display.told)


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate "
                "memory: you tried to allocate 9 bytes"
            ),
            True,
        ),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"), True),
        (MemoryError(), True),
        (RuntimeError("shapes do not fit"), False),
    ],
)
@pytest.mark.req("EC-1")
def test_no_room_for_a_single_row(
    error: Exception, is_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loss(model: GPT, batch: Batch) -> Tensor:
        raise error

    monkeypatch.setattr(module, "loss_sum", loss)
    expected = (
        (TrainingError, "out of memory with one row of 32 tokens")
        if is_memory
        else (RuntimeError, "shapes do not fit")
    )
    with pytest.raises(expected[0], match=expected[1]):
        fit(stage_of())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.req("FR-020", "EC-5")
def test_a_signal_ends_it_after_the_step(number: signal.Signals) -> None:
    memory = Memory()
    stage = kept_stage(memory, num_steps=9)
    step = stage.optimizer.step

    def step_and_send(rates: Rates, is_good: Tensor) -> None:
        step(rates, is_good)
        if stage.optimizer.num_steps == 4:
            os.kill(os.getpid(), number)

    stage.optimizer.step = step_and_send  # type: ignore[method-assign]
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match=f"stopped by {number.name} after step 4 of 9") as stopped:
        fit(stage)
    assert stopped.value.exit_code == 128 + number
    assert memory.told == [("save", 4, 4), "finish"]
    assert signal.getsignal(number) == before
    whole = Memory()
    fit(kept_stage(whole, num_steps=9))
    stage.optimizer.step = step  # type: ignore[method-assign]
    fit(dataclasses.replace(stage, progress=memory.kept[4][2]))
    assert furthest(memory.kept[9][0], whole.kept[9][0]) == 0.0


def test_a_broken_stream_is_heard() -> None:
    def broken(index: int, batch: Batch) -> Batch:
        if index == 1:
            raise DataError("the shard is gone")
        return batch

    display = Recorder()
    with pytest.raises(DataError, match="the shard is gone"):
        fit(stage_of(num_steps=3, stream=Counting(change=broken), display=display))
    assert display.told[-1] == "stop"


def test_a_plan_may_ask_for_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []

    def compile_loss_sum(device_type: str, *, is_padded: bool) -> Any:
        asked.append((device_type, is_padded))
        return module.loss_sum

    monkeypatch.setattr(module, "compile_loss_sum", compile_loss_sum)
    fit(stage_of(num_steps=1))
    assert asked == []
    fit(stage_of(num_steps=1, is_compiled=True, is_padded=True))
    assert asked == [("cpu", True)]

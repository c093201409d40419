"""The only training loop: what it learns, reports, evaluates, saves, and when it stops."""

import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nanochat.batches.batch import IGNORE, Batch
from nanochat.common.errors import DataError, TrainingError
from nanochat.model.gpt import GPT
from nanochat.train import loop as module
from nanochat.train.display import Display
from nanochat.train.loop import Stage, fit
from nanochat.train.optim import RECIPES, Optimizer, Rates
from nanochat.train.plan import Plan
from nanochat.train.schedule import Schedule
from tests.conftest import LAYER_ATOL
from tests.fakes import random_gpt, tiny_config

Rows = list[dict[str, float]]
WIDTH = 32


class Counting:
    """A stream whose rows count upwards from a place that the batch's number decides."""

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
    plan_fields = {field.name for field in dataclasses.fields(Plan)}
    plan = plan_of(num_steps, **{k: v for k, v in changes.items() if k in plan_fields})
    model = random_gpt(tiny_config(3), seed=seed)
    values: dict[str, Any] = {
        "name": "test",
        "model": model,
        "optimizer": Optimizer(model, RECIPES["v5"], lr_scale=plan.lr_scale),
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
    monkeypatch.setattr(module, "MICRO_BATCH_MULTIPLE", 4)
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
    assert widths[1:] == {1: [20, 8, 12], 2: [20, 12], 4: [20]}[rows_at_once]
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
            "lr",
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

    def step_of_two_seconds(rates: Rates) -> None:
        now[0] += 2.0
        step(rates)

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


def test_it_saves_once_at_the_end() -> None:
    saved: list[tuple[int, dict[str, float]]] = []
    stage = stage_of(num_steps=3, save=lambda step, metrics: saved.append((step, metrics)))
    rows = fit(stage)
    assert saved == [(3, rows[-1])]


class Recorder(Display):
    """A display that writes down what it is told."""

    def __init__(self) -> None:
        super().__init__(is_quiet=True)
        self.told: list[Any] = []

    def start(self, stage: str, num_steps: int) -> None:
        self.told.append((stage, num_steps))

    def step(self, metrics: Any) -> None:
        self.told.append(int(metrics["step"]))

    def stop(self) -> None:
        self.told.append("stop")


def test_the_display_is_told() -> None:
    display = Recorder()
    fit(stage_of(num_steps=3, display=display))
    assert display.told == [("test", 3), 1, 2, 3, "stop"]


# ------------------------------------------------------------------------------------- failing


@pytest.mark.req("FR-060", "SC-007")
def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    saved: list[int] = []
    display = Recorder()
    stage = stage_of(
        num_steps=5,
        display=display,
        metrics_path=tmp_path / "metrics.jsonl",
        save=lambda step, metrics: saved.append(step),
    )
    step = stage.optimizer.step

    def step_then_break(rates: Rates) -> None:
        step(rates)
        if stage.optimizer.num_steps == 2:
            stage.model.embedding.weight.data.fill_(math.nan)

    stage.optimizer.step = step_then_break  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match=r"loss is nan at step 3 .*--lr-scale.*float32"):
        fit(stage)
    assert saved == [] and display.told[-1] == "stop"
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


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

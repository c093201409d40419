"""The only training loop: what it learns, reports, evaluates and saves."""

import dataclasses
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nanochat.batches.batch import IGNORE, Batch
from nanochat.common.errors import DataError
from nanochat.common.transfer import Arrival
from nanochat.model.gpt import GPT
from nanochat.train import loop as module
from nanochat.train import optim
from nanochat.train import step as step_module
from nanochat.train.loop import Stage, fit
from nanochat.train.loss import loss_sum
from nanochat.train.optim import RECIPES, Optimizer, Rates
from nanochat.train.pace import Pace
from nanochat.train.progress import Progress
from tests.conftest import LAYER_ATOL
from tests.train.makers import (
    WIDTH,
    Counting,
    Memory,
    Recorder,
    furthest,
    kept_stage,
    masters,
    stage_of,
)

Rows = list[dict[str, float]]


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


@pytest.mark.req("FR-060", "SC-007")
def test_what_a_step_measured_is_read_a_step_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """It sets out before the next step is asked for, behind which it would have to wait, and nobody
    reads a tensor any other way: so on an accelerator nothing waits for the newest step."""
    told: list[str] = []

    class Recorded(Arrival):
        def __init__(self, parts: Sequence[Tensor]) -> None:
            told.append("sets out")
            super().__init__(parts)

        def read(self) -> list[Any]:
            told.append("is read")
            return super().read()

    def loss(model: GPT, batch: Batch) -> Tensor:
        told.append("step")
        return loss_sum(model, batch)

    def refuse(tensor: Tensor) -> Any:
        raise AssertionError("the host waits for a tensor")

    monkeypatch.setattr(module, "Arrival", Recorded)
    monkeypatch.setattr(module, "loss_sum", loss)
    monkeypatch.setattr(optim, "_is_here", lambda tensor: False)
    monkeypatch.setattr(torch.Tensor, "__bool__", refuse)
    monkeypatch.setattr(torch.Tensor, "__float__", refuse)
    fit(stage_of(num_steps=4))
    first, others = ["step", "sets out", "is read"], ["step", "sets out"]
    assert told == [*first, *others, *others, "is read", *others, "is read", "is read"]


@pytest.mark.gpu
@pytest.mark.req("FR-060", "SC-007")
def test_a_gpu_is_never_waited_for() -> None:
    """torch.cuda.set_sync_debug_mode makes an error of what waits for all that was asked for."""

    def stage() -> Stage:
        made = stage_of(num_steps=6)
        model = made.model.to("cuda")
        return dataclasses.replace(made, model=model, optimizer=Optimizer(model, RECIPES["v5"]))

    expected = [row["loss"] for row in fit(stage())]
    again = stage()
    torch.cuda.set_sync_debug_mode("error")
    try:
        rows = fit(again)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [row["loss"] for row in rows] == pytest.approx(expected, rel=1e-4)


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


def test_the_display_is_told() -> None:
    display = Recorder()
    stage = stage_of(num_steps=3, display=display)
    fit(stage)
    lr = stage.optimizer.rates_by_role()["matrix"]
    assert display.told == [("test", 3, lr), 1, 2, 3, "stop"]


@pytest.mark.req("FR-016", "FR-035")
def test_waits_for_batches_are_told_to_who_compares_the_ranks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[float] = []
    monkeypatch.setattr(Pace, "waited", lambda pace, seconds: told.append(seconds))
    rows = fit(stage_of(num_steps=3))
    assert told == [row["data_wait_s"] for row in rows]

"""The only training loop when something is wrong: numbers that overflow, memory, signals, data."""

import dataclasses
import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nanochat.batches.batch import Batch
from nanochat.common.errors import DataError, Stopped, TrainingError
from nanochat.model.gpt import GPT
from nanochat.train import loop as module
from nanochat.train.loop import Stage, fit
from nanochat.train.loss import loss_sum
from nanochat.train.optim import Rates
from nanochat.train.plan import Plan
from nanochat.train.progress import Progress
from tests.train.makers import (
    Counting,
    Memory,
    Recorder,
    furthest,
    kept_stage,
    masters,
    stage_of,
)

Rows = list[dict[str, float]]


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

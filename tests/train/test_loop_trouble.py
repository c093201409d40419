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


@pytest.mark.req("FR-020", "FR-060", "EC-8")
def test_a_checkpoint_within_a_streak_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights are those of before the streak, of which nobody knows whether they are good."""
    memory = Memory()
    stage = kept_stage(memory, num_steps=9, save_every=3, max_skips=3)
    stage, loss = poison(stage, {4, 5, 6})
    monkeypatch.setattr(module, "loss_sum", loss)
    fit(stage)
    assert [kept[2].streak for kept in memory.kept.values()] == [0, 0, 0]
    saves = [told[1] for told in memory.told if told[0] == "save"]
    assert saves == [3, 6, 6, 9], "the one of step 6 within the streak, and again after it"
    assert memory.kept[9][2].skipped == (3, 4, 5, 6)


@pytest.mark.req("FR-020", "FR-060", "EC-8")
def test_a_streak_outlives_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two updates were thrown away before the run was stopped, one after: that is three."""
    memory = Memory()
    stage, loss = poison(kept_stage(memory, num_steps=9, max_skips=3), {6})
    progress = Progress(step=6, discarded=(4, 5), streak=2)
    monkeypatch.setattr(module, "loss_sum", loss)
    with pytest.raises(TrainingError, match="3 updates in a row .* no checkpoint to go back to"):
        fit(dataclasses.replace(stage, progress=progress))


@pytest.mark.req("FR-020", "FR-060", "EC-5", "EC-8")
def test_a_signal_while_going_back_is_obeyed_after_the_next_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The checkpoint gone back to knows of no return; one of the step after it does."""
    memory = Memory()
    stage = kept_stage(memory, num_steps=9, save_every=4, max_skips=2)
    stage, loss = poison(stage, {4, 5})
    step, calls = stage.optimizer.step, [0]

    def step_and_send(rates: Rates, is_good: Tensor) -> None:
        step(rates, is_good)
        calls[0] += 1
        if calls[0] == 6:  # of batch 5, whose loss is read when the signal has been seen
            os.kill(os.getpid(), signal.SIGTERM)

    stage.optimizer.step = step_and_send  # type: ignore[method-assign]
    monkeypatch.setattr(module, "loss_sum", loss)
    with pytest.raises(Stopped, match="after step 5 of 9, and saved: the same command goes on"):
        fit(stage)
    progress = memory.kept[5][2]
    assert progress.num_returns == 1 and progress.skipped == (4, 5)


@pytest.mark.req("FR-019", "FR-020", "EC-5")
def test_a_signal_while_the_last_checkpoint_is_written() -> None:
    """It is waited for: finish() comes before signals are obeyed again."""
    memory = Memory()
    stage = kept_stage(memory, num_steps=3)

    def finish() -> None:
        if "finish" not in memory.told:
            os.kill(os.getpid(), signal.SIGTERM)
        memory.told.append("finish")

    memory.finish = finish  # type: ignore[method-assign]
    with pytest.raises(Stopped, match="after step 3 of 3, and saved: it is finished") as stopped:
        fit(stage)
    assert stopped.value.exit_code == 143 and max(memory.kept) == 3


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


@pytest.mark.parametrize("place", ["update", "gradients", "validation"])
@pytest.mark.req("EC-1")
def test_memory_that_runs_out_elsewhere_is_explained(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AdamW's moments are made at the first update; nothing of it can be done in smaller parts."""

    def fail(*arguments: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    stage = stage_of(validate=fail if place == "validation" else None, eval_every=1)
    if place == "update":
        monkeypatch.setattr(torch.optim.AdamW, "step", fail)
    if place == "gradients":
        stage.optimizer.gradients = fail  # type: ignore[method-assign]
    where = {"gradients": "the sums of gradients", "update": "the update"}.get(place, place)
    what = rf"out of memory in {where} of a model of [\d,]+ weights on cpu, which has [\d.]+ GiB"
    why = r" \(CUDA out of memory. Tried to allocate 2 GiB\): lower --depth"
    with pytest.raises(TrainingError, match=what + why):
        fit(stage)


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

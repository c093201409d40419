"""A stage of training in small, and those who are told of it.   in: what matters to the test
out: Stage, a stream, a keeper, a display
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nanochat.batches.batch import Batch
from nanochat.train.display import Display
from nanochat.train.loop import Stage
from nanochat.train.optim import RECIPES, Optimizer
from nanochat.train.plan import Plan
from nanochat.train.progress import Progress
from nanochat.train.schedule import Schedule
from tests.fakes import random_gpt, tiny_config

__all__ = [
    "WIDTH",
    "Counting",
    "Memory",
    "Recorder",
    "furthest",
    "kept_stage",
    "masters",
    "plan_of",
    "stage_of",
]

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
        steady = [step for step, (_, _, progress) in self.kept.items() if not progress.streak]
        if not steady:
            return None
        self.kept = {step: kept for step, kept in self.kept.items() if step <= max(steady)}
        weights, state, progress = self.kept[max(steady)]
        self.stage.optimizer.load_masters(weights)
        self.stage.optimizer.load_state(state)
        return progress


def kept_stage(memory: Memory, **changes: Any) -> Stage:
    stage = stage_of(keeper=memory, **changes)
    memory.stage = stage
    return stage


class Recorder(Display):
    """A display that writes down what it is told."""

    def __init__(self) -> None:
        super().__init__(is_quiet=True)
        self.told: list[Any] = []

    def start(self, stage: str, num_steps: int, lr: float) -> None:
        self.told.append((stage, num_steps, lr))

    def note(self, text: str) -> None:
        self.told.append(text)

    def step(self, metrics: Any) -> None:
        self.told.append(int(metrics["step"]))

    def stop(self) -> None:
        self.told.append("stop")

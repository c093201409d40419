"""A plan on many ranks -> what each holds, sends and waits for.   in: GPTConfig, Plan, Fleet
out: Scale   who calls: pretrain.py (--plan-world-size), scripts/docs.py

Bytes are exact but for activations (estimate.py) and what a sharded model brings together for a
moment (an upper bound); seconds are an estimate, by stated speeds:
    step = compute + what sums are not hidden behind the last part's backward + update
Read next: traffic.py (the bytes), fleet.py (the machines), docs/scale.md (the table).
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from nanochat.model.config import GPTConfig
from nanochat.model.cost import count_parameters
from nanochat.model.gpt import GPT
from nanochat.train.display import format_duration
from nanochat.train.estimate import USUAL_MFU, activation_bytes_per_token
from nanochat.train.fleet import Fleet
from nanochat.train.plan import Plan
from nanochat.train.traffic import (
    Collective,
    RankMemory,
    Shapes,
    memory_sharded,
    memory_whole,
    muon_flops,
    traffic_sharded,
    traffic_whole,
)

__all__ = ["Scale", "scale_of", "shapes_of"]

BACKWARD_SHARE = 2 / 3  # of a part's time: two products for each one of the forward pass
GIB = 2**30


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """What one rank of many has to do; the fullest one, where they differ."""

    num_ranks: int
    fleet: Fleet
    parameters: int
    is_sharded: bool
    rows: int
    """Of a step's batch; some ranks may have one less."""
    device_rows: int
    """Computed at once."""
    num_parts: int
    """In which the rows are computed, one after the other."""
    num_idle: int
    """Ranks without a row."""
    memory: RankMemory
    activation_bytes: int
    collectives: tuple[Collective, ...]
    """Of one step."""
    compute_s: float
    """Of a step: forward and backward."""
    update_s: float
    """Of a step: Muon's products of the rank that has most of them."""
    waiting_s: float
    """Of a step: messages that nothing hides."""
    ideal_s: float
    """Of a step, if the work of one rank were spread evenly and nobody waited."""
    num_steps: int

    @property
    def memory_bytes(self) -> int:
        """All that a rank holds."""
        return self.memory.total + self.activation_bytes

    @property
    def sent_bytes(self) -> int:
        """What a rank sends in a step, on average."""
        return sum(each.sent_bytes(self.num_ranks) for each in self.collectives)

    @property
    def num_messages(self) -> int:
        """Collectives of a step."""
        return sum(each.num_calls for each in self.collectives)

    @property
    def step_s(self) -> float:
        """Seconds of a step."""
        return self.compute_s + self.update_s + self.waiting_s

    @property
    def efficiency(self) -> float:
        """1 where so many ranks are so many times as fast as one that only computes."""
        return self.ideal_s / self.step_s

    def lines(self) -> list[tuple[str, str, str]]:
        """Name, value and reason of each number, as Plan.lines gives them."""
        fleet, memory = self.fleet, self.memory
        idle = f"; {self.num_idle} ranks have none" if self.num_idle else ""
        together = f", brought together {_gib(memory.gathered)}" if self.is_sharded else ""
        lines = [
            ("parameters", f"{self.parameters:,}", ""),
            (
                "ranks",
                f"{self.num_ranks}",
                f"{fleet.name}: {fleet.memory_bytes / GIB:.0f} GiB, "
                f"{fleet.flops_per_s / 1e12:.3g} TFLOP/s, {fleet.per_machine} a machine, "
                f"{fleet.inside_bytes_per_s / 1e9:g} GB/s to each other, "
                f"{fleet.between_bytes_per_s / 1e9:g} GB/s to another machine",
            ),
            ("rows a rank", f"{self.rows}", f"{self.device_rows} at once{idle}"),
            (
                "memory a rank",
                f"{self.memory_bytes / GIB:.2f} GiB",
                f"weights {_gib(memory.weights)}, gradients {_gib(memory.gradients)}, moments "
                f"{_gib(memory.moments)}, activations {_gib(self.activation_bytes)}{together}",
            ),
            ("sent a step", f"{_gib(self.sent_bytes)} GiB", f"by each rank; {self._messages()}"),
            (
                "a step",
                f"{self.step_s:.3f} s",
                f"computing {self.compute_s:.3f}, update {self.update_s:.3f}, waiting for others "
                f"{self.waiting_s:.3f}; {self.efficiency:.0%} of {self.num_ranks} alone; estimated",
            ),
            ("time", format_duration(self.num_steps * self.step_s), "without validation"),
        ]
        return lines

    def _messages(self) -> str:
        told = [
            f"{each.kind} {_gib(each.payload_bytes)} GiB in {each.num_calls:,}"
            for each in self.collectives
        ]
        return ", ".join(told) or "there is nobody to send to"

    def to_json(self) -> dict[str, Any]:
        """Every number, for --json."""
        return {
            **asdict(self),
            "memory_bytes": self.memory_bytes,
            "sent_bytes": self.sent_bytes,
            "num_messages": self.num_messages,
            "step_s": self.step_s,
            "efficiency": self.efficiency,
        }


def shapes_of(config: GPTConfig) -> Shapes:
    """The shape of every weight, by name; nothing is built."""
    with torch.device("meta"):
        return {name: tuple(each.shape) for name, each in GPT(config).named_parameters()}


def scale_of(
    config: GPTConfig, plan: Plan, fleet: Fleet, num_ranks: int, *, compute_bytes: int
) -> Scale:
    """A plan for so many ranks, in numbers; weights are computed with in `compute_bytes` each."""
    shapes = shapes_of(config)
    rows = -(-plan.batch_rows // num_ranks)
    device_rows = min(plan.device_batch_rows, rows)
    num_parts = -(-rows // device_rows)
    if plan.is_sharded:
        memories = memory_sharded(shapes, num_ranks, compute_bytes)
        collectives = traffic_sharded(shapes, num_ranks, compute_bytes, num_parts)
    else:
        memories = memory_whole(shapes, num_ranks, compute_bytes)
        collectives = traffic_whole(shapes, num_ranks, compute_bytes)
    per_token = activation_bytes_per_token(config, recomputes=plan.recomputes)
    flops_per_s = USUAL_MFU * fleet.flops_per_s
    recompute = 4 / 3 if plan.recomputes else 1.0
    row_s = plan.context_len * plan.flops_per_token * recompute / flops_per_s
    update_s = max(muon_flops(shapes, num_ranks, is_sharded=plan.is_sharded)) / flops_per_s
    compute_s = rows * row_s
    own_s = sum(muon_flops(shapes, 1, is_sharded=False)) / flops_per_s
    return Scale(
        num_ranks=num_ranks,
        fleet=fleet,
        parameters=count_parameters(config).total,
        is_sharded=plan.is_sharded,
        rows=rows,
        device_rows=device_rows,
        num_parts=num_parts,
        num_idle=max(0, num_ranks - plan.batch_rows),
        memory=max(memories, key=lambda each: each.total),
        activation_bytes=device_rows * plan.context_len * per_token,
        collectives=tuple(collectives),
        compute_s=compute_s,
        update_s=update_s,
        waiting_s=_waiting_s(collectives, fleet, num_ranks, compute_s, num_parts, update_s),
        ideal_s=(plan.batch_rows * row_s / recompute + own_s) / num_ranks,
        num_steps=plan.num_steps,
    )


def _waiting_s(
    collectives: list[Collective],
    fleet: Fleet,
    num_ranks: int,
    compute_s: float,
    num_parts: int,
    update_s: float,
) -> float:
    """What remains of the messages once computing has gone on beside them."""
    took_s = {
        each.kind: each.num_calls * fleet.ring_s(num_ranks)
        + each.sent_bytes(num_ranks) / fleet.link_bytes_per_s(num_ranks)
        for each in collectives
    }
    backward_s = BACKWARD_SHARE * compute_s / num_parts  # of the last part
    beside_compute_s = took_s.get("all_gather", 0.0) + took_s.get("reduce_scatter", 0.0)
    return (
        max(0.0, took_s.get("reduce", 0.0) - backward_s)
        + max(0.0, took_s.get("broadcast", 0.0) - update_s)
        + max(0.0, beside_compute_s - compute_s)
        + took_s.get("all_to_all", 0.0)
        + took_s.get("all_reduce", 0.0)
    )


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.2f}"

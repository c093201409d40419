"""Machines to plan for.   in: a name, or this machine   out: Fleet   who calls: pretrain.py
(--plan-world-size)

Read next: scale.py (what a run takes on them).
"""

from dataclasses import dataclass, replace
from typing import Literal

__all__ = ["FLEETS", "Fleet", "FleetName", "fleet_here", "fleet_named"]

FleetName = Literal["here", "a100", "h100", "h200"]

# Of what a link is said to carry, large messages reach so much: nccl-tests on NVLink and on
# InfiniBand report 75 to 90%.
USUAL_LINK = 0.8
TEN_GIGABIT = 1.25e9
TCP_HOP_S = 50e-6  # a round trip between machines of one room, and the process waking up


@dataclass(frozen=True, kw_only=True, slots=True)
class Fleet:
    """Equal machines with equal devices, a rank each."""

    name: str
    device_type: str
    memory_bytes: int
    """Of a device."""
    flops_per_s: float
    """Dense products in the dtype that is computed in."""
    per_machine: int
    """Devices of a machine."""
    inside_bytes_per_s: float
    """What a device sends to others of its machine, one way."""
    between_bytes_per_s: float
    """What a device sends to another machine, one way."""
    inside_hop_s: float = 2e-6
    between_hop_s: float = 8e-6
    """How long the first byte takes to the next device of a ring, a kernel's start included."""

    def link_bytes_per_s(self, num_ranks: int) -> float:
        """What each of so many ranks sends while all do: the slowest link of the ring decides."""
        is_one_machine = num_ranks <= self.per_machine
        link = self.inside_bytes_per_s if is_one_machine else self.between_bytes_per_s
        return USUAL_LINK * link

    def ring_s(self, num_ranks: int) -> float:
        """How long the first byte takes around all ranks."""
        num_machines = -(-num_ranks // self.per_machine)
        between = num_machines if num_machines > 1 else 0
        return (num_ranks - 1 - between) * self.inside_hop_s + between * self.between_hop_s


def _nvidia(name: str, gibibytes: int, flops: float, nvlink: float, network: float) -> Fleet:
    return Fleet(
        name=name,
        device_type="cuda",
        memory_bytes=gibibytes * 2**30,
        flops_per_s=flops,
        per_machine=8,
        inside_bytes_per_s=nvlink,
        between_bytes_per_s=network,
    )


# Memory as the driver reports it; the makers' data sheets for bfloat16 products, NVLink one way
# (half of what is printed) and one network card a device, of 200 Gbit/s beside A100s and 400 else.
FLEETS = {
    "a100": _nvidia("a100", 79, 312e12, 300e9, 25e9),
    "h100": _nvidia("h100", 79, 989e12, 450e9, 50e9),
    "h200": _nvidia("h200", 139, 989e12, 450e9, 50e9),
}


def fleet_here(device_type: str, memory_bytes: int, flops_per_s: float) -> Fleet:
    """Machines like this one, each with one device and 10 Gbit/s to the others."""
    return Fleet(
        name=f"{device_type} as here",
        device_type=device_type,
        memory_bytes=memory_bytes,
        flops_per_s=flops_per_s,
        per_machine=1,
        inside_bytes_per_s=TEN_GIGABIT,
        between_bytes_per_s=TEN_GIGABIT,
        inside_hop_s=TCP_HOP_S,
        between_hop_s=TCP_HOP_S,
    )


def fleet_named(
    name: FleetName,
    *,
    here: Fleet | None = None,
    is_narrow: bool = True,
    between_bytes_per_s: float | None = None,
) -> Fleet:
    """The machines of a name; `here` are those like this one.

    `between_bytes_per_s` replaces the speed between machines.  Where products are not `is_narrow`,
    a named device reaches half.
    """
    fleet = here if name == "here" else FLEETS[name]
    assert fleet is not None, "nobody has said what is here"
    if name != "here" and not is_narrow:
        fleet = replace(fleet, flops_per_s=fleet.flops_per_s / 2)
    if between_bytes_per_s is not None:
        fleet = replace(fleet, between_bytes_per_s=between_bytes_per_s)
    return fleet

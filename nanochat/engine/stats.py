"""What an engine is doing, and has done.   in: nothing   out: EngineStats
who calls: engine.py, worker.py, server   (imports no torch)

Read next: engine.py (who counts).
"""

from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["EngineStats", "total"]


class EngineStats(NamedTuple):
    """Numbers of one moment; the last four only grow."""

    num_waiting: int = 0
    num_running: int = 0
    num_blocks: int = 0
    num_free_blocks: int = 0
    num_steps: int = 0
    num_fed_tokens: int = 0
    num_hit_tokens: int = 0
    """Tokens whose keys were found instead of computed."""
    num_preemptions: int = 0

    @property
    def kv_usage(self) -> float:
        """How much of the memory for keys and values holds what is being written: 0 to 1."""
        num_used = self.num_blocks - self.num_free_blocks
        return num_used / self.num_blocks if self.num_blocks else 0.0


def total(stats: Iterable[EngineStats]) -> EngineStats:
    """Of several engines together."""
    sums = [sum(numbers) for numbers in zip(*stats, strict=True)]
    return EngineStats(*sums)

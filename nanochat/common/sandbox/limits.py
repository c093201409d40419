"""How much a program may take, and what is told of it.   in: numbers   out: SandboxLimits, Outcome
who calls: box, watch, evals.code

Read next: watch.py (who enforces time and output), walls.py (who enforces the rest).
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from nanochat.common.errors import ConfigError

__all__ = ["Outcome", "SandboxLimits", "Status"]

MIB = 1 << 20

Status = Literal[
    "finished",
    "exited",
    "raised",
    "timeout",
    "memory",
    "output",
    "disk",
    "forbidden",
    "killed",
]
"""How a program ended.

    finished   ran to its end
    exited     left before its end: sys.exit, os._exit
    raised     an exception nobody caught
    timeout    wall clock or CPU time ran out
    memory     MemoryError
    output     wrote more to stdout or stderr than may be kept
    disk       wrote more files than its folder may hold
    forbidden  did what only an attack does (SIGSYS), or a PermissionError nobody caught
    killed     any other signal
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class SandboxLimits:
    """What one program may take."""

    wall_s: float = 5.0
    """Seconds from its start to its end."""
    cpu_s: int | None = None
    """Seconds of CPU time.  None: a second more than the wall clock allows."""
    memory_bytes: int = 256 * MIB
    """Address space, the interpreter's own 30 MB included."""
    disk_bytes: int = 16 * MIB
    """All files of its private folder together, and also the largest single one."""
    num_files: int = 1000
    """Files and directories in its private folder."""
    num_descriptors: int = 64
    """Files open at a time."""
    output_bytes: int = MIB
    """What it may write to stdout, and again to stderr."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"{field.name} is {value}, expected a number above 0")

    @property
    def whole_cpu_s(self) -> int:
        """The CPU seconds the kernel is told; it counts whole ones."""
        return self.cpu_s if self.cpu_s is not None else math.ceil(self.wall_s) + 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of a program.

    A program may lie about its own end: "finished" is its word, "timeout" is ours.  Whether it is
    right is decided elsewhere, by checks in a process of their own (evals/code.py).
    """

    status: Status
    detail: str = ""
    """The exception, the signal or the limit; a line."""
    stdout: str = ""
    stderr: str = ""
    exit_code: int | None = None
    """None where a signal ended it."""
    wall_s: float = 0.0
    cpu_s: float = 0.0
    max_rss_bytes: int = 0

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Outcome":
        """The outcome a watcher has written.

        Raises: ValueError for a status that does not exist, TypeError for a field that does not.
        """
        outcome = cls(**values)
        if outcome.status not in get_args(Status):
            raise ValueError(f"status {outcome.status!r}")
        return outcome

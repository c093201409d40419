"""A process that has ended -> Outcome.   in: wait status, what it wrote   out: Outcome
who calls: watch.py

Only a limit, a signal and an exit code are facts; a finished program or an exception is what the
process said of itself.
Read next: limits.py (the statuses).
"""

import json
import os
import signal
from dataclasses import dataclass, field
from typing import Any

from nanochat.common.sandbox.limits import Outcome, Status

__all__ = ["Process", "outcome_of", "printable", "report_of"]

MOST_DETAIL = 500


@dataclass(slots=True)
class Process:
    """A process, what it has written, and how it ended."""

    pid: int
    pipes: dict[int, str]
    most_bytes: dict[str, int]
    started_s: float
    written: dict[str, bytearray] = field(default_factory=dict)
    stopped: Status | None = None
    """Why we ended it."""
    ending: tuple[int, float, int] | None = None
    """Wait status, CPU seconds, peak bytes."""
    ended_s: float = 0.0


def printable(text: str) -> str:
    """The text as any file or terminal takes it: a program's message may hold half a character."""
    return text.encode("utf-8", "replace").decode()


def report_of(process: Process) -> dict[str, Any]:
    """What a child said of itself; anything at all, if a program wrote it."""
    try:
        value = json.loads(bytes(process.written["report"][4:]))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def outcome_of(process: Process) -> Outcome:
    """What is told of a process that has ended."""
    assert process.ending is not None, f"child {process.pid} was not waited for"
    wait_status, cpu_s, max_rss_bytes = process.ending
    code = os.waitstatus_to_exitcode(wait_status)
    status, detail = _status(process, code)
    return Outcome(
        status=status,
        detail=printable(detail)[:MOST_DETAIL],
        stdout=process.written["stdout"].decode("utf-8", "replace"),
        stderr=process.written["stderr"].decode("utf-8", "replace"),
        exit_code=code if code >= 0 else None,
        wall_s=process.ended_s - process.started_s,
        cpu_s=cpu_s,
        max_rss_bytes=max_rss_bytes,
    )


def _status(process: Process, code: int) -> tuple[Status, str]:
    if process.stopped == "finished":
        return "finished", ""
    if process.stopped is not None:
        return process.stopped, f"stopped by its limit: {process.stopped}"
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        if -code == signal.SIGSYS:
            return "forbidden", "made a system call that only an attack makes"
        if -code in (signal.SIGXCPU, signal.SIGKILL):
            return "timeout", f"CPU time ran out ({name})"
        return "killed", f"died of {name}"
    report = report_of(process)
    end, detail = report.get("end"), str(report.get("detail", ""))
    if end == "finished" and code == 0:
        return "finished", detail
    if end == "raised":
        kind, message = str(report.get("type")), str(report.get("message"))
        statuses: dict[str, Status] = {"MemoryError": "memory", "PermissionError": "forbidden"}
        return statuses.get(kind, "raised"), f"{kind}: {message}".removesuffix(": ")
    return "exited", detail or f"left with exit code {code}"

"""Processes that tests have started, or heard of.   in: a process's number   out: does it run"""

import os
from pathlib import Path

__all__ = ["is_alive"]


def is_alive(process_id: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has waited for does not."""
    try:
        os.kill(process_id, 0)
        status = Path(f"/proc/{process_id}/status")  # Linux alone tells the two apart
        return not status.exists() or "\nState:\tZ" not in status.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False

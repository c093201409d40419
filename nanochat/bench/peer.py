"""A peer's script -> its figures.   in: a command   out: the JSON object it prints last
who calls: train.py, decode.py, data.py, core.py

Peers are measured in processes of their own: with their own imports, threads and memory, and what
ends them does not end us.
Read next: peer_train.py (one such script).
"""

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nanochat.common.errors import NanochatError

__all__ = ["PeerFailed", "peer_figures"]

PEER_S = 1800  # one that compiles for longer is given up


class PeerFailed(NanochatError, RuntimeError):
    """A measured program that ended without figures."""

    def __init__(self, message: str, signal: int | None = None) -> None:
        super().__init__(message)
        self.signal = signal
        """The number of the signal that ended it."""


def peer_figures(
    name: str,
    command: Sequence[str],
    environment: Mapping[str, str],
    cwd: Path | None = None,
) -> Any:
    """What the command's last line on standard output says, as JSON.

    Raises: PeerFailed with the program's last line on standard error.
    """
    try:
        done = subprocess.run(
            list(command),
            env=environment,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=PEER_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise PeerFailed(f"{name} had no figures after {PEER_S:g} s: measure less of it") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing on stderr"])[-1]
        raise PeerFailed(
            f"{name} failed with code {done.returncode}: {last}",
            signal=-done.returncode if done.returncode < 0 else None,
        )
    return json.loads(done.stdout.strip().splitlines()[-1])

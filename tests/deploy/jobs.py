"""A small pretraining run for jobs of several processes, and what came of it."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nanochat.tokenizer.tokenizer import Tokenizer
from tests.train.test_failures import command, in_ranks, losses_of

__all__ = [
    "command",
    "process_of_rank",
    "running",
    "stage_of",
    "steps_done",
    "undisturbed_losses",
    "wait_until",
]


def undisturbed_losses(folder: Path, tokenizer: Tokenizer) -> list[float]:
    """Of the run that `command` asks for, on two ranks that nobody disturbs."""
    tokenizer.save(folder / "tokenizer.json")
    os.environ["UNDISTURBED"] = str(folder / "undisturbed")
    try:
        assert [code for code, _ in in_ranks(2, "pretrain", folder)] == [0, 0]
    finally:
        del os.environ["UNDISTURBED"]
    return losses_of(stage_of(folder / "undisturbed"))


def stage_of(home: Path) -> Path:
    """Where `command` puts its stage."""
    return home / "runs" / "tiny" / "pretrain"


def steps_done(home: Path) -> int:
    """As metrics.jsonl has it."""
    metrics = stage_of(home) / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def process_of_rank(home: Path, rank: int) -> int:
    """The newest process that was this rank (not the first), as its log has it."""
    log = (stage_of(home) / f"log.rank{rank}.txt").read_text()
    return int(re.findall(rf"rank {rank} \(.*, process (\d+)\)", log)[-1])


@contextmanager
def running(
    words: list[str], environment: dict[str, str], output: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    """A job in a session of its own, of which nothing is left afterwards."""
    with output.open("a") as file:
        job = subprocess.Popen(
            words, env=environment, stdout=file, stderr=file, start_new_session=True
        )
    try:
        yield job
    finally:
        try:
            os.killpg(job.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        job.wait()


def wait_until(is_so: Callable[[], bool], what: str, seconds: float = 90) -> None:
    """Until something is so.

    Raises: AssertionError saying what, if it takes too long.
    """
    end_s = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end_s, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.01)

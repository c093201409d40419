"""A small pretraining run for jobs of several processes, and what came of it."""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from nanochat.tokenizer.tokenizer import Tokenizer
from tests.conftest import REPOSITORY
from tests.train.test_failures import command, in_ranks, losses_of

__all__ = [
    "PATIENCE_S",
    "Undisturbed",
    "paced",
    "process_of_rank",
    "running",
    "stage_of",
    "steps_done",
    "undisturbed",
]


PATIENCE_S = 250.0  # jobs take 20 s on an idle machine; on a busy one ten times that


# Read by every Python that starts: a rank goes slowly after its twelfth step, so that whoever looks
# on has seconds to do something to it.
PACE = """
import os, time

if os.environ.get("RANK") and os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0":
    from nanochat.train.optim import Optimizer

    step, seen = Optimizer.step, []

    def paced(*arguments, **more):
        seen.append(step(*arguments, **more))
        if len(seen) >= 12:
            time.sleep(0.3)

    Optimizer.step = paced
"""


def paced(folder: Path) -> dict[str, str]:
    """What the environment of a job says that is to be slow."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(PACE)
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(REPOSITORY)])}


class Undisturbed(NamedTuple):
    """What a job has to end with, whatever happens to it."""

    losses: list[float]
    tokenizer: Path

    def words(self, home: Path, *more: str) -> list[str]:
        """The same run in another home."""
        home.mkdir(exist_ok=True)
        shutil.copy(self.tokenizer, home.parent)  # where `command` looks
        return command(home, *more)


def undisturbed(folder: Path, tokenizer: Tokenizer) -> Undisturbed:
    """The run that `command` asks for, on two ranks."""
    tokenizer.save(folder / "tokenizer.json")
    os.environ["UNDISTURBED"] = str(folder / "home")
    try:
        assert [code for code, _ in in_ranks(2, "pretrain", folder)] == [0, 0]
    finally:
        del os.environ["UNDISTURBED"]
    return Undisturbed(losses_of(stage_of(folder / "home")), folder / "tokenizer.json")


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

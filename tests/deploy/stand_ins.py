"""Small stand-ins for SLURM's commands: one machine, tasks that are processes.

srun      starts SLURM_NTASKS processes, passes USR1 and TERM on, ends all when one has failed
scontrol  knows one host, and writes down what is requeued
"""

import os
import sys
from pathlib import Path

from tests.conftest import REPOSITORY

__all__ = ["install"]

SRUN = """
import os, signal, subprocess, sys, time

words = sys.argv[1:]
assert words.pop(0) == "--kill-on-bad-exit=1", words
size = int(os.environ["SLURM_NTASKS"])
tasks = []

def forward(number, frame):
    for task in tasks:
        if task.poll() is None:
            task.send_signal(number)

for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, forward)
for rank in range(size):
    place = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
    tasks.append(subprocess.Popen(words, env=os.environ | place))
while any(task.poll() is None for task in tasks):
    if any(task.poll() for task in tasks):  # one has failed: the others are given a moment
        end_s = time.monotonic() + 30
        while time.monotonic() < end_s and any(task.poll() is None for task in tasks):
            time.sleep(0.05)
        for task in tasks:
            if task.poll() is None:
                task.kill()
    time.sleep(0.05)
sys.exit(max(code if code >= 0 else 128 - code for code in (task.wait() for task in tasks)))
"""

SCONTROL = """
import os, sys

match sys.argv[1:]:
    case ["show", "hostnames", "here"]:
        print("127.0.0.1")
    case ["requeue", job]:
        with open(os.environ["REQUEUED"], "a") as file:
            print(job, file=file)
    case words:
        sys.exit(f"scontrol: {words}")
"""


def install(folder: Path, python: str = sys.executable) -> dict[str, str]:
    """The programs in a folder, nanochat run by that python; the environment that finds them, and
    says what SLURM says."""
    folder.mkdir()
    programs = {
        "srun": f"#!{sys.executable}\n{SRUN}",
        "scontrol": f"#!{sys.executable}\n{SCONTROL}",
        "nanochat": f'#!/bin/sh\nexec {python} -m nanochat "$@"\n',
    }
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{folder}:{os.environ['PATH']}",
        "REQUEUED": str(folder / "requeued"),
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NODELIST": "here",
        "SLURM_NTASKS": "2",
        "SLURM_TASKS_PER_NODE": "2(x1)",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(REPOSITORY),
    }

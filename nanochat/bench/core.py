"""How fast CORE is, beside karpathy/nanochat's own loop.   in: a checkpoint of theirs, the data
out: one JSON object   who calls: make bench-eval, or `python -m nanochat.bench.core BASE DATA PEER`

Both sides read, shuffle, render, encode and score the same examples of the same tasks on this CPU
in float32, weights loaded before the clock starts.  They take turns, three passes each, the peer in
a process of its own; medians are compared, and accuracies have to be equal.
Read next: peer_core.py; evals/runner.py (what is measured).
"""

import gzip
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nanochat.bench.peer import peer_figures
from nanochat.checkpoint.resolve import load
from nanochat.common.errors import DataError, EvalError
from nanochat.engine.engine import Engine
from nanochat.evals.core import CORE_TABLE, CORE_TASKS
from nanochat.evals.data import DataFiles
from nanochat.evals.examinee import EngineExaminee
from nanochat.evals.runner import RunOptions, run_tasks

__all__ = ["CoreBench", "bench_core", "main"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CoreBench:
    """What is measured."""

    base: Path
    """karpathy/nanochat's base directory: base_checkpoints/ and tokenizer/."""
    data_dir: Path
    peer: Path | None
    """A checkout of karpathy/nanochat.  None: ours alone."""
    limit: int = 30
    labels: tuple[str, ...] = ()
    """Which tasks; none: all whose data is there."""
    num_threads: int | None = None
    """None: what PyTorch takes."""
    num_passes: int = 3
    """Of each side."""


def bench_core(bench: CoreBench) -> dict[str, Any]:
    """Seconds of both sides, by the clock and of all processors: medians, and their ratios.

    Raises: EvalError where the accuracies differ; DataError without a checkpoint; PeerFailed.
    """
    if bench.num_threads is not None:
        torch.set_num_threads(bench.num_threads)
    checkpoint = next((bench.base / "base_checkpoints").glob("*/model_*.pt"), None)
    if checkpoint is None:
        raise DataError(
            f"{bench.base} has no base_checkpoints/*/model_*.pt: expected a base directory of "
            "karpathy/nanochat's"
        )
    files = DataFiles([bench.data_dir])
    entries = [e for e in CORE_TABLE if not bench.labels or e.label in bench.labels]
    paths = {}
    for entry in entries:
        path = f"eval_bundle/eval_data/{entry.path}.jsonl"
        if any((bench.data_dir / f"{path}{suffix}").is_file() for suffix in ("", ".gz")):
            paths[entry.label] = files.find(path)
    ours, theirs = [], []
    for _ in range(bench.num_passes):
        ours.append(_ours(bench, checkpoint.parent, set(paths)))
        if bench.peer is not None:
            theirs.append(_theirs(bench, checkpoint, paths))
            _check_alike(ours[-1]["accuracy"], theirs[-1]["accuracy"])
    result: dict[str, float] = {
        "limit": bench.limit,
        "tasks": len(paths),
        "passes": bench.num_passes,
    }
    for name in ("seconds", "cpu_seconds"):
        result[name] = statistics.median(each[name] for each in ours)
        if theirs:
            result[f"peer_{name}"] = statistics.median(each[name] for each in theirs)
            result[f"ratio_of_{name}"] = result[f"peer_{name}"] / result[name]
    return result


def _check_alike(ours: dict[str, float], theirs: dict[str, float]) -> None:
    for label, accuracy in theirs.items():
        if abs(accuracy - ours[label]) > 1e-6:
            raise EvalError(
                f"{label}: {ours[label]} against {accuracy} of the peer, expected the same"
            )


def _ours(bench: CoreBench, checkpoint: Path, labels: set[str]) -> dict[str, Any]:
    loaded = load(str(checkpoint))
    engine = Engine(loaded.model, loaded.tokenizer, format="float32")
    examinee = EngineExaminee(name="bench", engine=engine, model_hash="")
    tasks = [task for task in CORE_TASKS if task.name in labels]
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    options = RunOptions(source=DataFiles([bench.data_dir]), limit=bench.limit, mode="nanochat")
    found = run_tasks(examinee, tasks, options)
    return {
        "seconds": time.perf_counter() - start_s,
        "cpu_seconds": time.process_time() - start_cpu_s,
        "accuracy": {label: each.accuracy for label, each in found.items()},
    }


def _theirs(bench: CoreBench, checkpoint: Path, paths: dict[str, Path]) -> dict[str, Any]:
    assert bench.peer is not None, "no peer"
    with tempfile.TemporaryDirectory() as folder:
        tasks = []
        for entry in CORE_TABLE:
            if entry.label not in paths:
                continue
            plain = Path(folder) / f"{entry.label}.jsonl"
            opened = gzip.open if paths[entry.label].suffix == ".gz" else open
            with opened(paths[entry.label], "rb") as packed, plain.open("wb") as file:
                shutil.copyfileobj(packed, file)
            tasks.append(
                {
                    "label": entry.label,
                    "kind": entry.kind,
                    "num_shots": entry.num_shots,
                    "delimiter": entry.delimiter,
                    "path": str(plain),
                }
            )
        setting = {
            "checkpoint": str(checkpoint.parent),
            "step": int(checkpoint.stem.rpartition("_")[2]),
            "tasks": tasks,
            "limit": bench.limit,
            "num_threads": torch.get_num_threads(),
        }
        environment = {
            **os.environ,
            "PYTHONPATH": str(bench.peer),
            "NANOCHAT_BASE_DIR": str(bench.base),
            "NANOCHAT_DTYPE": "float32",
        }
        script = Path(__file__).with_name("peer_core.py")
        command = [sys.executable, str(script), json.dumps(setting)]
        answer: dict[str, Any] = peer_figures("the peer", command, environment, cwd=Path(folder))
    return answer


def main(words: list[str]) -> int:
    """`BASE DATA_DIR [PEER [LIMIT [LABEL...]]]` -> the result as JSON on standard output."""
    base, data_dir, *rest = words
    peer = Path(rest[0]).resolve() if rest and rest[0] != "-" else None
    limit = int(rest[1]) if len(rest) > 1 else 30
    bench = CoreBench(
        base=Path(base).resolve(), data_dir=Path(data_dir).resolve(), peer=peer, limit=limit,
        labels=tuple(rest[2:]),
    )  # fmt: skip
    print(json.dumps(bench_core(bench)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""A server -> does it stand up to users, good and bad.   in: how many, how long
out: one JSON line   who calls: make soak, tests/server

    crowd    64 users for two minutes at depth 4: nobody is refused, no answer fails or stalls, and
             the slowest user gets at least half of what users get on average
    clients  300 ask for long answers and leave after 0.2 s; others trickle, say nothing or are half
             gone (soak_clients.py): one request is answered meanwhile, no memory stays taken
    fuzz     the OpenAPI document's own cases, by the thousand: tests/server's slow tests

Weights are random: `nanochat serve` runs as it does for everybody, in a process of its own.
Exit code 1 if anything failed.
Read next: nanochat/bench/serve.py, scripts/soak_clients.py.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nanochat.bench.load import Lengths, Load, Workload
from nanochat.bench.load_model import write_random_run
from nanochat.bench.serve import ServeBench, bench_serve, serving
from nanochat.model.config import GPTConfig
from scripts import soak_clients

__all__ = ["clients", "crowd", "fuzz", "main", "verdict"]

ROOT = Path(__file__).resolve().parent.parent
LEAST_FAIRNESS = 0.5
LEAVE_OUT = ("errors", "rate", "goodput_per_s", "engine_tokens_per_s", "engine_ttft_s",
             "over_engine", "turns")  # fmt: skip


def crowd(
    users: int, seconds: float, depth: int, vocab_size: int = 32_768, head_dim: int = 128
) -> dict[str, Any]:
    """The row of so many users at once, and whether all went well."""
    workload = Workload(prompt=Lengths.parse("16-128"), output=Lengths.parse("32-128"))
    bench = ServeBench(
        load=Load(workload=workload, seconds=seconds, warmup_s=min(5.0, seconds)),
        users=(users,),
        depth=depth,
        vocab_size=vocab_size,
        head_dim=head_dim,
    )
    (row,) = bench_serve(bench)["rows"]
    row["ok"] = (
        row["num_success"] == row["num_requests"] > 0
        and row["num_stalls"] == 0
        and row["fairness"] >= LEAST_FAIRNESS
    )
    return row if row["errors"] else {name: row[name] for name in row if name not in LEAVE_OUT}


def clients(
    num_aborted: int, num_slow: int, depth: int, vocab_size: int = 32_768, head_dim: int = 128
) -> dict[str, Any]:
    """What clients that go away, and slow ones, leave behind."""
    config = GPTConfig.from_depth(depth, vocab_size=vocab_size, head_dim=head_dim)
    with tempfile.TemporaryDirectory(prefix="nanochat_soak_") as folder:
        path = write_random_run(Path(folder), config)
        with serving(str(path)) as served:
            target = soak_clients.Target(url=served.url, model=served.model)
            result: dict[str, Any] = {
                "aborted": asyncio.run(soak_clients.aborted(target, num_aborted))
            }
            if num_slow:
                result["slow"] = asyncio.run(soak_clients.slow(target, num_slow))
    return {**result, "ok": all(part["ok"] for part in result.values())}


def fuzz(tests: str = "tests/server") -> dict[str, Any]:
    """Whether the slow tests of the server pass, and pytest's last line."""
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-m", "slow", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, tests], cwd=ROOT, capture_output=True, text=True, check=False)
    return verdict(done)


def verdict(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    """What pytest found; what it skipped has not been shown, so that it fails here."""
    lines = done.stdout.strip().splitlines()
    skipped = [line for line in lines if line.startswith("SKIPPED")]
    last = (lines or done.stderr.strip().splitlines() or [""])[-1]
    found = {"pytest": last, "ok": done.returncode == 0 and not skipped}
    return {**found, "skipped": skipped} if skipped else found


def main(argv: list[str] | None = None) -> int:
    """Prints one line; 1 if anything failed."""
    parser = argparse.ArgumentParser(description="A server under load and abuse.")
    parser.add_argument("--users", type=int, default=64, help="0: no crowd")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--aborted", type=int, default=300, help="0: no bad clients")
    parser.add_argument("--slow", type=int, default=30, help="0: none of those that are slow")
    parser.add_argument("--fuzz", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args(argv)
    begin_s = time.monotonic()
    result: dict[str, Any] = {}
    if options.users:
        result["crowd"] = crowd(options.users, options.seconds, options.depth)
    if options.aborted:
        result["clients"] = clients(options.aborted, options.slow, options.depth)
    if options.fuzz:
        result["fuzz"] = fuzz()
    is_good = all(part["ok"] for part in result.values())
    wall_s = round(time.monotonic() - begin_s, 1)
    print(json.dumps({**result, "wall_s": wall_s, "is_good": is_good}))
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())

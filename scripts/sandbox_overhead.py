"""What a sandboxed program costs.   in: how many   out: one JSON line
who calls: make bench-eval, tests/common/test_sandbox_inside.py

    run    a program that does nothing, from its text to its outcome
    check  the same with one test in a process of its own, as HumanEval is judged
Wall clock, median over --programs (50) in a sandbox that is open; beside it what opening one takes,
self-test included.  Exit code 1 if a median is over --limit-ms (60).
Read next: nanochat/common/sandbox/forkserver.py (why so little).
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

from nanochat.common.sandbox.box import Sandbox
from nanochat.common.sandbox.child import Checks

__all__ = ["main", "measure"]


def measure(num_programs: int) -> dict[str, float]:
    """Milliseconds, rounded to a tenth: run, check (medians), open."""
    checks = Checks(tests="assert f(1) == 2", entry_point="f")
    started_s = time.perf_counter()
    with Sandbox() as sandbox:
        sandbox.run("")
        opening_s = time.perf_counter() - started_s
        run_s = _median_s(lambda: sandbox.run("").status == "finished", num_programs)
        check_s = _median_s(
            lambda: sandbox.check("def f(x): return x + 1", checks).passed, num_programs
        )
    figures = {"run_ms": run_s, "check_ms": check_s, "open_ms": opening_s}
    return {name: round(seconds * 1000, 1) for name, seconds in figures.items()}


def main(argv: list[str] | None = None) -> int:
    """Prints the figures; 1 where a program costs more than the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--programs", type=int, default=50)
    parser.add_argument("--limit-ms", type=float, default=60.0)
    options = parser.parse_args(argv)
    figures = measure(options.programs)
    print(json.dumps({"programs": options.programs, **figures}))
    return int(max(figures["run_ms"], figures["check_ms"]) > options.limit_ms)


def _median_s(work: Callable[[], bool], times: int) -> float:
    durations = []
    for _ in range(times):
        started_s = time.perf_counter()
        assert work(), "the program that is measured has failed"
        durations.append(time.perf_counter() - started_s)
    return statistics.median(durations)


if __name__ == "__main__":
    sys.exit(main())

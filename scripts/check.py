"""The repository -> is it in order.   in: the working tree   out: one line a check, and what failed
who calls: make check

All checks run, so that one run shows all that is wrong.  What the tests execute is taken from the
last `make test`; if sources changed since, the tests run again first.
"""

import subprocess
import sys
import time
from pathlib import Path

__all__ = ["main", "needs_test_run"]

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
BIN = Path(PYTHON).parent
FOLDERS = ("nanochat", "scripts", "tests", "deploy")
TESTS = ("make", "--no-print-directory", "test")
CHECKS = {
    "format": (f"{BIN}/ruff", "format", "--check", *FOLDERS),
    "lint": (f"{BIN}/ruff", "check", *FOLDERS),
    "types": (f"{BIN}/mypy",),
    "layers": (f"{BIN}/lint-imports", "--no-logo"),
    "docs": (PYTHON, "scripts/docs.py", "--check"),
    "requirements": (PYTHON, "scripts/requirements.py"),
    "coverage": (PYTHON, "-m", "coverage", "report"),
    "public names": (PYTHON, "scripts/public_names.py"),
}
TELLS = ("requirements", "public names")  # their last line is worth reading when all is well too


def needs_test_run(root: Path = ROOT) -> bool:
    """Whether a source is newer than the coverage data, or there is none."""
    data = root / ".coverage"
    if not data.exists():
        return True
    sources = (path for folder in FOLDERS for path in (root / folder).rglob("*.py"))
    return max(path.stat().st_mtime for path in sources) > data.stat().st_mtime


def main() -> int:
    """1 when any check failed."""
    checks = dict(CHECKS)
    if needs_test_run():
        checks = {"tests": TESTS, **checks}
    failed = [name for name, command in checks.items() if not _passes(name, command)]
    print(f"\n{len(failed)} of {len(checks)} checks failed" if failed else "\nall is in order")
    return 1 if failed else 0


def _passes(name: str, command: tuple[str, ...]) -> bool:
    start = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    is_ok = done.returncode == 0
    print(
        f"{'ok' if is_ok else 'FAILED':6}  {name:12}  {time.monotonic() - start:5.1f} s", flush=True
    )
    if is_ok and name in TELLS:
        print(f"        {done.stdout.rstrip().rpartition(chr(10))[2]}", flush=True)
    if not is_ok:
        print((done.stdout + done.stderr).rstrip(), flush=True)
    return is_ok


if __name__ == "__main__":
    sys.exit(main())

"""What has to start at once imports no torch: checked in fresh interpreters, by the clock too."""

import resource
import statistics
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *argv], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("nanochat", ("torch", "numpy", "tyro")),
        ("nanochat.cli.main", ("torch", "numpy", "tyro")),
        ("nanochat.common.config", ("torch", "numpy", "tyro")),
        ("nanochat.server", ("torch",)),
        ("nanochat.tokenizer", ("torch",)),
        ("nanochat.engine", ("torch",)),
        ("nanochat.engine.request", ("torch", "numpy")),
        ("nanochat.corpus", ("torch",)),
    ],
)
@pytest.mark.req("FR-077", "FR-079")
def test_importing_a_torch_free_room_imports_no_torch(module: str, absent: tuple[str, ...]) -> None:
    program = f"import sys, {module}; print(*[name for name in {absent} if name in sys.modules])"
    assert run("-c", program).stdout.strip() == ""


@pytest.mark.parametrize("argv", [["--help"], ["doctor", "--help"]], ids=" ".join)
@pytest.mark.req("FR-078")
def test_help_takes_less_than_half_a_second(argv: list[str]) -> None:
    """Of a core: what other programs take meanwhile is not its own."""
    times_s = []
    for _ in range(3):
        begin = resource.getrusage(resource.RUSAGE_CHILDREN)
        run("-m", "nanochat", *argv)
        end = resource.getrusage(resource.RUSAGE_CHILDREN)
        times_s.append(end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime)
    assert 0 < statistics.median(times_s) < 0.5


def test_no_verb_imports_torch_to_explain_itself() -> None:
    program = (
        "import contextlib, io, sys\n"
        "from nanochat.cli.main import VERBS, main\n"
        "for verb in VERBS:\n"
        "    with contextlib.redirect_stdout(io.StringIO()):\n"
        "        assert main([*verb.name.split(), '--help']) == 0, verb\n"
        "    assert 'torch' not in sys.modules, verb\n"
    )
    run("-c", program)

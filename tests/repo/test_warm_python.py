"""The stand-in for python ends, hears and is heard as python itself."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import wait_until
from tests.processes import is_alive

PROGRAM = """
import os, signal, sys, time
print(sys.argv[1:], os.getcwd(), os.environ["SAID"], sys.stdin.read(), "torch" in sys.modules)
print("to stderr", file=sys.stderr, flush=True)
sys.stdout.flush()
if sys.argv[1] == "wait":
    signal.signal(signal.SIGUSR1, lambda *_: sys.exit(7))
    open(sys.argv[2], "w").write(str(os.getpid()))
    time.sleep(600)
if sys.argv[1] == "die":
    os.kill(os.getpid(), int(sys.argv[2]))
raise SystemExit(int(sys.argv[2]))
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


def test_words_streams_and_ends_are_pythons(program: Path, warm_python: str) -> None:
    environment = os.environ | {"SAID": "so"}
    for words, code in ((("end", "0"), 0), (("end", "3"), 3), (("die", "9"), -9)):
        told = [
            subprocess.run(
                [python, program, *words],
                input="asked",
                env=environment,
                cwd=program.parent,
                capture_output=True,
                text=True,
            )
            for python in (sys.executable, warm_python)
        ]
        assert [each.returncode for each in told] == [code, code]
        assert told[0].stderr == told[1].stderr == "to stderr\n"
        assert told[0].stdout == f"{list(words)} {program.parent} so asked False\n"
        assert sys.platform != "linux" or told[1].stdout == told[0].stdout.replace("False", "True")


def test_signals_reach_it_and_it_goes_with_its_command(
    program: Path, warm_python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAID", "so")
    for number, code in ((signal.SIGUSR1, 7), (signal.SIGTERM, -15), (signal.SIGKILL, -9)):
        place = program.parent / number.name
        command = [warm_python, str(program), "wait", str(place)]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            wait_until(lambda place=place: place.exists() and bool(place.read_text()))
            process.send_signal(number)
            assert process.wait(60) == code
        inside = int(place.read_text())
        wait_until(lambda inside=inside: not is_alive(inside))


def test_a_module_starts_with_what_the_environment_adds(tmp_path: Path, warm_python: str) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.customized = True")
    (tmp_path / "told.py").write_text("import sys; print(sys.customized, sys.argv, __name__)")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [warm_python, "-u", "-m", "told", "x"], env=environment, capture_output=True, text=True
    )
    assert done.stdout == f"True {[str(tmp_path / 'told.py'), 'x']} __main__\n", done.stderr

"""scripts/setup on machines we do not have: each program it calls is a stand-in with a diary."""

import os
import shutil
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

HAS_DRIVER = Path("/dev/nvidia0").exists() or Path("/proc/driver/nvidia").exists()
pytestmark = [
    pytest.mark.skipif(HAS_DRIVER, reason="these machines have no NVIDIA driver, this one has"),
    pytest.mark.req("FR-058"),
]

TOOLS = "cat cksum cp date dirname grep mkdir rm sh tail tr".split()

# What of Python the script calls, as a shell script: $STATE holds what the machine is like.
FAKE_PYTHON = """#!/bin/sh
echo "python $*" >>"$STATE/diary"
case "$1 $2" in
  "--version "*) echo "Python $(cat "$STATE/version")" ;;
  "-c import sys; sys.exit("*) [ "$(cat "$STATE/version")" != 3.9.2 ] ;;
  "-c import sys; print("*) echo 3.11 ;;
  "-c import ensurepip, venv") [ ! -e "$STATE/lacks-venv" ] ;;
  "-c import platform"*) cat "$STATE/machine" ;;
  "-c import torch"*) [ -e "$STATE/torch" ] ;;
  "-m playwright") [ -e "$STATE/playwright-downloads" ] ;;
  "-m venv") mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; cp "$0" "$3/bin/pip" ;;
  "-m pip") case "$*" in
      *--version) [ -e "${0%python}pip" ] ;;
      *--report*) cp "$STATE/report" .venv/torch.json ;;
      *cluster*) [ ! -e "$STATE/no-ray" ] ;;
      *torch*) [ ! -e "$STATE/pip-fails" ] && : >"$STATE/torch" ;;
    esac ;;
  "- ") [ -e "$STATE/torch" ] ;;
  "- https"*) [ -e "$STATE/index-answers" ] ;;
  "- .venv"*) exec "$REAL_PYTHON" "$@" ;;
  *) echo "not expected: $*" >&2; exit 99 ;;
esac
"""

CPU = '{"install": [{"metadata": {"name": "torch", "version": "2.13.0+cpu"}}]}'
CUDA = (
    '{"install": [{"metadata": {"name": "torch", "version": "2.13.0"}},'
    ' {"metadata": {"name": "nvidia-cublas", "version": "13"}}]}'
)


@dataclass(frozen=True)
class Machine:
    """A folder with a checkout, and a PATH that knows only what the test puts there."""

    root: Path

    def program(self, name: str, text: str) -> None:
        path = self.root / "bin" / name
        path.write_text(text if text.startswith("#!") else f"#!/bin/sh\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IEXEC)

    def state(self, name: str, text: str = "") -> None:
        (self.root / "state" / name).write_text(text)

    def setup(self, *argv: str, shell: str = "sh", **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [shutil.which(shell) or shell, "checkout/scripts/setup", *argv],
            env={
                "PATH": str(self.root / "bin"),
                "HOME": str(self.root),
                "STATE": str(self.root / "state"),
                "REAL_PYTHON": sys.executable,
                **env,
            },
            cwd=self.root,
            capture_output=True,
            text=True,
            check=False,
        )

    def diary(self) -> str:
        """What the stand-ins were asked so far."""
        path = self.root / "state" / "diary"
        return path.read_text() if path.exists() else ""


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Linux, not root, Python 3.11 with venv, the CPU build in the configured index."""
    for name in ("bin", "state", "checkout/scripts"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copy(REPOSITORY / "scripts" / "setup", tmp_path / "checkout" / "scripts")
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path / "checkout")
    for tool in TOOLS:
        os.symlink(shutil.which(tool) or tool, tmp_path / "bin" / tool)
    machine = Machine(tmp_path)
    machine.program("python3", FAKE_PYTHON)
    machine.program("uname", "echo Linux")
    machine.program("id", "echo 1000")
    machine.state("version", "3.11.2")
    machine.state("machine", "arm64")
    machine.state("report", CPU)
    return machine


@pytest.mark.parametrize("shell", ["sh", "bash", "dash"])
def test_a_fresh_machine_and_then_nothing_to_do(machine: Machine, shell: str) -> None:
    if not shutil.which(shell):
        pytest.skip(f"no {shell} here")
    done = machine.setup(shell=shell)
    assert done.returncode == 0, done.stderr
    assert "creating .venv with Python 3.11.2 (python3)" in done.stdout
    assert "installing PyTorch 2.13.0+cpu, CPU build" in done.stdout
    assert "ready in" in done.stdout
    assert "pip install torch==2.13.0+cpu\n" in machine.diary()
    assert machine.diary().count("pip install -e .\n") == 1
    before = machine.diary()
    again = machine.setup(shell=shell)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert machine.diary() == before


def test_dev_adds_its_tools_and_serves_plain_use(machine: Machine) -> None:
    assert machine.setup().returncode == 0
    assert machine.setup("dev").returncode == 0
    assert "pip install -e .[dev,cluster]\n" in machine.diary()
    before = machine.diary()
    assert machine.setup().stdout == machine.setup("dev").stdout == ""
    assert machine.diary() == before


def test_dev_without_ray_says_what_is_skipped(machine: Machine) -> None:
    machine.state("no-ray")
    done = machine.setup("dev")
    assert done.returncode == 0, done.stderr
    assert "no Ray for the tests of several machines, which will be skipped" in done.stdout
    assert "pip install -e .[dev]\n" in machine.diary()


def test_ci_does_not_go_without_ray(machine: Machine) -> None:
    machine.state("index-answers")
    machine.state("no-ray")
    done = machine.setup("dev", CI="1")
    assert done.returncode == 1
    assert "no Ray for the tests of several machines, which CI does not skip" in done.stderr


def test_dev_takes_the_browser_that_is_there(machine: Machine) -> None:
    machine.program("chromium", "exit 1")  # an empty shell of a package
    machine.program("google-chrome", "echo Chrome 156")
    done = machine.setup("dev")
    assert f"the chat page is tested in {machine.root}/bin/google-chrome" in done.stdout
    assert "playwright" not in machine.diary()


def test_dev_as_root_on_debian_installs_one(machine: Machine) -> None:
    machine.program("id", "echo 0")
    machine.program(
        "apt-get",
        'echo "apt-get $*" >>"$STATE/diary"; [ "$1" != install ] || cp "$0" "${0%/*}/chromium"',
    )
    done = machine.setup("dev")
    assert done.returncode == 0, done.stderr
    assert "apt-get install -y --no-install-recommends chromium" in done.stdout
    assert "apt-get install -y --no-install-recommends chromium\n" in machine.diary()
    assert "apt-get --version" in machine.diary()  # what was installed tells its version
    assert "playwright" not in machine.diary()


def test_dev_as_root_on_debian_installs_bubblewrap_for_the_tests_of_the_sandbox(
    machine: Machine,
) -> None:
    machine.program("uname", "echo Linux")
    assert (
        "no bubblewrap, so the tests of that sandbox will be skipped" in machine.setup("dev").stdout
    )
    (machine.root / "checkout" / ".venv" / "setup.stamp").unlink()
    machine.program("id", "echo 0")
    machine.program(
        "apt-get",
        'echo "apt-get $*" >>"$STATE/diary"; for last; do :; done\n'
        '[ "$last" != bubblewrap ] || cp "$0" "${0%/*}/bwrap"',
    )
    done = machine.setup("dev")
    assert done.returncode == 0, done.stderr
    assert "apt-get install -y --no-install-recommends bubblewrap\n" in machine.diary()
    assert "no bubblewrap" not in done.stdout


def test_dev_lets_playwright_download_one_or_says_what_is_skipped(machine: Machine) -> None:
    without = machine.setup("dev")
    assert without.returncode == 0
    assert "no browser for the tests of the chat page, which will be skipped" in without.stdout
    machine.state("playwright-downloads")
    (machine.root / "checkout" / ".venv" / "setup.stamp").unlink()
    assert "the Chromium that Playwright has downloaded" in machine.setup("dev").stdout
    assert machine.diary().count("python -m playwright install chromium") == 2


def test_plain_use_needs_no_browser(machine: Machine) -> None:
    assert "browser" not in machine.setup().stdout
    assert "playwright" not in machine.diary()


def test_a_changed_pyproject_is_installed_again_without_torch(machine: Machine) -> None:
    assert machine.setup().returncode == 0
    with (machine.root / "checkout" / "pyproject.toml").open("a") as file:
        file.write("\n")
    assert machine.setup().returncode == 0
    assert machine.diary().count("pip install -e .\n") == 2
    assert machine.diary().count("pip install torch==") == 1
    assert machine.diary().count("-m venv") == 1


def test_an_interrupted_run_is_taken_up_again(machine: Machine) -> None:
    machine.state("pip-fails")
    failed = machine.setup()
    assert failed.returncode == 1
    assert "pip install torch==2.13.0+cpu failed; all of it is in .venv/setup.log" in failed.stderr
    (machine.root / "state" / "pip-fails").unlink()
    assert machine.setup().returncode == 0
    assert machine.diary().count("-m venv") == 1


def test_a_venv_without_pip_is_made_again(machine: Machine) -> None:
    assert machine.setup().returncode == 0
    (machine.root / "checkout" / ".venv" / "setup.stamp").unlink()
    (machine.root / "checkout" / ".venv" / "bin" / "pip").unlink()
    assert machine.setup().returncode == 0
    assert machine.diary().count("-m venv") == 2


def test_the_cpu_index_is_used_when_it_answers(machine: Machine) -> None:
    machine.state("index-answers")
    assert machine.setup().returncode == 0
    asked = "pip install --index-url https://download.pytorch.org/whl/cpu torch>=2.11,<2.14\n"
    assert asked in machine.diary()
    assert "--report" not in machine.diary()


def test_a_cuda_build_without_a_driver_is_not_installed_unless_asked_for(machine: Machine) -> None:
    machine.state("report", CUDA)
    stopped = machine.setup()
    assert stopped.returncode == 1
    for words in ("no NVIDIA driver", "PIP_FIND_LINKS", "ALLOW_CUDA_TORCH=1"):
        assert words in stopped.stderr
    assert "pip install torch" not in machine.diary()
    assert machine.setup(ALLOW_CUDA_TORCH="1").returncode == 0
    assert "pip install torch==2.13.0\n" in machine.diary()


@pytest.mark.parametrize(
    ("program", "text"), [("nvidia-smi", "echo 'GPU 0: some card'"), ("uname", "echo Darwin")]
)
def test_a_gpu_or_a_mac_gets_the_default_build(machine: Machine, program: str, text: str) -> None:
    machine.program(program, text)
    assert machine.setup().returncode == 0
    assert "pip install torch>=2.11,<2.14\n" in machine.diary()


def test_an_intel_mac_is_told_the_truth(machine: Machine) -> None:
    machine.program("uname", "echo Darwin")
    machine.state("machine", "x86_64")
    stopped = machine.setup()
    assert stopped.returncode == 1
    assert "PyTorch has no build for Intel Macs" in stopped.stderr


APT_CACHE = '[ "$2" = python3.11-venv ]'


@pytest.mark.parametrize(
    ("programs", "remedy"),
    [
        (
            {"apt-get": "exit 99", "apt-cache": APT_CACHE},
            "sudo apt-get install -y python3.11 python3.11-venv, then run this again",
        ),
        ({"apt-get": "exit 99", "apt-cache": "exit 1"}, "uv python install 3.12 (uv: https://"),
        ({"uname": "echo Darwin"}, "brew install python@3.12, then run this again"),
        ({"dnf": "exit 99"}, "sudo dnf install -y python3.12, then run this again"),
        ({}, "install Python 3.12 with your package manager"),
    ],
)
def test_an_old_python_is_answered_with_one_command(
    machine: Machine, programs: dict[str, str], remedy: str
) -> None:
    machine.state("version", "3.9.2")
    for name, text in programs.items():
        machine.program(name, text)
    stopped = machine.setup()
    assert stopped.returncode == 1
    assert "no Python 3.11 or newer here (Python 3.9.2)" in stopped.stderr
    assert remedy in stopped.stderr
    assert len(stopped.stderr.splitlines()) == 1
    assert not (machine.root / "checkout" / ".venv").exists()


def test_root_on_debian_gets_venv_installed(machine: Machine) -> None:
    machine.state("lacks-venv")
    machine.program("apt-cache", APT_CACHE)
    machine.program(
        "apt-get",
        'echo "apt-get $*" >>"$STATE/diary"; [ "$1" = update ] || rm "$STATE/lacks-venv"',
    )
    refused = machine.setup()
    assert "python3 lacks venv: sudo apt-get install -y python3.11-venv" in refused.stderr
    machine.program("id", "echo 0")
    done = machine.setup()
    assert done.returncode == 0, done.stderr
    assert "apt-get install -y python3.11-venv" in done.stdout
    assert [line for line in machine.diary().splitlines() if line.startswith("apt-get")] == [
        "apt-get update",
        "apt-get install -y python3.11-venv",
    ]


def test_root_is_not_led_in_circles(machine: Machine) -> None:
    machine.state("lacks-venv")
    machine.program("id", "echo 0")
    machine.program("apt-get", "exit 0")  # says yes, does nothing
    stopped = machine.setup()
    assert stopped.returncode == 1
    assert "python3 lacks venv" in stopped.stderr
    machine.program("apt-get", "exit 100")
    assert "apt-get install -y python3.11-venv failed" in machine.setup().stderr


def test_newer_pythons_are_looked_for_where_others_put_them(machine: Machine) -> None:
    machine.program("python3", "exit 127")  # a pyenv shim without a version behind it
    place = machine.root / ".pyenv" / "versions" / "3.12.1" / "bin"
    place.mkdir(parents=True)
    machine.program("python3.12", FAKE_PYTHON)
    shutil.move(machine.root / "bin" / "python3.12", place / "python3.12")
    done = machine.setup()
    assert done.returncode == 0, done.stderr
    assert f"({place}/python3.12)" in done.stdout


def test_what_the_user_names_is_taken_or_refused(machine: Machine) -> None:
    machine.program("mypython", FAKE_PYTHON)
    assert "(mypython)" in machine.setup(PYTHON="mypython").stdout
    shutil.rmtree(machine.root / "checkout" / ".venv")
    refused = machine.setup(PYTHON="nopython")
    assert refused.returncode == 1
    assert "PYTHON is nopython, which is not Python 3.11 or newer with venv" in refused.stderr


def test_an_unknown_extra_is_refused(machine: Machine) -> None:
    refused = machine.setup("dve")
    assert refused.returncode == 1
    assert "unknown extra 'dve', expected nothing or dev" in refused.stderr

"""main.py: every verb answers --help, every exception becomes one line and an exit code."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

import nanochat
from nanochat.cli import main as cli
from nanochat.cli.main import VERBS, Verb, main
from nanochat.common.config import CommonOptions
from nanochat.common.errors import ConfigError, DataError, TrainingError
from tests.conftest import REPOSITORY


@dataclass(frozen=True, kw_only=True)
class Config(CommonOptions):
    """Stand in for a verb."""

    depth: int = 4
    """Layers."""


Act = Callable[[Config], int]


@pytest.fixture
def verbs(monkeypatch: pytest.MonkeyPatch) -> Callable[[Act], None]:
    """Gives the command line three verbs, all doing what the test says."""

    def install(act: Act) -> None:
        names = ("spin", "thread cut", "thread join")
        monkeypatch.setattr(cli, "VERBS", tuple(Verb(name, "work", "do it") for name in names))
        for name in names:
            module = ModuleType("stand_in")
            module.Config = Config  # type: ignore[attr-defined]
            module.run = act  # type: ignore[attr-defined]
            monkeypatch.setitem(sys.modules, "nanochat.cli." + name.replace(" ", "_"), module)

    return install


def raiser(error: BaseException) -> Act:
    def act(config: Config) -> int:
        raise error

    return act


def test_a_verb_gets_its_flags_and_gives_its_exit_code(verbs: Callable[[Act], None]) -> None:
    seen = []
    verbs(lambda config: seen.append(config.depth) or 7)
    assert main(["spin", "--depth", "5"]) == 7
    assert main(["thread", "cut", "--depth", "6"]) == 7
    assert main(["thread", "join"]) == 7
    assert seen == [5, 6, 4]


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_help_lists_the_verbs_under_their_headings(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 0
    page = capsys.readouterr().out
    for verb in VERBS:
        assert f"  {verb.name} " in page
        assert verb.summary in page
        assert f"\n{verb.group}\n" in page


@pytest.mark.parametrize("argv", [["thread"], ["thread", "--help"]])
def test_a_family_lists_its_own(
    argv: list[str], verbs: Callable[[Act], None], capsys: pytest.CaptureFixture[str]
) -> None:
    verbs(lambda config: 0)
    assert main(argv) == 0
    page = capsys.readouterr().out
    assert "usage: nanochat thread VERB" in page
    assert "thread cut" in page
    assert "spin" not in page


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"nanochat {nanochat.__version__}\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["spni"], "unknown verb 'spni', did you mean 'spin'?"),
        (["qqqqq", "x"], "unknown verb 'qqqqq' (nanochat --help lists them)"),
        (["thread", "joyn"], "unknown verb 'thread joyn', did you mean 'thread join'?"),
        (["--depth", "3", "spin"], "unknown flag --depth: a verb comes first"),
        (["spin", "--dept", "3"], "unknown flag --dept, did you mean '--depth'?"),
        (["spin", "--depth", "x"], "--depth is 'x', expected a whole number"),
    ],
)
@pytest.mark.req("FR-078")
def test_mistakes_in_typing_are_one_line_and_exit_code_2(
    argv: list[str],
    message: str,
    verbs: Callable[[Act], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    verbs(lambda config: 0)
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"nanochat: {message}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (DataError("no text in x.txt:\n  expected some"), 2, "no text in x.txt: expected some"),
        (TrainingError("loss is nan"), 2, "loss is nan"),
        (
            ZeroDivisionError("division by zero"),
            1,
            "ZeroDivisionError: division by zero (test_main",
        ),
        (OSError(28, "No space left on device"), 1, "OSError: [Errno 28] No space left"),
        (BrokenPipeError("a worker died"), 1, "BrokenPipeError: a worker died"),
    ],
)
def test_exceptions_become_one_line(
    error: Exception,
    code: int,
    message: str,
    verbs: Callable[[Act], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    verbs(raiser(error))
    assert main(["spin"]) == code
    err = capsys.readouterr().err
    assert err.startswith(f"nanochat: {message}")
    assert err.count("\n") == 1
    assert ("NANOCHAT_LOG=debug" in err) == (code == 1)


@pytest.mark.parametrize(("code", "expected"), [(3, 3), (0, 0), (None, 1), ("why", 1)])
def test_a_library_that_ends_the_process_is_heard(
    code: object, expected: int, verbs: Callable[[Act], None]
) -> None:
    verbs(raiser(SystemExit(code)))
    assert main(["spin"]) == expected


def test_debug_shows_the_traceback(
    verbs: Callable[[Act], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("NANOCHAT_LOG", "debug")
    verbs(raiser(ConfigError("depth is 0")))
    assert main(["spin"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.endswith("nanochat: depth is 0\n")
    monkeypatch.setenv("NANOCHAT_LOG", "loud")
    assert main(["spin"]) == 2
    assert "NANOCHAT_LOG is 'loud'" in capsys.readouterr().err


def test_ctrl_c_is_130(verbs: Callable[[Act], None], capsys: pytest.CaptureFixture[str]) -> None:
    verbs(raiser(KeyboardInterrupt()))
    assert main(["spin"]) == 130
    assert capsys.readouterr().err == "\n"


@pytest.mark.parametrize("argv", [["--help"], ["doctor", "--help"]])
def test_a_reader_that_leaves_is_not_a_fault_to_talk_about(argv: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "nanochat", *argv],
            stdout=pipe,
            stderr=subprocess.PIPE,
            cwd=REPOSITORY,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == b""


def test_every_verb_has_a_file_and_every_file_with_a_run_is_a_verb() -> None:
    folder = Path(cli.__file__).parent
    runnable = {path.stem for path in folder.glob("*.py") if "\ndef run(" in path.read_text()}
    assert {verb.module.rpartition(".")[2] for verb in VERBS} == runnable


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
@pytest.mark.req("FR-078")
def test_every_verb_explains_itself(verb: Verb, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*verb.name.split(), "--help"]) == 0
    page = capsys.readouterr().out
    assert page.startswith(f"usage: nanochat {verb.name}")
    for flag in ("--home", "--config", "--json"):
        assert flag in page

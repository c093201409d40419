"""The scripts that judge the repository are judged: each finds what it is for."""

import os
import sys
from pathlib import Path

import pytest
from coverage import CoverageData

from scripts import check, docs, public_names, requirements, size
from tests.conftest import REPOSITORY

MODULE = '''"""Doc."""

__all__ = ["Shape", "area", "hidden", "LIMIT"]

LIMIT: int = 3
NOT_PUBLIC = 4


class Shape:
    """A shape."""

    def grow(self):
        return 1

    def _hide(self):
        return 2


def area(x):
    """Its area."""
    y = x
    return y


def hidden(x):
    return x
'''


@pytest.mark.req("FR-065")
def test_public_names_without_docstring_or_test_are_found() -> None:
    names = public_names.public_names(MODULE, "m")
    assert [(entry.name, entry.kind) for entry in names] == [
        ("Shape", "class"),
        ("Shape.grow", "method"),
        ("area", "function"),
        ("hidden", "function"),
        ("LIMIT", "value"),
    ]
    assert list(public_names.problems(names, {"m": {5, 13, 21, 22}}, [])) == [
        "m.Shape.grow (method) has no docstring",
        "m.hidden (function) has no docstring",
        "m.hidden (function) is executed by no test",
    ]
    unrun = list(public_names.problems(names, {}, ["Shape", "area", "hidden"]))
    assert sum("is executed by no test" in line for line in unrun) == 5


def test_a_class_without_code_is_run_when_a_test_names_it() -> None:
    source = '__all__ = ["Oops"]\n\n\nclass Oops(Exception):\n    """Oops."""\n'
    assert public_names.names_called("a.Oops(\n    1)\nOther(2)\n", {1}) == {"Oops"}
    names = public_names.public_names(source, "m")
    assert list(public_names.problems(names, {}, {"Oops"})) == []
    assert list(public_names.problems(names, {}, [])) == ["m.Oops (class) is executed by no test"]


def test_every_public_name_of_the_package_is_seen() -> None:
    source = (REPOSITORY / "nanochat" / "common" / "files.py").read_text()
    names = {entry.name for entry in public_names.public_names(source, "nanochat.common.files")}
    assert {"home_dir", "read_json", "open_atomically"} <= names


@pytest.mark.req("FR-065")
def test_every_public_name_is_listed_or_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = tmp_path / "nanochat" / "corpus" / "shape.py"
    module.parent.mkdir(parents=True)
    module.write_text(MODULE)
    monkeypatch.setattr(public_names, "ROOT", tmp_path)
    assert public_names.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = ("Shape (class)", "Shape.grow (method)", "area (function)", "hidden (function)")
    assert lines == [f"nanochat.corpus.shape.{name}" for name in (*names, "LIMIT (value)")]
    data = CoverageData(str(tmp_path / ".coverage"))
    data.add_lines({str(module): range(1, 100)})
    data.write()
    (tmp_path / "tests").mkdir()
    assert public_names.main() == 1
    assert capsys.readouterr().out.splitlines() == [
        "nanochat.corpus.shape.Shape.grow (method) has no docstring",
        "nanochat.corpus.shape.hidden (function) has no docstring",
        "5 public names, 2 problems; all of them: python scripts/public_names.py --list",
    ]


@pytest.mark.req("SC-013")
def test_requirements_carried_and_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "requirements.md").write_text(
        "# R\n\n- **FR-001** One thing.\n- **SC-002** Another.\n- **EC-3** A third.\n"
    )
    (tmp_path / "tests" / "x").mkdir(parents=True)
    path = tmp_path / "tests" / "x" / "test_a.py"
    path.write_text(
        "import pytest\n\npytestmark = pytest.mark.req('EC-3')\n\n\n"
        "@pytest.mark.req('FR-001', 'EC-3')\ndef test(): ...\n"
    )
    promised = requirements.promised_numbers(tmp_path)
    carried = requirements.carried_numbers(tmp_path)
    assert promised == {"FR-001": "One thing.", "SC-002": "Another.", "EC-3": "A third."}
    assert carried == {"EC-3": ["tests/x/test_a.py"], "FR-001": ["tests/x/test_a.py"]}
    monkeypatch.setattr(requirements, "promised_numbers", lambda: promised)
    monkeypatch.setattr(requirements, "carried_numbers", lambda: carried)
    assert requirements.main() == 0
    assert capsys.readouterr().out.startswith("SC-002  Another.\n\n2 of 3 requirements")
    carried["FR-999"] = ["tests/x/test_a.py"]
    assert requirements.main() == 1
    assert "FR-999 in tests/x/test_a.py is not in" in capsys.readouterr().out


@pytest.mark.req("SC-013")
def test_the_list_of_requirements_is_whole_and_no_test_invents_one() -> None:
    promised = requirements.promised_numbers()
    counts = {kind: sum(number.startswith(kind) for number in promised) for kind in KINDS}
    assert counts == KINDS
    assert set(requirements.carried_numbers()) <= set(promised)


KINDS = {"US-": 5, "EC-": 10, "FR-": 83, "SC-": 15}


def test_lines_of_code_are_told_from_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    docstring, text = '"""Doc.\n\nMore.\n"""\n\n', 'x = """a\nb"""  # why\n\n\n# because\n'
    source = docstring + text + 'def f():\n    """F."""\n    return x\n'
    assert size.count_lines(source) == (4, 9)
    for place in ("nanochat/common/two.py", "nanochat/common/one.py", "tests/test_one.py"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(source if "two" in place else text)
    monkeypatch.setattr(size, "ROOT", tmp_path)
    assert size.main() == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()[1:]] == [
        ["6", "12", "nanochat/common/"],
        ["4", "9", "two.py"],
        ["2", "3", "one.py"],
        ["2", "3", "tests/"],
        ["8", "15", "in", "all"],
    ]


def test_pages_of_another_repository_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "where.md").write_text("| a | b | c |\n|---|---|---|\n")
    for name, text in {
        "corpus/__init__.py": '"""TEXT."""\n',
        "corpus/files.py": '"""Paths -> a | b.   in: x   out: y"""\n',
        "web/page.css": "/* How it looks. */\nbody { color: red }\n",
        "web/index.html": "<!doctype html>\n<!-- The page. -->\n",
        "web/chat.js": "// What moves.\n// more\n",
        "web/nothing.js": "let x = 1;\n",
        "web/icon.svg": "<svg/>",
    }.items():
        path = tmp_path / "nanochat" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    page = docs.map_page(tmp_path)
    assert "## corpus/\n\nTEXT.\n" in page
    assert "| [files.py](../nanochat/corpus/files.py) | Paths -> a \\| b. |" in page
    assert "| [page.css](../nanochat/web/page.css) | How it looks. |" in page
    assert "| [index.html](../nanochat/web/index.html) | The page. |" in page
    assert "| [chat.js](../nanochat/web/chat.js) | What moves. |" in page
    assert "icon.svg" not in page
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    monkeypatch.setattr(docs, "cli_page", lambda: "cli")
    monkeypatch.setattr(docs, "map_page", lambda: "map")
    monkeypatch.setattr(docs, "scale_page", lambda: "scale")
    monkeypatch.setattr(sys, "argv", ["docs.py", "--check"])
    assert docs.main() == 1
    assert "docs/map.md is not what the code says: make docs" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["docs.py"])
    assert docs.main() == 0
    monkeypatch.setattr(sys, "argv", ["docs.py", "--check"])
    assert docs.main() == 0


def test_help_is_the_same_on_a_terminal_of_any_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    narrow = docs.cli_page()
    assert os.environ["COLUMNS"] == "40"
    monkeypatch.setenv("COLUMNS", "300")
    assert docs.cli_page() == narrow


def test_checks_run_the_tests_only_when_sources_are_newer(tmp_path: Path) -> None:
    for folder in check.FOLDERS:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.py").write_text("")
    assert check.needs_test_run(tmp_path)
    (tmp_path / ".coverage").write_text("")
    os.utime(tmp_path / ".coverage", (2_000_000_000, 2_000_000_000))
    assert not check.needs_test_run(tmp_path)
    os.utime(tmp_path / "tests" / "x.py", (2_000_000_001, 2_000_000_001))
    assert check.needs_test_run(tmp_path)


@pytest.mark.req("FR-069")
def test_one_failing_check_fails_all_and_shows_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = (sys.executable, "-c", "print('quiet')")
    bad = (sys.executable, "-c", "import sys; print('what is wrong'); sys.exit(3)")
    monkeypatch.setattr(check, "needs_test_run", lambda: True)
    monkeypatch.setattr(check, "TESTS", good)
    monkeypatch.setattr(check, "CHECKS", {"lint": good, "types": bad, "docs": good})
    assert check.main() == 1
    out = capsys.readouterr().out
    assert "what is wrong" in out
    assert "quiet" not in out
    assert "1 of 4 checks failed" in out
    monkeypatch.setattr(check, "CHECKS", {"lint": good, "public names": good})
    assert check.main() == 0
    out = capsys.readouterr().out
    assert "all is in order" in out
    assert out.count("        quiet\n") == 1, "how many names there are, and where their list is"

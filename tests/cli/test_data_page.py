"""docs/data.md: its files and commands, in the order they stand there."""

import re
import shlex
from pathlib import Path

import pytest

from nanochat.cli.main import main
from nanochat.corpus.catalog import CATALOG
from nanochat.corpus.files import COMPRESSIONS, FORMATS
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.req("FR-032")

PAGE = (REPOSITORY / "docs" / "data.md").read_text()
BLOCK = re.compile(r"^```(\w+)(?: +([^\n]+))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def test_its_files_and_commands(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = BLOCK.findall(PAGE)
    for _, note, text in blocks:
        if note.startswith("file="):
            Path(note.removeprefix("file=")).write_text(text)
    commands = [text for language, note, text in blocks if language == "sh" and not note]
    lines = "".join(commands).splitlines()
    for line in lines:
        assert main(shlex.split(line, comments=True)[1:]) == 0, line
    shown = capsys.readouterr().out
    assert len(lines) == 3 and "shape    Alpaca (2)" in shown and "author (string)" in shown


def test_it_names_the_catalog_and_the_formats() -> None:
    rows = dict(re.findall(r"^\| `([\w-]+)` \|.*\| ([^|]+) \|$", PAGE, re.MULTILINE))
    assert {name: rows.get(name) for name in CATALOG} == {
        name: entry.licence for name, entry in CATALOG.items()
    }
    for suffix in (*FORMATS, *COMPRESSIONS):
        assert f"`{suffix}`" in PAGE

"""A file that another one names as the next to read, or as who calls it, is there."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

TRACKED = subprocess.run(
    ["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True
).stdout.splitlines()
HEADED = [
    path
    for path in TRACKED
    if re.fullmatch(r"(nanochat|scripts|deploy)/.*\.(py|js)", path) and (REPOSITORY / path).exists()
]
PLACE = re.compile(r"(?:Read next:|who calls:)(.*?)(?=\n\n|\Z|Read next|who calls|Source:)", re.S)
NAME = re.compile(r"(?<![\w/.-])[\w./-]*\w\.(?:py|js|css|html|md)\b")


def head_of(path: Path) -> str:
    """What a file says of itself before any code."""
    text = path.read_text()
    if path.suffix == ".js":
        return text.partition("\n\n")[0].replace("// ", "")
    return ast.get_docstring(ast.parse(text)) or ""


def named_in(head: str) -> set[str]:
    return {name for place in PLACE.findall(head) for name in NAME.findall(place)}


def test_names_are_found() -> None:
    head = "x   who calls: app.py, web/api.js\n\nBut b.py.\nRead next: one.py (two.md),\nlast.py"
    assert named_in(head) == {"app.py", "web/api.js", "one.py", "two.md", "last.py"}
    assert len(HEADED) > 300


@pytest.mark.req("FR-076")
def test_every_file_that_is_named_is_there() -> None:
    places = {tail for path in TRACKED for tail in tails(path)}
    missing = {
        path: names for path in HEADED if (names := named_in(head_of(REPOSITORY / path)) - places)
    }
    assert missing == {}


def tails(path: str) -> list[str]:
    """a/b/c.py -> c.py, b/c.py, a/b/c.py"""
    parts = path.split("/")
    return ["/".join(parts[place:]) for place in range(len(parts))]

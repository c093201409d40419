"""The pages say what the code says, links lead somewhere, the README stays short."""

import importlib
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from nanochat.cli.main import VERBS
from nanochat.common.config import parse
from nanochat.evals.tasks import named_tasks
from scripts import docs
from tests.conftest import REPOSITORY

PAGES = [
    REPOSITORY / name
    for name in subprocess.run(
        ["git", "ls-files", "*.md"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    ).stdout.split()
]
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(#[^)]*)?\)")


def test_pages_are_found() -> None:
    assert REPOSITORY / "docs" / "map.md" in PAGES


@pytest.mark.parametrize(
    ("name", "page"),
    [("cli.md", docs.cli_page), ("map.md", docs.map_page), ("scale.md", docs.scale_page)],
)
@pytest.mark.req("FR-071")
def test_generated_pages_are_in_sync(name: str, page: "docs.Callable[[], str]") -> None:
    assert (REPOSITORY / "docs" / name).read_text() == page(), "run make docs"


@pytest.mark.req("FR-076")
def test_every_place_in_the_map_exists() -> None:
    assert list(docs.where_problems((REPOSITORY / "docs" / "where.md").read_text())) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page: Path) -> None:
    dead = [
        target
        for target, _ in LINK.findall(page.read_text())
        if not re.match(r"[a-z]+:", target) and not (page.parent / target).exists()
    ]
    assert dead == []


# Lines of a block in ```sh, and of an indented one, where two columns are a command and a remark.
SHELL = re.compile(r"^```sh[^\n]*\n(.*?)^```$|((?:^    [^\n]*\n)+)", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"(?:^|[\s/])nanochat (?P<words>[a-z].*?)(?:$| {3,}[^-\s].*)")


def commands_of(page: str) -> list[list[str]]:
    """The words behind `nanochat` in every line of the page's blocks."""
    blocks = ["".join(found) for found in SHELL.findall(page.replace("\\\n", " "))]
    found = [COMMAND.search(line) for block in blocks for line in block.splitlines()]
    words = [shlex.split(match["words"], comments=True) for match in found if match]
    return [[word for word in line if word != "$@"] for line in words]


@pytest.mark.req("FR-071")
@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_command_shown_is_understood(page: Path) -> None:
    for words in commands_of(page.read_text() if page.name != "cli.md" else ""):  # what help says
        line = " ".join(words)
        verb = max(
            (verb for verb in VERBS if f"{line} ".startswith(f"{verb.name} ")),
            key=lambda verb: len(verb.name),
        )
        module = importlib.import_module(verb.module)
        config = parse(module.Config, words[len(verb.name.split()) :], prog=line)
        if verb.name == "eval":
            named_tasks(config.tasks)


def test_commands_are_found_in_a_page() -> None:
    page = """
Text `nanochat serve` in a line.

```sh
nanochat chat d12        # a remark
torchrun -m nanochat pretrain \\
    --depth 4
```

    nanochat import d12-hf --run back      a remark
"""
    assert commands_of(page) == [
        ["chat", "d12"],
        ["pretrain", "--depth", "4"],
        ["import", "d12-hf", "--run", "back"],
    ]


def test_the_readme_is_short_and_says_how_it_came_about() -> None:
    text = (REPOSITORY / "README.md").read_text()
    assert len(text.splitlines()) <= 200
    assert "make demo" in text
    assert "make test" in text


@pytest.mark.req("SC-014")
@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_who_wrote_this_is_disclosed(name: str) -> None:
    assert "language model wrote much of the code" in (REPOSITORY / name).read_text()


def test_a_wrong_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("class A:\n    b: int = 1\n\n    def c(self): ...\n\n\nD = 1\n")
    text = """
| question | file | symbol |
|---|---|---|
| One? | `x.py` | `A.b` |
| Two? | `x.py` | `A.c` |
| Three? | `x.py` | `D` |
| Four? | `x.py` | `E` |
| Five? | `y.py` | `E` |
| Six? | y.py | E |
"""
    assert list(docs.where_problems(text, tmp_path)) == [
        "1 of 6 rows are not | question | `file` | `symbol` |",
        "Four? x.py has no E",
        "Five? y.py does not exist",
    ]

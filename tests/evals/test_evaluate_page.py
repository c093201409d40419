"""docs/evaluate.md: its files and commands, on a tiny model, in the order they stand there."""

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

from nanochat.cli.main import main
from nanochat.common.errors import SandboxError
from nanochat.evals.results import read_results
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.cli.models import save_model
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.req("FR-044", "FR-043", "US-4", "FR-071")

PAGE = (REPOSITORY / "docs" / "evaluate.md").read_text()
BLOCK = re.compile(r"^```(\w+)(?: +([^\n]+))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, what stands behind that, and its text."""

    language: str
    note: str
    text: str


BLOCKS = [Block(*(part or "" for part in found)) for found in BLOCK.findall(PAGE)]


def has_sandbox() -> bool:
    from nanochat.common.sandbox.box import Sandbox

    try:
        Sandbox().close()
    except SandboxError:
        return False
    return True


def test_the_page_as_a_newcomer_follows_it(
    home: Path,
    tiny_tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for stage in ("pretrain", "sft"):
        save_model(home, tiny_tokenizer, "demo", stage)
    monkeypatch.chdir(tmp_path)
    num_run = 0
    for block in BLOCKS:
        if block.note.startswith("file="):
            Path(block.note.removeprefix("file=")).write_text(block.text)
        elif block.language == "sh" and (not block.note or block.note == "sandbox"):
            if block.note == "sandbox" and not has_sandbox():
                continue
            for line in block.text.splitlines():
                words = shlex.split(line)
                assert words[0] == "nanochat"
                assert main(words[1:]) == 0, f"{line}\n{capsys.readouterr().err}"
                num_run += 1
    assert num_run >= 8
    results = {path.name: read_results(path) for path in sorted(Path("results").iterdir())}
    assert {"capitals", "before", "after", "sums", "shots", "backwards"} <= results.keys()
    for name, result in results.items():
        [task] = result.tasks.values()
        assert task.is_scored and task.count >= 1, name
        assert (Path("results") / name / "report.html").is_file()
        assert (Path("results") / name / "report.md").is_file()
    assert results["sums"].tasks["sums"].records[0].sample.gold in ("5", "17", "12")
    assert results["backwards"].tasks["backwards"].version.startswith("1+")


def test_a_mistake_is_answered_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [rows] = [block.text for block in BLOCKS if block.note == "file=capitals.jsonl"]
    lines = [json.loads(line) for line in rows.splitlines()]
    lines[1]["answer"] = "Rom"
    monkeypatch.chdir(tmp_path)
    Path("capitals.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    words = ["eval", "demo", "--task-file", "capitals.jsonl", "--kind", "multiple-choice"]
    assert main(words) == 2
    [said] = [block.text for block in BLOCKS if block.language == "text"]
    assert capsys.readouterr().err.split() == said.split()


def test_every_kind_stands_on_the_page() -> None:
    from typing import get_args

    from nanochat.evals.questions import CustomKind

    assert re.findall(r"^\| `([\w-]+)` \|", PAGE, re.MULTILINE)[-5:] == list(get_args(CustomKind))

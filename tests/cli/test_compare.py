"""nanochat compare: a table, JSON, exit codes for CI, and where results are looked for."""

import json
import os
import re
from pathlib import Path

import pytest

from nanochat.cli.compare import find_results
from nanochat.cli.eval import Config as EvalConfig
from nanochat.cli.eval import _opened
from nanochat.cli.main import main
from nanochat.common.errors import CheckpointError
from nanochat.evals.results import EvalResult, write_results
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.cli.models import save_model
from tests.evals.makers import make_result

pytestmark = pytest.mark.req("US-4", "FR-043")

RIGHT = [1.0] * 60 + [0.0] * 40
BETTER = [1.0] * 80 + [0.0] * 20


@pytest.fixture
def two(tmp_path: Path) -> tuple[str, str]:
    """Results of a model and of a better one."""
    return written(tmp_path / "a", make_result("old", {"arc": RIGHT})), written(
        tmp_path / "b", make_result("new", {"arc": BETTER})
    )


def written(directory: Path, result: EvalResult) -> str:
    write_results(directory, result)
    return str(directory)


def test_a_table(two: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *two]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"A  old   {two[0]}" and lines[1] == f"B  new   {two[1]}"
    assert lines[3].split()[:5] == ["n", "A", "B", "B", "-"]
    assert lines[5].startswith("arc ")
    for word in ("0.6000", "0.8000", "+0.2000 (+20 -0)", "0.0000", "better"):
        assert word in lines[5]
    assert "Holm's correction over 1 task, and over 1 composite." in lines[-2]


def test_json_and_exit_codes(two: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    a, b = two
    assert main(["compare", a, b, "--fail-if-worse", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["is_worse"] is False and found["alpha"] == 0.05
    assert found["comparisons"][0]["tasks"]["arc"]["verdict"] == "better"
    assert main(["compare", b, f"{a}/summary.json", "--fail-if-worse"]) == 1
    captured = capsys.readouterr()
    assert "worse than new in core_21_no_coqa_v1, arc (p by Holm at most 0.05)" in captured.err
    assert main(["compare", b, a]) == 0
    assert main(["compare", b, a, "--fail-if-worse", "--alpha", "1e-7"]) == 0
    assert main(["compare", a, a, a, "--fail-if-worse"]) == 0
    assert "C  old" in capsys.readouterr().out


def test_what_is_refused(
    two: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limited = written(tmp_path / "c", make_result("c", {"arc": RIGHT[:30]}, limit=30))
    assert main(["compare", two[0], limited]) == 2
    error = capsys.readouterr().err
    assert "limit None against 30; arc.samples 100 against 30" in error
    assert main(["compare", two[0], limited, "--allow-changed"]) == 0
    assert "changed: limit None against 30" in capsys.readouterr().out
    assert main(["compare", two[0]]) == 2
    assert "1 result given, expected two or more" in capsys.readouterr().err
    assert main(["compare", *two, "--alpha", "0"]) == 2
    (tmp_path / "b" / "samples.jsonl").write_text("{}\n")
    assert main(["compare", *two]) == 2
    assert "samples.jsonl, line 1" in capsys.readouterr().err


def test_the_newest_results_of_a_model(home: Path, tiny_tokenizer: Tokenizer) -> None:
    save_model(home, tiny_tokenizer)
    with pytest.raises(CheckpointError, match="tiny has no results in .*: nanochat eval tiny"):
        find_results("tiny", home)
    evals = home / "runs" / "tiny" / "sft" / "evals"
    for index, name in enumerate(("step_000003-b", "step_000003-a", "step_000009")):
        written(evals / name, make_result("x", {"arc": RIGHT}))
        os.utime(evals / name / "summary.json", (index, index))
    assert find_results("tiny", home) == evals / "step_000009"
    assert find_results("tiny/sft@3", home) == evals / "step_000003-a"
    assert find_results(str(evals / "step_000003-b" / "samples.jsonl")).name == "step_000003-b"
    written(home / "evals" / "elsewhere" / "20260101", make_result("x", {"arc": RIGHT}))
    assert find_results("elsewhere", home).name == "20260101"  # a model behind a URL, say
    with pytest.raises(CheckpointError, match="has no results in .*evals"):
        find_results(str(home / "runs/tiny/sft/checkpoints/step_000003"), home / "other")


@pytest.mark.parametrize("model", ["hf:org/name", "hf:org/name@v1", "meta/llama-8b", "my model"])
def test_results_of_models_that_are_no_runs(
    model: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nanochat.checkpoint.resolve.candidates", _nowhere)
    with pytest.raises(CheckpointError, match="nowhere|has no results in .*evals"):
        find_results(model, home)
    config = EvalConfig(model=model, url="http://127.0.0.1:9/v1", home=home)
    folder = _opened(config)[2].parent
    assert folder == home / "evals" / re.sub("[:/@ ]", "-", model)
    written(folder / "20260101", make_result("x", {"arc": RIGHT}))
    assert find_results(model, home) == folder / "20260101"
    if not model.startswith("hf:"):
        return
    monkeypatch.setattr("nanochat.checkpoint.hub.download", _nowhere)
    with pytest.raises(CheckpointError, match="hf:org/other has no results in .*hf-org-other"):
        find_results("hf:org/other", home)


def _nowhere(reference: str, *more: object, **options: object) -> None:
    raise CheckpointError(f"{reference} is nowhere")


def test_results_of_a_directory_have_its_own_name(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "gpt 2").mkdir(parents=True)
    written(home / "evals" / "gpt-2" / "20260101", make_result("x", {"arc": RIGHT}))
    assert find_results(str(tmp_path / "models" / "gpt 2"), home).parent.name == "gpt-2"
    monkeypatch.chdir(tmp_path / "models" / "gpt 2")
    assert find_results(".", home).parent.name == "gpt-2"

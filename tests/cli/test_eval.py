"""nanochat eval: tasks by name, results on the disk, and what is said of what is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat.cli import eval as evaluation
from nanochat.cli.eval import Config, chosen_tasks
from nanochat.cli.main import main
from nanochat.common.dist import World
from nanochat.common.errors import ConfigError, TrainingError
from nanochat.evals.results import read_results
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.cli.models import save_model
from tests.conftest import REPOSITORY
from tests.evals.bundle import write_bundle
from tests.train import test_failures


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "data", without=["coqa"])


def evaluate(*words: str) -> int:
    return main(["eval", "tiny", "--offline", *words])


@pytest.mark.req("FR-037", "FR-043", "US-4")
def test_core_without_one_task_has_an_honest_name_and_is_read_back(
    home: Path, data: Path, tiny_tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(home, tiny_tokenizer, stage="pretrain")
    code = evaluate("--data-dir", str(data), "--limit", "3", "--json")
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert code == 0
    assert set(told["composites"]) == {"core_21_no_coqa", "core_21_no_coqa_v2"}
    assert len(told["tasks"]) == 22 and "is not in" in told["tasks"]["coqa"]["error"]
    copa = told["tasks"]["copa"]
    assert copa["count"] == 3 and copa["interval"][0] <= copa["accuracy"] <= copa["interval"][1]
    assert copa["centered"] == pytest.approx((copa["accuracy"] - 0.5) / 0.5)
    out = Path(told["out"])
    assert out.parent == home / "runs/tiny/pretrain/evals/step_000003"
    result = read_results(out)
    assert result.tasks["copa"].accuracy == copa["accuracy"]
    assert (out / "report.html").is_file() and (out / "report.md").is_file()
    line = json.loads((out / "samples.jsonl").read_text().splitlines()[0])
    assert {"task", "sample_id", "prompt", "output", "choice_logprobs", "is_correct"} <= set(line)


@pytest.mark.req("FR-042", "FR-039", "FR-040")
def test_a_chat_model_is_asked_chat_tasks_and_a_second_run_asks_nothing(
    home: Path, data: Path, tiny_tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(home, tiny_tokenizer)
    words = ("--data-dir", str(data), "--limit", "2", "--max-tokens", "4", "--json")
    outs = [str(home / name) for name in ("one", "two")]
    for out in outs:
        assert evaluate(*words, "--unsafe-code", "--out", out) == 0
    told = capsys.readouterr()
    assert "2 of 2 samples are known already" in told.err
    first, second = (json.loads(line) for line in told.out.splitlines())
    assert set(first["composites"]) == {"chatcore_5", "chatcore_6"}
    for label, task in first["tasks"].items():
        assert task["error"] is None
        assert task["accuracy"] == second["tasks"][label]["accuracy"]
    samples = [(Path(out) / "samples.jsonl").read_bytes() for out in outs]
    assert samples[0] == samples[1]


@pytest.mark.req("FR-043")
def test_the_procedure_is_part_of_every_result(
    home: Path, data: Path, tiny_tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(home, tiny_tokenizer, stage="pretrain")
    words = ("--data-dir", str(data), "--tasks", "copa", "bits_per_byte", "--json")
    assert evaluate(*words, "--compat", "nanochat") == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["mode"] == "nanochat" and told["settings"]["dtype"] == "float32"
    assert len(told["settings"]["model_sha256"]) == 64
    assert told["tasks"]["bits_per_byte"]["bits_per_byte"] > 0
    assert told["tasks"]["bits_per_byte"]["accuracy"] is None
    [(path, digest)] = told["tasks"]["copa"]["data_sha256"].items()
    assert path.endswith("copa.jsonl") and len(digest) == 64


@pytest.mark.req("FR-044")
def test_a_task_of_ones_own_runs_beside_the_others(
    home: Path, tmp_path: Path, tiny_tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(home, tiny_tokenizer, stage="pretrain")
    own = tmp_path / "own.jsonl"
    own.write_text('{"question": "1?", "choices": ["a", "b"], "answer": 0}\n')
    assert evaluate("--task-file", str(own), "--kind", "multiple-choice", "--json") == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(told["tasks"]) == ["own"] and told["tasks"]["own"]["count"] == 1


def test_what_is_wrong_is_told_in_one_line(
    home: Path, data: Path, tiny_tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(home, tiny_tokenizer)
    assert evaluate("--tasks", "nothing") == 2
    assert "no task is called 'nothing'" in capsys.readouterr().err
    assert evaluate("--tasks", "copa") == 2
    assert "no task was scored: eval_bundle" in capsys.readouterr().err
    assert evaluate("--data-dir", str(data / "absent")) == 2
    assert "is not a directory" in capsys.readouterr().err
    assert main(["eval"]) == 2
    assert "there is no model" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="samples is 0"):
        Config(model="tiny", samples=0)


def test_the_usual_tasks_follow_from_what_the_model_is() -> None:
    assert chosen_tasks(Config(model="m"), is_chat=None) == []
    assert len(chosen_tasks(Config(model="m"), is_chat=False)) == 22
    assert chosen_tasks(Config(model="m"), is_chat=True)[0].name == "ARC-Easy"
    assert Config(model="m", compat="nanochat").mode == "nanochat"


def _broken_on_one_rank(world: World) -> str:
    def run(config: Config, chosen: object, world: World | None) -> int:
        assert world is not None
        if world.rank == 1:
            raise ValueError("a file that is not there")
        world.wait()
        return 0

    evaluation._run = run
    try:
        return str(evaluation.run(Config(model="tiny")))
    except (TrainingError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.req("FR-016", "FR-043")
def test_what_ends_one_process_ends_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(test_failures.TASKS, "evaluate", _broken_on_one_rank)
    (_, first), (_, second) = test_failures.in_ranks(2, "evaluate", tmp_path)
    assert second == "ValueError: a file that is not there"
    assert first.startswith("TrainingError: rank 1 (")
    assert first.endswith("ended after step 0: ValueError: a file that is not there")


@pytest.mark.slow
@pytest.mark.req("FR-043")
def test_two_ranks_find_what_one_process_does(
    home: Path, data: Path, tiny_tokenizer: Tokenizer
) -> None:
    save_model(home, tiny_tokenizer, stage="pretrain")
    words = ["eval", "tiny", "--offline", "--data-dir", str(data), "--tasks", "copa,squad,world"]
    words += ["--max-tokens", "3"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    runs = {
        "two": [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "-m"],
        "one": [sys.executable, "-m"],
    }
    for name, command in runs.items():
        other = home / f"home-{name}"  # journals apart
        other.mkdir()
        (other / "runs").symlink_to(home / "runs")
        environment["NANOCHAT_HOME"] = str(other)
        done = subprocess.run(
            [*command, "nanochat", *words, "--out", str(home / name)],
            env=environment, cwd=home, capture_output=True, text=True, timeout=100,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    one, two = (home / name / "samples.jsonl" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()

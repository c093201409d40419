"""nanochat eval: tasks by name, results on the disk, and what is said of what is wrong."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat.cli import eval as evaluation
from nanochat.cli.eval import Config, chosen_tasks
from nanochat.cli.main import main
from nanochat.common.dist import World
from nanochat.common.errors import ConfigError, TrainingError
from nanochat.engine.engine import Engine
from nanochat.evals.results import read_results
from nanochat.server.app import ServedModel, create_app
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.cli.models import CONTEXT_LEN, save_model
from tests.conftest import LOGITS_ATOL, REPOSITORY
from tests.evals.bundle import write_bundle
from tests.evals.foreign_model import write_foreign
from tests.server.conftest import live
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


@pytest.mark.req("FR-043", "FR-044")
def test_half_a_surrogate_pair_in_the_data_reaches_the_reports(
    home: Path, tiny_tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(home, tiny_tokenizer)
    own = home / "own.jsonl"
    rows = [{"question": "1 \ud800?", "choices": ["a \ud800", "b"], "answer": n} for n in (0, 1)]
    own.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    words = ["--task-file", str(own), "--json", "--kind"]
    assert evaluate(*words, "multiple-choice") == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["tasks"]["own"]["count"] == 2
    assert "1 \ufffd?" in (Path(told["out"]) / "report.md").read_text()
    own.write_text('{"question": "1 \\ud800?", "answer": "a \\ud800"}\n')
    assert evaluate(*words, "generative", "--answer-tokens", "2") == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "right: a \ufffd" in (Path(told["out"]) / "report.md").read_text()


@pytest.mark.req("FR-043")
def test_numbers_are_printed_even_where_a_report_cannot_be_written(
    home: Path,
    tiny_tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_model(home, tiny_tokenizer)
    own = home / "own.jsonl"
    own.write_text('{"question": "1?", "choices": ["a", "b"], "answer": 0}\n')

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("nanochat.evals.report_eval.write_reports", full)
    assert evaluate("--task-file", str(own), "--kind", "multiple-choice", "--json") != 0
    told = capsys.readouterr()
    assert json.loads(told.out)["tasks"]["own"]["count"] == 1 and "No space left" in told.err


@pytest.mark.req("FR-043")
def test_a_task_without_data_leaves_the_others_their_reports(
    home: Path, data: Path, tiny_tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(home, tiny_tokenizer, stage="pretrain")
    shutil.rmtree(data / "text")
    words = ("--data-dir", str(data), "--tasks", "copa,piqa,bits_per_byte", "--limit", "4")
    assert evaluate(*words, "--out", str(home / "out"), "--json") == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])["tasks"]
    assert told["bits_per_byte"]["bits_per_byte"] is None
    assert told["bits_per_byte"]["error"].startswith("there is no folder text/ in")
    assert told["copa"]["count"] == 4 and not told["copa"]["notes"]
    assert any(note.startswith("4 of 4: so few rows are asked") for note in told["piqa"]["notes"])
    markdown = (home / "out/report.md").read_text()
    assert "no result: there is no folder text/" in markdown and " nan " not in markdown
    assert "4 of 4: so few rows are asked" in markdown
    assert (home / "out/report.html").is_file()


@pytest.mark.req("FR-043", "FR-053")
def test_a_model_behind_our_own_server_is_examined_as_from_its_files(
    home: Path, data: Path, tiny_tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_model(home, tiny_tokenizer)
    (data / "text/valid.txt").write_text("The fox jumps over the lazy dog. " * 12)
    own = home / "sentences.jsonl"  # the third is longer than the context
    rows = [{"question": "the " * n, "choices": ["fox", "dog"], "answer": 0} for n in (3, 9, 200)]
    own.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    words = ["--data-dir", str(data), "--tasks", "copa,ARC-Easy,GSM8K,bits_per_byte"]
    words += ["--task-file", str(own), "--kind", "multiple-choice", "--max-tokens", "4", "--json"]
    engine = Engine(model, tiny_tokenizer, format="float32")
    served = ServedModel(name="m", tokenizer=tiny_tokenizer, context_len=CONTEXT_LEN, created=0)
    assert evaluate(*words, "--limit", "3") == 0
    with live(create_app(engine, served)) as url:
        assert main(["eval", "m", "--url", url, "--offline", *words, "--limit", "3"]) == 0
    ours, theirs = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    found = [read_results(Path(told["out"])).tasks for told in (ours, theirs)]
    assert theirs["settings"]["top_k"] is None and ours["settings"]["top_k"] == 50
    for label, task in theirs["tasks"].items():
        assert task["error"] is None and task["count"] == ours["tasks"][label]["count"]
    for here, there in zip(*(tasks["copa"].verdicts for tasks in found), strict=True):
        assert there.choice_logprobs == pytest.approx(here.choice_logprobs, abs=LOGITS_ATOL)
    for here, there in zip(*(tasks["GSM8K"].verdicts for tasks in found), strict=True):
        assert there.output == here.output
    flagged = [
        [record.verdict.details.get("flags") for record in tasks["sentences"].records]
        for tasks in found
    ]
    assert flagged[0] == flagged[1] and sum(flags == ["cut"] for flags in flagged[0]) == 1
    [document] = found[1]["bits_per_byte"].verdicts
    assert document.details["flags"] == ["parts"] and document.details["num_parts"] > 1
    numbers = [tasks["bits_per_byte"].bits_per_byte for tasks in found]
    assert numbers[1] == pytest.approx(numbers[0], rel=0.2)  # windows begin elsewhere


@pytest.mark.req("FR-037")
def test_a_model_of_transformers_is_examined_from_its_folder(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    folder, own = home / "gpt2", home / "own.jsonl"
    write_foreign(folder)
    own.write_text('{"question": "one two", "choices": ["three", "four"], "answer": 1}\n')
    words = ["eval", str(folder), "--task-file", str(own), "--kind", "multiple-choice"]
    words += ["--device", "cpu", "--json"]
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["model"] == "gpt2" and told["settings"]["library"] == "transformers"
    assert told["tasks"]["own"]["count"] == 1 and len(told["settings"]["model_sha256"]) == 64
    assert main([*words, "--no-verify"]) == 2
    assert "--no-verify: a model for transformers has no sums" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shots", "2"], "--shots say what is in a --task-file, and there is none: leave it out"),
        (["--url", "http://x", "--dtype", "int8", "--device", "cpu", "--no-verify"],
         "--dtype, --device, --verify is the server's own affair with --url"),
        (["--api-key-env", "KEY"], "--api-key-env is the key for --url, and there is none"),
        (["--sandbox-image", "x"], "--sandbox-image is for --sandbox container, this is auto"),
        (["--top-k", "-1"], "top_k is -1, expected at least 0"),
        (["--temperature", "-1"], "temperature is -1.0, expected at least 0"),
        (["--temperature", "nan"], "temperature is nan, expected at least 0"),
        (["--samples", "8", "--temperature", "0"], "samples is 8 at temperature 0, where all are"),
        (["--samples", "8", "--tasks", "arc*"], "samples is 8, and no task that is named is answ"),
    ],
)  # fmt: skip
def test_flags_that_would_change_nothing_are_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "m", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--url", "http://127.0.0.1:9"], "--url under torchrun would ask"),
        (["--no-cache"], "--no-cache under torchrun: 2 processes tell each other their verdicts"),
        (["--data-dir", "/absent"], "--data-dir /absent is not a directory"),
    ],
)
def test_what_several_processes_cannot_have_is_told_before_a_model_is_looked_for(
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["eval", "m", "--tasks", "world", *words]) == 2  # there is no model m
    assert message in capsys.readouterr().err


def test_what_is_wrong_is_told_in_one_line(
    home: Path, data: Path, tiny_tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(home, tiny_tokenizer)
    assert evaluate("--tasks", "nothing") == 2
    assert "no task is called 'nothing'" in capsys.readouterr().err
    assert evaluate("--tasks", "copa") == 2
    assert "no task was scored: eval_bundle" in capsys.readouterr().err
    own = home / "world.jsonl"
    own.write_text('{"question": "1?", "choices": ["a", "b"], "answer": 0}\n')
    assert evaluate("--task-file", str(own), "--kind", "multiple-choice") == 2
    assert "a task of your own is called 'world'" in capsys.readouterr().err
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

"""Tasks between two steps of training."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nanochat.cli.main import main
from nanochat.common.errors import ConfigError, DataError
from nanochat.evals.compare import differing_keys
from nanochat.evals.download import Downloader
from nanochat.evals.results import read_results
from nanochat.model.gpt import GPT
from nanochat.tokenizer.tokenizer import Tokenizer
from nanochat.train.config import PretrainConfig
from nanochat.train.display import Display
from nanochat.train.examine import examiner
from nanochat.train.stages import train_stage
from tests.cli.models import save_model
from tests.engine.conftest import random_model
from tests.evals.bundle import write_bundle


@pytest.mark.req("FR-037")
def test_scores_have_names_for_the_metrics_and_samples_stay_beside_the_stage(
    home: Path, tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    data = write_bundle(tmp_path / "data")
    config = PretrainConfig(
        eval_tasks=("copa", "winograd,bits_per_byte"), eval_limit=4, eval_data=data
    )
    stage = home / "runs/tiny/pretrain"
    model = random_model().train()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    state = torch.get_rng_state()
    examine = examiner(config, lambda: model, tiny_tokenizer, stage, Display(is_quiet=True))
    assert examine is not None
    scores = examine(7)
    assert set(scores) == {"eval/copa", "eval/winograd", "eval/bits_per_byte"}
    assert json.loads(json.dumps(scores)) == scores == examine(7)
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    result = read_results(stage / "evals/step_000007")
    assert result.model == "tiny/pretrain@7" and result.tasks["copa"].count == 4


@pytest.mark.req("FR-043", "US-4")
def test_the_command_and_an_examination_compare(
    home: Path, tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    data = write_bundle(tmp_path / "data")
    model = save_model(home, tiny_tokenizer, stage="pretrain")
    config = PretrainConfig(
        eval_tasks=("copa", "world", "bits_per_byte"), eval_limit=3, eval_data=data
    )
    stage = home / "runs/tiny/pretrain"
    examine = examiner(config, lambda: model, tiny_tokenizer, stage, Display(is_quiet=True))
    assert examine is not None
    examine(3)
    trained, asked = stage / "evals/step_000003", tmp_path / "asked"
    words = ["--tasks", "copa,world,bits_per_byte", "--limit", "3", "--data-dir", str(data)]
    assert main(["eval", "tiny", "--offline", "--out", str(asked), *words]) == 0
    names = {"summary.json", "samples.jsonl", "report.md", "report.html"}
    assert {path.name for path in trained.iterdir()} == {path.name for path in asked.iterdir()}
    assert names <= {path.name for path in trained.iterdir()}
    assert differing_keys(read_results(trained), read_results(asked)) == []
    assert main(["compare", str(trained), str(asked), "--fail-if-worse"]) == 0
    assert main(["compare", str(asked), str(trained), "--fail-if-worse"]) == 0


@pytest.mark.req("FR-037")
def test_what_an_examination_needs_is_there_before_the_first_step(
    home: Path, tmp_path: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, display = write_bundle(tmp_path / "data"), Display(is_quiet=True)
    shutil.rmtree(data / "text")
    asked: list[str] = []

    def fetch(self: Downloader, path: str) -> Path:
        asked.append(path)
        raise DataError(f"{path} is nowhere")

    monkeypatch.setattr(Downloader, "__call__", fetch)
    config = PretrainConfig(eval_tasks=("copa,bits_per_byte",), eval_data=data)
    with pytest.raises(ConfigError, match="cannot be asked: bits_per_byte: there is no folder te"):
        examiner(config, random_model, tiny_tokenizer, tmp_path, display)
    config = PretrainConfig(eval_tasks=("copa,coqa",), eval_data=tmp_path / "other")
    with pytest.raises(ConfigError, match="copa: eval_bundle.* is nowhere; coqa: .*--eval-data"):
        examiner(config, random_model, tiny_tokenizer, tmp_path, display)
    assert len(asked) == 2


def test_data_that_is_nowhere_is_told_before_an_earlier_run_is_deleted(
    home: Path, tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    stage = home / "runs/d2/pretrain"
    stage.mkdir(parents=True)
    (stage / "of another run").touch()
    config = PretrainConfig(
        eval_tasks=("bits_per_byte",), eval_data=tmp_path, overwrite=True, run="d2"
    )
    work = SimpleNamespace(run="d2", name="pretrain", tokenizer=tiny_tokenizer)
    with pytest.raises(ConfigError, match="there is no folder text/"):
        train_stage(config, work, Display(is_quiet=True))  # type: ignore[arg-type]
    assert (stage / "of another run").exists()


@pytest.mark.req("FR-037")
def test_what_goes_wrong_in_the_middle_is_a_line_and_training_goes_on(
    home: Path, tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    data = write_bundle(tmp_path / "data")
    own = tmp_path / "own.py"
    own.write_text(
        "from nanochat.evals.task import Sample, Task\n"
        "ONE = Sample(sample_id='1', prompt='a ', choices=('b', 'c'))\n"
        "TASK = Task(name='own', version='1', kind='multiple_choice', load=lambda s: [ONE])\n"
    )
    notes: list[str] = []
    display = Display(is_quiet=True)
    display.note = notes.append  # type: ignore[method-assign]
    config = PretrainConfig(eval_tasks=(f"copa,bits_per_byte,{own}",), eval_limit=3, eval_data=data)
    models = iter([random_model(), RuntimeError("out of memory"), random_model()])

    def whole() -> GPT:
        found = next(models)
        if isinstance(found, RuntimeError):
            raise found
        return found

    examine = examiner(config, whole, tiny_tokenizer, home / "runs/tiny/pretrain", display)
    assert examine is not None
    shutil.rmtree(data / "text")
    assert set(examine(1)) == {"eval/copa", "eval/own"}
    assert len(notes) == 1 and "bits_per_byte could not be asked: there is no folder" in notes[0]
    result = read_results(home / "runs/tiny/pretrain/evals/step_000001")
    assert result.tasks["bits_per_byte"].error is not None
    assert examine(2) == {}
    assert "tiny/pretrain@2 cannot be examined: RuntimeError: out of memory" in notes[1]
    (home / "runs/tiny/pretrain/evals/step_000003").write_text("in the way")
    assert set(examine(3)) == {"eval/copa", "eval/own"} and "cannot be written to" in notes[-1]


def test_no_task_no_examination_and_a_wrong_name_ends_before_training(
    tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    display = Display(is_quiet=True)
    assert examiner(PretrainConfig(), random_model, tiny_tokenizer, tmp_path, display) is None
    with pytest.raises(ConfigError, match="no task is called 'cope'"):
        examiner(
            PretrainConfig(eval_tasks=("cope",)), random_model(), tiny_tokenizer, tmp_path, display
        )
    with pytest.raises(ConfigError, match="eval_limit is 0"):
        PretrainConfig(eval_limit=0)

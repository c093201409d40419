"""Tasks between two steps of training."""

import json
from pathlib import Path

import pytest
import torch

from nanochat.common.errors import ConfigError
from nanochat.evals.results import read_results
from nanochat.tokenizer.tokenizer import Tokenizer
from nanochat.train.config import PretrainConfig
from nanochat.train.display import Display
from nanochat.train.examine import examiner
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

"""Ranks that were started otherwise are refused before anything is deleted or waited for."""

import json
from pathlib import Path

import pytest

from nanochat.batches.chapters import StoreToCome
from nanochat.common import watch
from nanochat.common.dist import World
from nanochat.common.errors import ConfigError
from nanochat.tokenizer.tokenizer import Tokenizer
from nanochat.train import examine
from nanochat.train.config import PretrainConfig
from nanochat.train.pretrain import pretrain
from nanochat.train.validation import identity_of
from tests.evals.bundle import write_bundle
from tests.fakes import random_gpt, tiny_config
from tests.train import test_world
from tests.train.test_stages import QUIET, Corpora, corpora, pretrain_config
from tests.train.test_world import in_processes

__all__ = ["corpora"]  # the fixture

FOUND: dict[str, Corpora] = {}  # for forked ranks


def _otherwise(world: World, folder: Path) -> str:
    """What is said where the last rank has another seed, and validates on another text."""
    tokenizer, train, validation, _ = FOUND["corpora"]
    config = pretrain_config(folder, overwrite=True, seed=world.rank)
    with pytest.raises(ConfigError) as refused:
        pretrain(config, tokenizer, train, validation if world.is_first else train, QUIET)
    return str(refused.value)


@pytest.mark.req("FR-016", "FR-020")
def test_ranks_that_differ_delete_nothing(
    corpora: Corpora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FOUND["corpora"] = corpora
    monkeypatch.setattr(watch, "READING_BEATS", 0)  # both find it by themselves
    monkeypatch.setattr(test_world, "TASKS", {"otherwise": _otherwise})
    kept = tmp_path / "runs/d2/pretrain/checkpoints/of an earlier run"
    kept.mkdir(parents=True)
    for told in in_processes(2, "otherwise", tmp_path):
        assert "the ranks do not agree: on rank 1 " in told
        assert "settings.seed is 1 instead of 0" in told and "validation is " in told
    assert kept.is_dir()


@pytest.mark.req("FR-016", "FR-036")
def test_a_text_that_is_not_there_yet_is_known_already(
    corpora: Corpora, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    one, same, other = (StoreToCome(tmp_path / name, tiny_tokenizer) for name in "aab")
    assert identity_of([one]) == identity_of([same]) != identity_of([other])
    assert identity_of([corpora.train]) != identity_of([corpora.validation])


class Elsewhere(World):
    """A world whose other rank has another file for a task."""

    def texts(self, text: str) -> list[str]:
        facts = json.loads(text)
        facts["eval_data"] = dict.fromkeys(facts["eval_data"], "f" * 64)
        return [text, json.dumps(facts)]


@pytest.mark.req("FR-016", "FR-037")
def test_tasks_have_the_same_data_on_all_ranks(
    tiny_tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = PretrainConfig(
        home=tmp_path, eval_tasks=("copa",), eval_data=write_bundle(tmp_path / "data")
    )
    monkeypatch.setattr(examine, "current_world", lambda: Elsewhere(size=2))
    with pytest.raises(ConfigError, match=r"on rank 1 eval_data\..*copa.* is ffffffffffff\.\.\. "):
        examine.examiner(config, lambda: random_gpt(tiny_config()), tiny_tokenizer, tmp_path, QUIET)

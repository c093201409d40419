"""Ranks that were started otherwise are refused before anything is deleted or waited for."""

from pathlib import Path

import pytest

from nanochat.batches.chapters import StoreToCome
from nanochat.common import watch
from nanochat.common.dist import World
from nanochat.common.errors import ConfigError
from nanochat.tokenizer.tokenizer import Tokenizer
from nanochat.train.pretrain import pretrain
from nanochat.train.validation import identity_of
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

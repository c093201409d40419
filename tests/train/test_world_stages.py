"""Stages on several ranks leave what one rank leaves, and one goes on where the other stopped."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from nanochat.checkpoint.format import find_steps
from nanochat.common.dist import World, current_world
from nanochat.common.errors import ConfigError, Stopped
from nanochat.train.config import MidtrainConfig, PretrainConfig, SftConfig
from nanochat.train.display import Display
from nanochat.train.midtrain import midtrain
from nanochat.train.pretrain import pretrain
from nanochat.train.sft import sft
from tests.train import test_world
from tests.train.test_stages import QUIET, Corpora, chat_config, corpora, pretrain_config
from tests.train.test_world import in_processes

__all__ = ["corpora"]  # the fixture

FOUND: dict[str, Corpora] = {}  # for forked ranks


def config_of(home: Path, **said: Any) -> PretrainConfig:
    return pretrain_config(home, **{"num_steps": 6, "save_every": 3, "eval_every": 3, **said})


def losses_in(home: Path, stage: str = "pretrain") -> list[float]:
    lines = (home / "runs/d2" / stage / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def _all_stages(world: World, folder: Path) -> list[str]:
    """Base model with the model cut in two, the others with shared moments; who wrote what."""
    tokenizer, train, validation, chats = FOUND["corpora"]
    config = config_of(folder, shard_model="on", recompute="on")
    pretrain(config, tokenizer, train, validation, QUIET)
    mid = chat_config(MidtrainConfig, folder, num_steps=2)
    midtrain(mid, chats, validation, QUIET)
    finished = sft(chat_config(SftConfig, folder, num_steps=2), chats, None, QUIET)
    told = [finished.checkpoint.name]
    try:
        seed = world.rank
        pretrain(config_of(folder, run="other", seed=seed), tokenizer, train, validation, QUIET)
    except ConfigError as error:
        told.append(str(error))
    return told


@pytest.mark.req("FR-016", "FR-019", "FR-020", "SC-011")
def test_two_ranks_through_all_stages_and_one_goes_on(
    corpora: Corpora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FOUND["corpora"] = corpora
    monkeypatch.setattr(test_world, "TASKS", {"stages": _all_stages})
    for told in in_processes(2, "stages", tmp_path):
        assert told[0] == "step_000002"
        assert "the ranks do not agree: on rank 1 " in told[1]
        assert "seed is 1 instead of 0" in told[1] and "first weights is " in told[1]
    current_world.cache_clear()
    run = tmp_path / "runs/d2"
    both = losses_in(tmp_path)
    assert len(both) == 6 and len(losses_in(tmp_path, "sft")) == 2
    assert " of 2, start 1" in (run / "pretrain/log.rank1.txt").read_text()
    assert json.loads((run / "pretrain/plan.json").read_text())["is_sharded"]
    newest = run / "pretrain/checkpoints/step_000006"
    weights = load_file(newest / "model.safetensors")
    moments = load_file(newest / "optimizer.safetensors")
    shutil.rmtree(newest)
    tokenizer, train, validation, _ = corpora
    finished = pretrain(config_of(tmp_path), tokenizer, train, validation, QUIET)  # alone
    assert losses_in(tmp_path) == pytest.approx(both, rel=1e-5)
    assert [row["step"] for row in finished.metrics] == [1, 2, 3, 4, 5, 6]
    again = load_file(newest / "model.safetensors")
    for name, weight in weights.items():
        # Three steps after the beginning the scalars still follow the rounding of their gradients.
        assert float((again[name] - weight).abs().max()) <= 0.02 * float(weight.abs().max()), name
    assert load_file(newest / "optimizer.safetensors").keys() == moments.keys()


class StopAfter(Display):
    """A display whose process gets a SIGTERM when a step is reported."""

    def __init__(self, step: int) -> None:
        super().__init__(is_quiet=True)
        self._last = step

    def step(self, metrics: Any) -> None:
        if metrics["step"] == self._last:
            os.kill(os.getpid(), signal.SIGTERM)


def _resume(world: World, folder: Path) -> str:
    """On two ranks until the last of them is told to stop, on four to the end."""
    tokenizer, train, validation, _ = FOUND["corpora"]
    is_told = world.size == 2 and world.rank == 1
    try:
        finished = pretrain(
            config_of(folder, **LONGER, resume=True),
            tokenizer,
            train,
            validation,
            StopAfter(7) if is_told else QUIET,
        )
    except Stopped as stopped:
        return str(stopped)
    return finished.checkpoint.name


LONGER: dict[str, Any] = {"num_steps": 12, "save_every": 0, "eval_every": 0}


@pytest.mark.req("FR-016", "FR-019", "FR-020", "SC-011", "EC-5")
def test_a_run_goes_on_with_more_ranks_and_more(
    corpora: Corpora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun on one rank and stopped, gone on with on two and stopped, ended on four: through the
    disk, with the losses of a run that was alone and never stopped."""
    FOUND["corpora"] = corpora
    monkeypatch.setattr(test_world, "TASKS", {"resume": _resume})
    tokenizer, train, validation, _ = corpora
    current_world.cache_clear()
    pretrain(config_of(tmp_path / "whole", **LONGER), tokenizer, train, validation, QUIET)
    halting = tmp_path / "halting"
    halting.mkdir()
    with pytest.raises(Stopped):
        pretrain(config_of(halting, **LONGER), tokenizer, train, validation, StopAfter(4))
    steps = [*find_steps(halting / "runs/d2/pretrain")]
    for told in in_processes(2, "resume", halting):
        assert "stopped by SIGTERM after step" in told
    steps += [*find_steps(halting / "runs/d2/pretrain")][len(steps) :]
    assert len(steps) == 2 and 4 <= steps[0] < 7 <= steps[1] < 12
    assert in_processes(4, "resume", halting) == ["step_000012"] * 4
    current_world.cache_clear()
    log = (halting / "runs/d2/pretrain/log.txt").read_text()
    assert [f"going on after step {step} of 12" in log for step in steps] == [True, True]
    assert losses_in(halting) == pytest.approx(losses_in(tmp_path / "whole"), rel=1e-5)
    rows = (halting / "runs/d2/pretrain/metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [*range(1, 13)]

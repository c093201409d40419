"""A run that was stopped and went on cannot be told from one that never stopped."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from nanochat.batches.batch import Batch
from nanochat.checkpoint.format import find_steps, is_finished
from nanochat.checkpoint.resolve import resolve
from nanochat.common.errors import ConfigError
from nanochat.model.gpt import GPT
from nanochat.train import loop
from nanochat.train.config import MidtrainConfig, SftConfig
from nanochat.train.display import Display
from nanochat.train.keeper import differences
from nanochat.train.loss import loss_sum
from nanochat.train.midtrain import midtrain
from nanochat.train.pretrain import pretrain
from nanochat.train.sft import sft
from nanochat.train.stages import Finished
from tests.train.test_stages import QUIET, Corpora, chat_config, corpora, pretrain_config

__all__ = ["corpora"]  # the fixture

Run = Callable[[Path, Display, dict[str, Any]], Finished]


class Killed(Exception):
    """What stands in for kill -9: nothing of the loop's own runs after it."""


class KillAfter(Display):
    """A display whose process dies when a step is reported."""

    def __init__(self, step: int) -> None:
        super().__init__(is_quiet=True)
        self._last = step

    def step(self, metrics: Any) -> None:
        if metrics["step"] == self._last:
            raise Killed


class Notes(Display):
    """What a user reads."""

    def __init__(self) -> None:
        super().__init__(is_quiet=True)
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def runs(corpora: Corpora) -> dict[str, Run]:
    """Each stage as a function of its home, its display and what is said."""
    tokenizer, train, validation, chats = corpora

    def pre(home: Path, display: Display, said: dict[str, Any]) -> Finished:
        config = pretrain_config(
            home, **{"num_steps": 12, "save_every": 4, "eval_every": 4, **said}
        )
        return pretrain(config, tokenizer, train, validation, display)

    def based(home: Path) -> None:
        if not (home / "runs/d2/pretrain").is_dir():
            pre(home, QUIET, {"num_steps": 2})

    def mid(home: Path, display: Display, said: dict[str, Any]) -> Finished:
        based(home)
        said = {"num_steps": 12, "save_every": 5, "eval_every": 5, **said}
        return midtrain(chat_config(MidtrainConfig, home, **said), chats, validation, display)

    def tune(home: Path, display: Display, said: dict[str, Any]) -> Finished:
        based(home)
        said = {"num_epochs": 3, "save_every": 5, "eval_every": 0, **said}
        return sft(chat_config(SftConfig, home, **said), chats, None, display)

    return {"pretrain": pre, "midtrain": mid, "sft": tune}


def everything(finished: Finished) -> dict[str, Tensor]:
    """Weights and moments of a checkpoint."""
    weights = load_file(finished.checkpoint / "model.safetensors")
    return weights | load_file(finished.checkpoint / "optimizer.safetensors")


def measured(finished: Finished) -> list[tuple[float | None, ...]]:
    """What metrics.jsonl says that does not depend on the clock."""
    lines = (finished.checkpoint.parents[1] / "metrics.jsonl").read_text().splitlines()
    names = ("step", "loss", "grad_norm", "lr", "num_targets", "val_bpb")
    return [tuple(json.loads(line).get(name) for name in names) for line in lines]


@pytest.mark.parametrize("stage", ["pretrain", "midtrain", "sft"])
@pytest.mark.parametrize("kills", [(5,), (11,), (4, 7, 10)])
@pytest.mark.req("FR-019", "FR-020", "SC-011", "EC-5")
def test_stopping_leaves_no_trace(
    stage: str, kills: tuple[int, ...], corpora: Corpora, tmp_path: Path
) -> None:
    """Killed within a group of packed rows, right after saving, and several times."""
    run = runs(corpora)[stage]
    whole = run(tmp_path / "whole", QUIET, {})
    for kill in kills:
        with pytest.raises(Killed):
            run(tmp_path / "halting", KillAfter(kill), {})
    notes = Notes()
    halted = tmp_path / "halting/runs/d2" / stage
    assert not is_finished(halted)
    halting = run(tmp_path / "halting", notes, {})
    assert is_finished(halted)
    assert any("going on after step" in line for line in notes.lines)
    assert measured(halting) == measured(whole)
    expected, found = everything(whole), everything(halting)
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


@pytest.mark.req("FR-020")
def test_killed_before_the_first_checkpoint(corpora: Corpora, tmp_path: Path) -> None:
    run = runs(corpora)["pretrain"]
    whole = run(tmp_path / "whole", QUIET, {})
    with pytest.raises(Killed):
        run(tmp_path / "halting", KillAfter(2), {})
    assert measured(run(tmp_path / "halting", QUIET, {"resume": True})) == measured(whole)


@pytest.mark.req("FR-046")
def test_a_run_stands_for_its_last_finished_stage(corpora: Corpora, tmp_path: Path) -> None:
    tune = runs(corpora)["sft"]
    with pytest.raises(Killed):
        tune(tmp_path, KillAfter(6), {})
    assert resolve("d2", tmp_path).parts[-3] == "pretrain"
    patience_s = time.monotonic() + 30
    while not find_steps(tmp_path / "runs" / "d2" / "sft") and time.monotonic() < patience_s:
        time.sleep(0.01)  # it is written beside the steps, and was when they were cut off
    assert resolve("d2/sft", tmp_path).name == "step_000005"  # by name it can be had
    tune(tmp_path, QUIET, {})
    assert resolve("d2", tmp_path).parts[-3] == "sft"


@pytest.mark.req("FR-020")
def test_a_finished_stage(corpora: Corpora, tmp_path: Path) -> None:
    """Again is an error, --resume says what there is, and more steps are another plan."""
    run = runs(corpora)["pretrain"]
    first = run(tmp_path, QUIET, {})
    before = measured(first)
    with pytest.raises(ConfigError, match="has finished pretrain already"):
        run(tmp_path, QUIET, {})
    again = run(tmp_path, QUIET, {"resume": True})
    assert measured(again) == before and again.val_bpb == first.val_bpb
    with pytest.raises(ConfigError, match=r"plan\.num_steps was 12, is 14.*--allow-changed"):
        run(tmp_path, QUIET, {"resume": True, "num_steps": 14})
    longer = run(tmp_path, QUIET, {"resume": True, "num_steps": 14, "allow_changed": True})
    assert [row[0] for row in measured(longer)] == list(range(1, 15))
    assert measured(longer)[:12] == before


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ({"lr_scale": 2.0}, "plan.schedule.peak_lr was 1.0, is 2.0"),
        ({"batch_tokens": 1024}, "plan.batch_rows was 4, is 8"),
        ({"seed": 5}, "seed was 0, is 5"),
        ({"dtype": "bfloat16"}, "dtype was float32, is bfloat16"),
        ({"num_steps": 13}, "plan.num_steps was 12, is 13"),
        ({"context_len": 64, "batch_tokens": 256}, "model.context_len was 128, is 64"),
    ],
)
@pytest.mark.req("FR-020")
def test_what_changed_is_named(
    said: dict[str, Any], what: str, corpora: Corpora, tmp_path: Path
) -> None:
    run = runs(corpora)["pretrain"]
    with pytest.raises(Killed):
        run(tmp_path, KillAfter(6), {})
    before = (tmp_path / "runs/d2/pretrain/metrics.jsonl").read_bytes()
    with pytest.raises(ConfigError) as refusal:
        run(tmp_path, QUIET, said)
    assert what in str(refusal.value) and "--allow-changed" in str(refusal.value)
    assert (tmp_path / "runs/d2/pretrain/metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("allow_changed", [False, True])
@pytest.mark.parametrize(
    ("said", "what"),
    [
        ({"depth": 3, "run": "d2"}, "of another model: .*model.num_layers was 2, is 3"),
        ({"generation": "v4"}, "of another model: model.backout was True, is False"),
        ({"num_steps": 3}, "come to step 4, and the plan ends after 3: expected .* at least 4"),
        ({"num_steps": 2}, "come to step 4, and the plan ends after 2: expected .* at least 4"),
    ],
)
@pytest.mark.req("FR-020")
def test_what_cannot_go_on_is_refused(
    said: dict[str, Any], what: str, allow_changed: bool, corpora: Corpora, tmp_path: Path
) -> None:
    """Nobody is sent to a flag that would not help: neither another model's weights nor a run past
    its end can go on."""
    run = runs(corpora)["pretrain"]
    done = run(tmp_path, QUIET, {"num_steps": 4, "save_every": 2})
    before = everything(done)
    with pytest.raises(ConfigError, match=what) as refusal:
        run(tmp_path, QUIET, {**said, "resume": True, "allow_changed": allow_changed})
    assert "--allow-changed" not in str(refusal.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in everything(done).items())


@pytest.mark.req("FR-020")
def test_another_corpus_is_named(corpora: Corpora, tmp_path: Path) -> None:
    run = runs(corpora)["pretrain"]
    with pytest.raises(Killed):
        run(tmp_path, KillAfter(6), {})
    other = corpora._replace(train=corpora.validation)
    with pytest.raises(ConfigError, match=r"data was [0-9a-f]{12}\.\.\., is [0-9a-f]{12}\.\.\."):
        runs(other)["pretrain"](tmp_path, QUIET, {})
    run_anyway = runs(other)["pretrain"]
    assert run_anyway(tmp_path, QUIET, {"allow_changed": True}).metrics[-1]["step"] == 12


@pytest.mark.req("FR-020")
def test_what_may_change(corpora: Corpora, tmp_path: Path) -> None:
    """How often one looks, saves and logs decides nothing."""
    run = runs(corpora)["pretrain"]
    whole = run(tmp_path / "whole", QUIET, {})
    with pytest.raises(Killed):
        run(tmp_path / "halting", KillAfter(6), {})
    said = {"save_every": 3, "eval_every": 2, "log_every": 1, "keep_last": 1, "max_skips": 3}
    halting = run(tmp_path / "halting", QUIET, said)
    losses = [row[1] for row in measured(whole)]
    assert [row[1] for row in measured(halting)] == losses


@pytest.mark.req("EC-2", "EC-5", "FR-047")
def test_a_damaged_checkpoint_is_passed_over(corpora: Corpora, tmp_path: Path) -> None:
    run = runs(corpora)["pretrain"]
    whole = run(tmp_path / "whole", QUIET, {})
    with pytest.raises(Killed):
        run(tmp_path / "halting", KillAfter(10), {})
    weights = tmp_path / "halting/runs/d2/pretrain/checkpoints/step_000008/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    notes = Notes()
    assert measured(run(tmp_path / "halting", notes, {})) == measured(whole)
    assert any("step_000008 is passed over: " in line for line in notes.lines)
    assert any("going on after step 4 of 12" in line for line in notes.lines)


@pytest.mark.req("EC-8", "FR-020", "FR-060")
def test_numbers_that_break_send_it_back_to_its_checkpoint(
    corpora: Corpora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps 7 and 8 are no numbers: back to step 4, and batches 4 to 7 are passed over."""
    calls: list[int] = []

    def loss(model: GPT, batch: Batch) -> Tensor:
        calls.append(1)
        return loss_sum(model, batch) * (math.nan if len(calls) in (7, 8) else 1.0)

    monkeypatch.setattr(loop, "loss_sum", loss)
    run = runs(corpora)["pretrain"]
    said = {"max_skips": 2, "eval_every": 0, "device_batch_rows": 4}
    notes = Notes()
    done = run(tmp_path, notes, said)
    assert any("back to step 4, and batches 4 to 7 are passed over" in x for x in notes.lines)
    state = json.loads((done.checkpoint / "state.json").read_text())["progress"]
    assert state["skipped"] == [4, 5, 6, 7] and state["discarded"] == [6, 7]
    assert [row[0] for row in measured(done)] == list(range(1, 13))
    assert len(calls) == 12 + 4


@pytest.mark.req("EC-8", "FR-019", "FR-020", "FR-060")
def test_a_checkpoint_between_updates_that_break_is_no_place_to_go_back_to(
    corpora: Corpora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps 5 to 7 are no numbers, and step 6 is saved: back to step 3, which stays although one
    checkpoint alone is kept."""
    calls: list[int] = []

    def loss(model: GPT, batch: Batch) -> Tensor:
        calls.append(1)
        return loss_sum(model, batch) * (math.nan if len(calls) in (5, 6, 7) else 1.0)

    monkeypatch.setattr(loop, "loss_sum", loss)
    run = runs(corpora)["pretrain"]
    said = {"max_skips": 3, "save_every": 3, "keep_last": 1, "eval_every": 0}
    notes = Notes()
    done = run(tmp_path, notes, {**said, "device_batch_rows": 4})
    assert any("step_000006 is passed over: saved between updates" in line for line in notes.lines)
    assert any("back to step 3, and batches 3 to 6 are passed over" in x for x in notes.lines)
    progress = json.loads((done.checkpoint / "state.json").read_text())["progress"]
    assert progress["skipped"] == [3, 4, 5, 6] and progress["streak"] == 0
    assert [path.name for path in done.checkpoint.parent.glob("step_*")] == ["step_000012"]


def test_differences() -> None:
    before = {"a": 1, "deep": {"same": [1], "b": 2.0}, "digest": "f" * 64, "gone": None}
    now = {"a": 1, "deep": {"same": [1], "b": 3.0}, "digest": "e" * 64, "new": True}
    assert differences(before, now) == [
        "deep.b was 2.0, is 3.0",
        f"digest was {'f' * 12}..., is {'e' * 12}...",
        "new was None, is True",
    ]


# ---------------------------------------------------------------------------- as a user sees it


def pretrain_command(home: Path, *words: str) -> list[str]:
    flags = (
        "--depth 2 --context-len 64 --head-dim 16 --aspect-ratio 16 --vocab-size 300 "
        "--world-chars 20000 --batch-tokens 256 --num-steps 4000 --device cpu --dtype float32 "
        "--compile off --eval-tokens 64 --eval-every 0 --save-every 0 --log-every 1"
    ).split()
    return [sys.executable, "-m", "nanochat", "pretrain", "--home", str(home), *flags, *words]


@pytest.mark.req("FR-020", "EC-5")
def test_sigterm_saves_and_the_same_command_goes_on(tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = pretrain_command(tmp_path)
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "step 20/" in line:
                process.send_signal(signal.SIGTERM)
                break
        rest = process.stderr.read()
    assert process.returncode == 143
    assert "pretrain was stopped by SIGTERM after step" in rest and "Traceback" not in rest
    [saved] = (tmp_path / "runs/d2/pretrain/checkpoints").glob("step_*")
    step = int(saved.name.removeprefix("step_"))
    assert step >= 20
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if f"step {step + 1}/" in line:
                process.send_signal(signal.SIGINT)
                time.sleep(0.05)
                process.send_signal(signal.SIGINT)  # the second one ends it at once
                break
        process.stderr.read()
    assert process.returncode in (130, -signal.SIGINT)
    assert any(f"going on after step {step} of 4000" in line for line in lines)


@pytest.mark.req("FR-012")
def test_a_dry_run_touches_nothing(
    corpora: Corpora, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from nanochat.cli.main import main

    home = tmp_path / "home"
    words = "--depth 2 --context-len 64 --head-dim 16 --aspect-ratio 16 --vocab-size 300".split()
    assert main(["pretrain", "--home", str(home), "--dry-run", *words]) == 0
    told = capsys.readouterr().err
    assert all(name in told for name in ("steps", "parameters", "memory", "time"))
    assert not home.exists()
    runs(corpora)["pretrain"](home, QUIET, {"num_steps": 2})
    files = sorted(path for path in home.rglob("*"))
    for verb in ("midtrain", "sft"):
        words = ["d2", "--num-conversations", "20", "--world-chars", "5000", "--dry-run"]
        assert main([verb, *words, "--home", str(home)]) == 0
        assert "GiB" in capsys.readouterr().err
    assert sorted(path for path in home.rglob("*")) == files

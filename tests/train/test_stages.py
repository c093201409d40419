"""Pretraining, mid-training and SFT end to end on a little of the built-in world."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

import nanochat
from nanochat.batches.batch import IGNORE
from nanochat.batches.store import TokenStore
from nanochat.batches.store_writer import tokenize_conversations, tokenize_corpus
from nanochat.batches.stream import ConversationStream
from nanochat.checkpoint.resolve import load
from nanochat.common.errors import CheckpointError, ConfigError
from nanochat.corpus.documents import Document
from nanochat.corpus.world import conversations, prose
from nanochat.model.config import Generation, GPTConfig
from nanochat.tokenizer.chat import render_training
from nanochat.tokenizer.tokenizer import Tokenizer
from nanochat.train import continuation, stages
from nanochat.train.config import MidtrainConfig, PretrainConfig, SftConfig
from nanochat.train.display import Display
from nanochat.train.loop import Stage
from nanochat.train.midtrain import midtrain
from nanochat.train.pilot import tokens_per_s
from nanochat.train.pretrain import model_config_of, pretrain
from nanochat.train.sft import sft
from nanochat.train.stages import Finished, hardware_of
from tests.fakes import tiny_config

QUIET = Display(is_quiet=True)


class Corpora(NamedTuple):
    """What the tests train on, tokenized once."""

    tokenizer: Tokenizer
    train: TokenStore
    validation: TokenStore
    chats: TokenStore


@pytest.fixture(scope="module")
def corpora(tiny_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Corpora:
    folder = tmp_path_factory.mktemp("stores")

    def texts(name: str, seed: int) -> TokenStore:
        documents = [Document(text, "world", n) for n, text in enumerate(prose(6_000, seed))]
        return tokenize_corpus(documents, tiny_tokenizer, folder / name)

    chats = tokenize_conversations(
        conversations("sft", num_conversations=40),
        lambda conversation: render_training(conversation, tiny_tokenizer),
        tiny_tokenizer,
        folder / "chats",
    )
    return Corpora(tiny_tokenizer, texts("train", 0), texts("validation", 1), chats)


def pretrain_config(home: Path, **said: Any) -> PretrainConfig:
    values: dict[str, Any] = {
        "home": home,
        "depth": 2,
        "context_len": 128,
        "head_dim": 16,
        "aspect_ratio": 16,
        "num_steps": 6,
        "batch_tokens": 512,
        "eval_tokens": 512,
        "eval_every": 3,
        "device": "cpu",
        "dtype": "float32",
        "compile": "off",
    }
    return PretrainConfig(**{**values, **said})


def chat_config(kind: Callable[..., Any], home: Path, **said: Any) -> Any:
    values: dict[str, Any] = {
        "home": home,
        "model": "d2",
        "batch_tokens": 512,
        "eval_tokens": 512,
        "device": "cpu",
        "dtype": "float32",
        "compile": "off",
    }
    return kind(**{**values, **said})


class Story(NamedTuple):
    home: Path
    base: Finished
    mid: Finished
    tuned: Finished


@pytest.fixture(scope="module")
def story(corpora: Corpora, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """The three stages, one after the other, in one home."""
    home = tmp_path_factory.mktemp("story")
    tokenizer, train, validation, chats = corpora
    base = pretrain(pretrain_config(home), tokenizer, train, validation, QUIET)
    mid = midtrain(
        chat_config(MidtrainConfig, home, model="d2/pretrain@6"), chats, validation, QUIET
    )
    tuned = sft(chat_config(SftConfig, home, num_steps=4), chats, None, QUIET)
    return Story(home, base, mid, tuned)


def state_of(finished: Finished) -> dict[str, Any]:
    return json.loads((finished.checkpoint / "state.json").read_text())


# ------------------------------------------------------------------------------ what they leave


@pytest.mark.req("FR-019", "FR-021", "FR-022", "FR-023", "FR-045")
def test_the_run_directory(story: Story) -> None:
    run = story.home / "runs" / "d2"
    assert sorted(path.name for path in run.iterdir()) == ["midtrain", "pretrain", "sft"]
    for finished in story[1:]:
        stage = run / finished.stage
        assert finished.run == "d2" and finished.checkpoint.parent == stage / "checkpoints"
        assert sorted(path.name for path in stage.iterdir()) == [
            "checkpoints",
            "config.json",
            "log.txt",
            "metrics.jsonl",
            "plan.json",
        ]
        steps = len(finished.metrics)
        assert (stage / f"checkpoints/step_{steps:06d}/manifest.json").is_file()
        assert sorted(path.name for path in finished.checkpoint.iterdir()) == [
            "config.json",
            "manifest.json",
            "model.safetensors",
            "optimizer.safetensors",
            "state.json",
            "tokenizer",
        ]
        rows = (stage / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(row) for row in rows] == finished.metrics
        plan = json.loads((stage / "plan.json").read_text())
        assert plan["num_steps"] == steps and plan["batch_tokens"] == 512
        assert plan["reasons"]["learning rates"]


@pytest.mark.req("FR-045")
def test_a_run_remembers_how_it_was_made(story: Story) -> None:
    for finished in story[1:]:
        made = json.loads((finished.checkpoint.parents[1] / "config.json").read_text())
        assert made["stage"] == finished.stage
        assert made["settings"]["batch_tokens"] == 512
        assert GPTConfig.from_json(made["model"]) == finished.model.config
        assert made["tokenizer_hash"] == finished.tokenizer.content_hash
        assert made["nanochat"] == nanochat.__version__ and made["torch"] == torch.__version__


@pytest.mark.req("FR-020", "FR-046")
def test_lineage(story: Story) -> None:
    base, mid, tuned = (state_of(finished) for finished in story[1:])
    assert (base["stage"], mid["stage"], tuned["stage"]) == ("pretrain", "midtrain", "sft")
    assert base["parent"] is None
    assert mid["parent"] == str(story.base.checkpoint)
    assert tuned["parent"] == str(story.mid.checkpoint)  # `d2` alone: its last stage
    assert (base["step"], tuned["step"]) == (6, 4)
    last = dict(story.base.metrics[-1])
    del last["val_bpb"]  # measured after saving
    assert base["metrics"] == last
    loaded = load("d2", home=story.home)
    assert (loaded.path, loaded.stage, loaded.is_chat) == (story.tuned.checkpoint, "sft", True)


@pytest.mark.req("FR-025")
def test_validation(story: Story) -> None:
    found = [row["val_bpb"] for row in story.base.metrics if "val_bpb" in row]
    assert len(found) == 2 and found[1] < found[0] < 10
    assert story.base.val_bpb == found[1] and story.mid.val_bpb is not None
    assert story.tuned.val_bpb is None  # no validation text was given


@pytest.mark.req("FR-021")
def test_the_first_loss_is_that_of_knowing_nothing(story: Story) -> None:
    vocab_size = story.base.tokenizer.vocab_size
    expected = float(torch.tensor(float(vocab_size)).log())
    assert story.base.metrics[0]["loss"] == pytest.approx(expected, abs=0.01)
    assert story.base.metrics[-1]["loss"] < expected - 0.05  # six small steps


@pytest.mark.req("SC-008", "FR-045")
def test_what_was_trained_is_what_is_saved(story: Story) -> None:
    for finished in story[1:]:
        saved = load_file(finished.checkpoint / "model.safetensors")
        for name, weight in finished.model.named_parameters():
            assert torch.equal(saved[name], weight.detach()), name


# ---------------------------------------------------------------------------- conversations


@pytest.mark.req("FR-022")
def test_midtraining_goes_once_through_all_conversations(story: Story, corpora: Corpora) -> None:
    stream = ConversationStream(corpora.chats, 128, is_masked=False, num_epochs=1)
    assert len(story.mid.metrics) == -(-stream.num_rows_per_epoch // 4)
    trained = sum(row["num_targets"] for row in story.mid.metrics)
    assert trained > 0.9 * stream.num_rows_per_epoch * 100  # packed, every token trained


@pytest.mark.req("FR-023")
def test_sft_trains_what_the_assistant_says(story: Story, corpora: Corpora) -> None:
    """Step by step the targets are those of the mask, about a third of the tokens."""
    stream = ConversationStream(corpora.chats, 128, layout="padded", num_epochs=None)
    for index, row in enumerate(story.tuned.metrics):
        batch = stream.batch(index, 4)
        assert row["num_targets"] == batch.num_targets
        assert 0 < batch.num_targets < (batch.inputs_BT != corpora.tokenizer.bos).sum()
    unmasked = [
        ConversationStream(corpora.chats, 128, layout="padded", is_masked=False).batch(n, 4)
        for n in range(4)
    ]
    assert sum(row["num_targets"] for row in story.tuned.metrics) < 0.8 * sum(
        int((batch.targets_BT != IGNORE).sum()) for batch in unmasked
    )


@pytest.mark.req("FR-020", "FR-023")
def test_moments_are_taken_over(
    story: Story, corpora: Corpora, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The optimizer of SFT begins where mid-training's ended; without its file, from nothing."""
    begun: list[dict[str, torch.Tensor]] = []
    fit = stages.fit

    def note(stage: Stage) -> Any:
        state = stage.optimizer.state()
        begun.append({name: moment.clone() for name, moment in state.items()})
        return fit(stage)

    monkeypatch.setattr(stages, "fit", note)
    config = chat_config(SftConfig, story.home, model="d2/midtrain", run="warm", num_steps=1)
    sft(config, corpora.chats, None, QUIET)
    before = load_file(story.mid.checkpoint / "optimizer.safetensors")
    assert set(begun[0]) == set(before)
    assert all(torch.equal(begun[0][name], before[name]) for name in before)
    read = continuation.read
    monkeypatch.setattr(
        continuation,
        "read",
        lambda path, with_optimizer: dataclasses.replace(read(path), optimizer=None),
    )
    sft(dataclasses.replace(config, run="cold"), corpora.chats, None, QUIET)
    assert begun[1]["num_steps"] == 0
    assert not any(moment.any() for moment in begun[1].values())


@pytest.mark.parametrize("generation", ["v1", "v2", "v3", "v4"])
@pytest.mark.req("FR-046", "FR-048", "FR-070")
def test_every_generation_can_be_trained_on(
    generation: Generation, corpora: Corpora, home: Path
) -> None:
    tokenizer, train, validation, chats = corpora
    config = pretrain_config(home, generation=generation, num_steps=2, eval_every=0, run="old")
    pretrain(config, tokenizer, train, validation, QUIET)
    tuned = sft(chat_config(SftConfig, home, model="old", num_steps=2), chats, None, QUIET)
    assert state_of(tuned)["parent"].endswith("old/pretrain/checkpoints/step_000002")
    assert tuned.model.config == model_config_of(config, tokenizer.vocab_size)
    assert tuned.metrics[-1]["loss"] > 0


# ------------------------------------------------------------------------------ seeds and dtypes


@pytest.mark.req("SC-011", "FR-033")
def test_equal_seeds_give_equal_runs(corpora: Corpora, home: Path) -> None:
    tokenizer, train, validation, _ = corpora

    def losses(run: str, seed: int) -> list[float]:
        config = pretrain_config(home, run=run, seed=seed, num_steps=3)
        return [
            row["loss"] for row in pretrain(config, tokenizer, train, validation, QUIET).metrics
        ]

    assert losses("a", 5) == losses("b", 5) != losses("c", 6)
    weights = [
        load_file(home / f"runs/{run}/pretrain/checkpoints/step_000003/model.safetensors")
        for run in "ab"
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.req("FR-045", "SC-007")
def test_bfloat16_runs_save_float32(corpora: Corpora, home: Path) -> None:
    tokenizer, train, validation, _ = corpora
    config = pretrain_config(home, dtype="bfloat16", num_steps=3, device_batch_rows=2)
    done = pretrain(config, tokenizer, train, validation, QUIET)
    assert done.model.embedding.weight.dtype == torch.bfloat16
    saved = load_file(done.checkpoint / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    moved = saved["blocks.0.attention.query.weight"]
    assert not torch.equal(moved, moved.bfloat16().float())


# ------------------------------------------------------------------------------------- refusals


@pytest.mark.req("FR-019")
def test_a_finished_stage_is_not_overwritten_by_accident(corpora: Corpora, home: Path) -> None:
    tokenizer, train, validation, chats = corpora
    config = pretrain_config(home, num_steps=1, eval_every=0)
    first = pretrain(config, tokenizer, train, validation, QUIET)
    files = {path: path.read_bytes() for path in first.checkpoint.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="run d2 has finished pretrain already.*--overwrite"):
        pretrain(dataclasses.replace(config, num_steps=2), tokenizer, train, validation, QUIET)
    # --overwrite deletes only when everything else about the run is in order
    wrong = dataclasses.replace(config, overwrite=True, batch_tokens=1)
    with pytest.raises(ConfigError, match="batch_tokens is 1"):
        pretrain(wrong, tokenizer, train, validation, QUIET)
    assert {path: path.read_bytes() for path in files} == files
    again = dataclasses.replace(config, num_steps=2, overwrite=True)
    second = pretrain(again, tokenizer, train, validation, QUIET)
    assert not first.checkpoint.exists() and second.checkpoint.is_dir()
    assert len((second.checkpoint.parents[1] / "metrics.jsonl").read_text().splitlines()) == 2
    tune = chat_config(SftConfig, home, num_steps=1)
    tuned = sft(tune, chats, None, QUIET)
    with pytest.raises(ConfigError, match="has finished sft already"):
        sft(tune, chats, None, QUIET)
    with pytest.raises(ConfigError, match="batch_tokens is 1"):
        sft(dataclasses.replace(tune, overwrite=True, batch_tokens=1), chats, None, QUIET)
    assert tuned.checkpoint.is_dir()
    anew = sft(dataclasses.replace(tune, overwrite=True), chats, None, QUIET)
    assert state_of(anew)["parent"] == str(second.checkpoint)  # not the sft it replaces
    # a new base leaves no fine-tuning of the old one behind, which the run's name would stand for
    pretrain(again, tokenizer, train, validation, QUIET)
    assert not anew.checkpoint.exists()


def test_an_unfinished_stage_begins_anew(corpora: Corpora, home: Path) -> None:
    tokenizer, train, validation, _ = corpora
    stage = home / "runs/d2/pretrain"
    (stage / "checkpoints/.step_000001.writing").mkdir(parents=True)
    (stage / "metrics.jsonl").write_text('{"step": 1}\n')
    config = pretrain_config(home, num_steps=1, eval_every=0)
    done = pretrain(config, tokenizer, train, validation, QUIET)
    assert len((stage / "metrics.jsonl").read_text().splitlines()) == 1
    names = sorted(path.name for path in done.checkpoint.parent.iterdir())
    assert names == ["best.json", "step_000001"]


@pytest.mark.req("FR-060")
def test_a_run_that_fails_leaves_no_checkpoint(
    corpora: Corpora, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(stage: Stage) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "fit", fail)
    tokenizer, train, validation, _ = corpora
    with pytest.raises(KeyboardInterrupt):
        pretrain(pretrain_config(home), tokenizer, train, validation, QUIET)
    with pytest.raises(CheckpointError, match="run d2 has no finished stage: train it first"):
        load("d2", home=home)


@pytest.mark.parametrize(
    ("said", "error", "message"),
    [
        ({"model": "d9"}, CheckpointError, "'d9' is neither a directory nor a run"),
        ({"model": ""}, CheckpointError, "'' is neither a directory nor a run"),
        ({"model": "d2/rl"}, CheckpointError, "run d2 has no stage 'rl'"),
        ({"model": "d2", "run": "../up"}, CheckpointError, "run name '../up': expected letters"),
        ({"model": "d2", "device": "tpu"}, ConfigError, "device 'tpu' is not usable"),
    ],
)
def test_what_cannot_be_gone_on_from(
    said: dict[str, Any], error: type[Exception], message: str, story: Story, corpora: Corpora
) -> None:
    before = sorted(story.home.rglob("*"))
    with pytest.raises(error, match=message):
        midtrain(chat_config(MidtrainConfig, story.home, **said), corpora.chats, None, QUIET)
    assert sorted(story.home.rglob("*")) == before


def test_a_directory_needs_a_run_to_write(story: Story, corpora: Corpora, home: Path) -> None:
    config = chat_config(SftConfig, home, model=str(story.base.checkpoint), num_steps=1)
    with pytest.raises(ConfigError, match="is a directory: name the run to write with --run"):
        sft(config, corpora.chats, None, QUIET)
    with pytest.raises(ConfigError, match="'hf:someone/d12' belongs to no run here: name one with"):
        continuation.run_of("hf:someone/d12")
    done = sft(dataclasses.replace(config, run="mine"), corpora.chats, None, QUIET)
    assert done.checkpoint.is_relative_to(home / "runs" / "mine" / "sft")
    assert state_of(done)["parent"] == str(story.base.checkpoint)


# ------------------------------------------------------------------------------ what is chosen


def test_windows_are_for_gpus(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    config = pretrain_config(home, depth=4, context_len=1024)
    assert model_config_of(config, 300).windows == (1024,) * 4
    said = dataclasses.replace(config, window_pattern="SSSL")
    assert model_config_of(said, 300).windows == (256, 256, 256, 1024)
    oldest = dataclasses.replace(config, generation="v1")
    assert model_config_of(oldest, 300).windows == (None,) * 4
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(stages, "total_memory_bytes", lambda device: 8 * 2**30)
    on_gpu = dataclasses.replace(config, device=None)
    assert hardware_of(on_gpu).device_type == "cuda"
    assert model_config_of(on_gpu, 300).windows == (256, 256, 256, 1024)


def test_hardware(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setattr(stages, "find_compiler", lambda: None)
    found = hardware_of(pretrain_config(home))
    assert (found.device_type, found.has_compiler) == ("cpu", False)
    assert found.memory_bytes > 2**28


def test_the_pilot_measures() -> None:
    """What the demo fits a run into minutes with: a number of the right size, in a moment."""
    speed = tokens_per_s(tiny_config(2), batch_tokens=256, device_rows=2)
    assert 100 < speed < 1e8

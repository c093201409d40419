"""What a reference names, and what is said when it names nothing."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from nanochat.checkpoint.format import Checkpoint, load_checkpoint, save_checkpoint
from nanochat.checkpoint.resolve import (
    STAGES,
    Loaded,
    candidates,
    load,
    read,
    read_newest,
    resolve,
    restore,
    run_directory,
)
from nanochat.common.errors import CheckpointError
from nanochat.model.config import GENERATIONS, Generation
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.checkpoint.conftest import ReferenceDirectory, tiny_checkpoint
from tests.conftest import LOGITS_ATOL
from tests.golden import parity

TOKENS = torch.tensor([[5, 17, 3, 250]])


@pytest.fixture
def runs(home: Path, tiny_tokenizer: Tokenizer) -> Path:
    """d2: pretrain@5 and @10, sft@3.   d12: midtrain@7.   empty: nothing."""
    for seed, (run, stage, step) in enumerate(
        [("d2", "pretrain", 5), ("d2", "pretrain", 10), ("d2", "sft", 3), ("d12", "midtrain", 7)]
    ):
        directory = home / "runs" / run / stage / "checkpoints" / f"step_{step:06d}"
        save_checkpoint(directory, tiny_checkpoint(tiny_tokenizer, seed, stage=stage, step=step))
    (home / "runs" / "empty").mkdir()
    return home / "runs"


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("d2", "d2/sft/checkpoints/step_000003"),
        ("d2/sft", "d2/sft/checkpoints/step_000003"),
        ("d2/pretrain", "d2/pretrain/checkpoints/step_000010"),
        ("d2/pretrain@5", "d2/pretrain/checkpoints/step_000005"),
        ("d2@3", "d2/sft/checkpoints/step_000003"),
        ("d12", "d12/midtrain/checkpoints/step_000007"),
    ],
)
@pytest.mark.req("FR-046")
def test_runs_by_name(reference: str, expected: str, runs: Path, home: Path) -> None:
    assert resolve(reference) == runs / expected
    assert resolve(reference, home) == runs / expected
    assert resolve(str(runs / expected)) == runs / expected


@pytest.mark.req("FR-046")
def test_directories(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = runs / "d2/sft/checkpoints/step_000003"
    assert resolve(str(runs / "d2")) == resolve(str(runs / "d2" / "sft")) == last
    monkeypatch.chdir(runs)
    assert resolve("./d2/sft") == Path("d2/sft/checkpoints/step_000003")
    copied = tmp_path / "elsewhere"
    shutil.copytree(last, copied)
    assert resolve(str(copied)) == copied
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/elsewhere") == copied


@pytest.mark.req("FR-022", "FR-023")
def test_a_stage_goes_on_from_the_one_before_it(runs: Path) -> None:
    assert resolve("d2", before="sft") == runs / "d2/pretrain/checkpoints/step_000010"
    assert resolve("d12", before="sft") == runs / "d12/midtrain/checkpoints/step_000007"
    assert resolve("d2/sft", before="sft") == runs / "d2/sft/checkpoints/step_000003"
    with pytest.raises(CheckpointError, match="run d12 has no finished stage before midtrain"):
        resolve("d12", before="midtrain")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("d3", r"'d3' is neither a directory nor a run in .*'d2'.*: runs here: d12, d2, empty"),
        ("", "'' is neither a directory nor a run"),
        ("d2/sft/extra", "neither a directory nor a run"),
        ("d2@last", "neither a directory nor a run"),
        ("d2/rl", "run d2 has no stage 'rl': it has pretrain, sft"),
        ("d2/sft@9", r"sft has no step 9: it has 3"),
        ("d2/pretrain@7", "pretrain has no step 7: it has 5, 10"),
        ("empty", "run empty has no finished stage: train it first"),
        ("empty/sft", "run empty has no stage 'sft': it has none"),
    ],
)
@pytest.mark.req("FR-047")
def test_what_names_nothing(reference: str, message: str, runs: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        resolve(reference)


def test_where_there_are_no_runs(home: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there are no runs yet; nanochat demo makes one"):
        resolve("d2")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match=r"folder: holds no checkpoint \(no manifest.json"):
        resolve(str(tmp_path / "folder"))


def test_names_of_runs(home: Path) -> None:
    assert run_directory(home, "my.run-2_b") == home / "runs" / "my.run-2_b"
    assert run_directory(None, "d2") == home / "runs" / "d2"
    for name in ("", "..", ".hidden", "a/b", "a b", "-x", "a\n"):
        with pytest.raises(CheckpointError, match="expected letters, digits, dots, dashes"):
            run_directory(home, name)


# ------------------------------------------------------------------------------- damaged newest


def damage(path: Path) -> None:
    content = bytearray((path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "model.safetensors").write_bytes(content)


@pytest.mark.req("FR-047", "EC-2", "EC-5")
def test_a_damaged_newest_is_passed_over_with_a_line(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = runs / "d2/pretrain/checkpoints"
    assert candidates("d2/pretrain") == [steps / "step_000010", steps / "step_000005"]
    damage(steps / "step_000010")
    for find in (resolve, lambda name: read_newest(name)[0], lambda name: load(name).path):
        assert find("d2/pretrain") == steps / "step_000005"
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1
        assert err.startswith("nanochat: step_000010 is passed over for step_000005: ")
        assert "model.safetensors: its SHA-256 differs from the manifest" in err
    found, checkpoint = read_newest("d2/pretrain", with_hashes=False, with_optimizer=True)
    assert found.name == "step_000010" and checkpoint.optimizer is not None


@pytest.mark.req("FR-047", "EC-2")
def test_what_is_named_is_refused_not_replaced(runs: Path) -> None:
    damage(runs / "d2/pretrain/checkpoints/step_000010")
    damage(runs / "d2/sft/checkpoints/step_000003")
    for name in ("d2/pretrain@10", "d2/sft", str(runs / "d2/pretrain/checkpoints/step_000010")):
        with pytest.raises(CheckpointError, match="model.safetensors: its SHA-256 differs"):
            load(name)
    assert load("d2/sft", with_hashes=False).step == 3
    damage(runs / "d2/pretrain/checkpoints/step_000005")
    for find in (resolve, load):
        with pytest.raises(CheckpointError, match=r"step_000010/model.*1 older checkpoints are"):
            find("d2/pretrain")


# --------------------------------------------------------------------------------------- loading


@pytest.mark.req("FR-046", "SC-008")
def test_a_model_ready_to_use(runs: Path, tiny_tokenizer: Tokenizer) -> None:
    loaded = load("d2")
    assert (loaded.stage, loaded.step, loaded.is_chat) == ("sft", 3, True)
    assert loaded.tokenizer == tiny_tokenizer and loaded.path.name == "step_000003"
    assert not loaded.model.training
    assert not any(weight.requires_grad for weight in loaded.model.parameters())
    saved = load_checkpoint(loaded.path).weights
    for name, weight in loaded.model.named_parameters():
        assert torch.equal(weight, saved[name])
    assert not load("d2/pretrain").is_chat


@pytest.mark.req("FR-046", "SC-007")
def test_narrow_matrices_wide_scalars(runs: Path) -> None:
    wide, narrow = load("d2").model, load("d2", dtype=torch.bfloat16).model
    for (name, a), (_, b) in zip(wide.named_parameters(), narrow.named_parameters(), strict=True):
        assert b.dtype == (torch.bfloat16 if b.ndim > 1 else torch.float32), name
        assert torch.equal(a.to(b.dtype), b)
    with torch.inference_mode():
        logits = narrow(TOKENS)
    assert logits.dtype == torch.float32 and torch.isfinite(logits).all()


@pytest.mark.req("FR-047")
def test_tensors_that_do_not_fit_the_config(checkpoint: Checkpoint) -> None:
    head = checkpoint.weights["head.weight"]
    without = {name: w for name, w in checkpoint.weights.items() if name != "head.weight"}
    for weights, message in (
        (without, r"1 tensors do not fit .* head.weight: expected \(320, 32\), found none"),
        ({**checkpoint.weights, "more": head}, r"such as more: expected none, found \(320, 32\)"),
        ({**without, "head.weight": head[:1]}, r"expected \(320, 32\), found \(1, 32\)"),
        ({}, "the config is for [0-9,]+ weights, it holds 0"),
    ):
        with pytest.raises(CheckpointError, match=f"here: .*{message}"):
            restore(dataclasses.replace(checkpoint, weights=weights), "here")


@pytest.mark.req("FR-047", "FR-062")
def test_sizes_from_a_file_allocate_nothing_by_themselves(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A config that claims a trillion of anything meets the tensors first."""
    monkeypatch.setattr(Tokenizer, "vocab_size", property(lambda self: config.vocab_size))
    for changes in (
        {"num_layers": 10**5, "windows": (None,) * 10**5},
        {"vocab_size": 2**50},
        {"model_dim": 2**40},
        {"head_dim": 2**40},
        {"num_heads": 2**40},
    ):
        config = dataclasses.replace(checkpoint.config, **changes)
        claims = dataclasses.replace(checkpoint, config=config)
        with pytest.raises(CheckpointError, match="here: the config is for [0-9,]+ weights, it"):
            restore(claims, "here")
    config = dataclasses.replace(checkpoint.config, context_len=2**50)
    model = restore(dataclasses.replace(checkpoint, config=config), "here")
    assert model.config.context_len == 2**50


@pytest.mark.req("FR-047")
def test_a_tokenizer_of_another_size(checkpoint: Checkpoint) -> None:
    other = Tokenizer([bytes([byte]) for byte in range(256)])
    with pytest.raises(CheckpointError, match="the tokenizer has 265 tokens, the model 300"):
        restore(dataclasses.replace(checkpoint, tokenizer=other), "here")


def test_moments_only_when_asked(runs: Path) -> None:
    path = resolve("d2")
    assert read(path).optimizer is None
    assert read(path, with_optimizer=True).optimizer is not None


# --------------------------------------------------------------------- karpathy/nanochat's models


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.req("FR-046", "FR-048", "FR-070")
def test_reference_directories(
    generation: Generation, reference_directory: ReferenceDirectory
) -> None:
    figures = parity.from_golden(generation)
    loaded = load(str(reference_directory(generation)))
    assert_is_the_reference(loaded, figures)
    assert loaded.path.name == "d4" and loaded.tokenizer.vocab_size == 512


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.req("FR-046", "FR-048", "FR-070")
def test_shared_reference_directories(generation: Generation, shared_dir: Path) -> None:
    folder = shared_dir / "parity" / parity.FOLDERS[generation]
    loaded = load(str(folder / "base" / "base_checkpoints" / "d4"))
    assert_is_the_reference(loaded, parity.from_shared(shared_dir, generation))


def assert_is_the_reference(loaded: Loaded, figures: parity.Figures) -> None:
    assert (loaded.stage, loaded.step, loaded.is_chat) == ("pretrain", 30, False)
    with torch.inference_mode():
        logits = loaded.model(figures.rows[:, :-1])[:, :: figures.logits_every]
    assert float((logits - figures.logits).abs().max()) <= LOGITS_ATOL


@pytest.mark.parametrize(
    ("kind", "stage"),
    [("base", "pretrain"), ("mid", "midtrain"), ("chatsft", "sft"), ("chatrl", "rl")],
)
@pytest.mark.req("FR-048")
def test_their_folders_tell_the_stage(
    kind: str, stage: str, reference_directory: ReferenceDirectory
) -> None:
    base = reference_directory("v2")
    directory = base.parents[1] / f"{kind}_checkpoints" / "d4"
    if kind != "base":
        directory.parent.mkdir()
        base.rename(directory)
    loaded = load(str(directory))
    assert (loaded.stage, loaded.is_chat) == (stage, stage != "pretrain")


@pytest.mark.req("FR-048")
def test_their_tokenizer_is_found_beside_too(reference_directory: ReferenceDirectory) -> None:
    directory = reference_directory("v2")
    tokenizer = directory.parents[1] / "tokenizer" / "tokenizer.pkl"
    tokenizer.rename(directory / "tokenizer.pkl")
    assert load(str(directory)).tokenizer.vocab_size == 512
    (directory / "tokenizer.pkl").unlink()
    with pytest.raises(CheckpointError, match="d4: no tokenizer.pkl, looked for .*tokenizer.pkl"):
        load(str(directory))


def test_stages_stand_in_their_order() -> None:
    assert STAGES == ("pretrain", "midtrain", "sft")

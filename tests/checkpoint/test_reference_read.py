"""Whole directories of karpathy/nanochat's become checkpoints of ours; what they leave open is
filled in and said."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nanochat.checkpoint.format import load_checkpoint, save_checkpoint
from nanochat.checkpoint.reference import (
    ReadOptions,
    ReferenceFiles,
    find_tokenizer,
    locate,
    read_reference,
)
from nanochat.checkpoint.reference_config import MetaFile, batch_tokens_of, metrics_of, stage_of
from nanochat.checkpoint.reference_files import STAGES_BY_FOLDER
from nanochat.checkpoint.reference_names import canonical_names, name_of, reference_name_of
from nanochat.checkpoint.reference_optimizer import load_optimizer, stored_optimizer
from nanochat.checkpoint.resolve import restore
from nanochat.checkpoint.torch_file import StoredTensors
from nanochat.common.errors import CheckpointError
from nanochat.model.config import GENERATIONS, Generation
from tests.checkpoint.conftest import ReferenceDirectory
from tests.conftest import LOGITS_ATOL, SWITCHED_OFF
from tests.golden import parity

Weights = dict[str, Tensor]
Change = Callable[[Weights], Weights]


def files_of(directory: Path, step: int | None = None) -> ReferenceFiles:
    files = locate(directory, step=step)
    assert files is not None
    return files


def logits_of(checkpoint: Any, figures: parity.Figures) -> Tensor:
    model = restore(checkpoint, "here")
    with torch.inference_mode():
        return model(figures.rows[:, :-1])[:, :: figures.logits_every]


def rewrite(directory: Path, change: Change) -> None:
    """Change the weights in place."""
    path = directory / "model_000030.pt"
    weights = {name: weight.clone() for name, weight in torch.load(path, mmap=False).items()}
    torch.save(change(weights), path)


def edit_meta(directory: Path, *, without: tuple[str, ...] = (), **changes: Any) -> None:
    path = directory / "meta_000030.json"
    meta = json.loads(path.read_text())
    meta["model_config"] |= changes
    for name in without:
        del (meta["model_config"] if name in meta["model_config"] else meta)[name]
    path.write_text(json.dumps(meta))


# ------------------------------------------------------------------------------------------- whole


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.req("FR-046", "FR-048", "FR-070", "SC-008")
def test_a_directory_becomes_a_checkpoint_of_ours(
    generation: Generation,
    is_streamed: bool,
    reference_directory: ReferenceDirectory,
    tmp_path: Path,
) -> None:
    """Through our own format the logits are karpathy/nanochat's, the weights the same bits."""
    figures = parity.from_golden(generation)
    options = ReadOptions(is_streamed=is_streamed)
    checkpoint = read_reference(files_of(reference_directory(generation)), options)
    assert isinstance(checkpoint.weights, StoredTensors) == is_streamed
    save_checkpoint(tmp_path / "ours", checkpoint)
    loaded = load_checkpoint(tmp_path / "ours")
    assert float((logits_of(loaded, figures) - figures.logits).abs().max()) <= LOGITS_ATOL
    for name, weight in figures.weights.items():
        assert torch.equal(loaded.weights[name_of(name)], weight)
    imported = loaded.state["imported"]
    assert (loaded.state["stage"], loaded.state["step"]) == ("pretrain", 30)
    assert (imported["generation"], imported["logit_softcap"]) == (generation, 15.0)
    assert loaded.state["metrics"] == {"val_bpb": 1.0} and imported["notes"] == []


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.req("FR-048")
def test_bfloat16_and_float16_are_widened_exactly(
    generation: Generation, reference_directory: ReferenceDirectory
) -> None:
    """CUDA runs keep the tables in bfloat16."""
    directory = reference_directory(generation)
    narrow = {"transformer.wte.weight": torch.bfloat16, "lm_head.weight": torch.float16}

    def change(weights: Weights) -> Weights:
        return {name: weight.to(narrow.get(name, weight.dtype)) for name, weight in weights.items()}

    rewrite(directory, change)
    expected = change(parity.from_golden(generation).weights)
    for is_streamed in (False, True):
        checkpoint = read_reference(files_of(directory), ReadOptions(is_streamed=is_streamed))
        for name, weight in expected.items():
            ours = checkpoint.weights[name_of(name)]
            assert ours.dtype == torch.float32 and torch.equal(ours, weight.float())


@pytest.mark.parametrize(
    "wrapped",
    [
        "_orig_mod.{}",
        "module.{}",
        "module._orig_mod.{}",
        "_orig_mod._fsdp_wrapped_module.{}",
    ],
)
@pytest.mark.req("FR-046", "FR-048")
def test_what_wraps_a_name_is_no_part_of_it(
    wrapped: str, reference_directory: ReferenceDirectory
) -> None:
    directory = reference_directory("v5")
    rewrite(directory, lambda weights: {wrapped.format(n): w for n, w in weights.items()})
    for is_streamed in (False, True):
        checkpoint = read_reference(files_of(directory), ReadOptions(is_streamed=is_streamed))
        for name, weight in parity.from_golden("v5").weights.items():
            assert torch.equal(checkpoint.weights[name_of(name)], weight)


def test_names_there_and_back() -> None:
    for generation in GENERATIONS:
        for name in parity.from_golden(generation).weights:
            assert reference_name_of(name_of(name)) == name
    blocks = "transformer.h.0._orig_mod.attn._checkpoint_wrapped_module.c_q.weight"
    assert canonical_names([blocks], "here") == {"transformer.h.0.attn.c_q.weight": blocks}


# ------------------------------------------------------------------------------- tensors by name


@pytest.mark.req("FR-046", "FR-047")
def test_renamed_tensors_by_an_explicit_table(reference_directory: ReferenceDirectory) -> None:
    directory = reference_directory("v5")

    def rename(name: str) -> str:
        return name.replace("attn.ve_gate", "attn.gate").replace("lm_head", "unembed")

    rewrite(directory, lambda weights: {rename(name): w for name, w in weights.items()})
    with pytest.raises(CheckpointError) as caught:
        read_reference(files_of(directory))
    message = str(caught.value)
    assert "model_000030.pt: 3 tensors that have no place in this generation: " in message
    assert "transformer.h.1.attn.gate.weight, transformer.h.3.attn.gate.weight, unembed" in message
    aliases = {
        "transformer.h.*.attn.gate.weight": "transformer.h.*.attn.ve_gate.weight",
        "unembed.weight": "lm_head.weight",
    }
    figures = parity.from_golden("v5")
    for is_streamed in (False, True):
        options = ReadOptions(aliases=aliases, is_streamed=is_streamed)
        checkpoint = read_reference(files_of(directory), options)
        assert float((logits_of(checkpoint, figures) - figures.logits).abs().max()) <= LOGITS_ATOL
    with pytest.raises(CheckpointError, match="tensors that have no place"):
        read_reference(files_of(directory), ReadOptions(aliases={"unembed": "lm_head.weight"}))


def test_two_names_for_one_tensor(reference_directory: ReferenceDirectory) -> None:
    directory = reference_directory("v1")
    rewrite(directory, lambda w: w | {"module.lm_head.weight": w["lm_head.weight"]})
    message = "lm_head.weight and module.lm_head.weight are both lm_head.weight"
    with pytest.raises(CheckpointError, match=message):
        read_reference(files_of(directory))


@pytest.mark.parametrize(
    ("generation", "change", "message"),
    [
        (
            "v1",
            lambda w: w | {"cos": torch.zeros(2), "sin": torch.zeros(2)},
            "2 tensors that have no place in this generation: cos, sin; where a fork renamed them",
        ),
        (
            "v2",
            lambda w: w | {"value_embeds.1.weight": torch.zeros(512, 32)},
            "1 tensors that have no place in this generation: value_embeds.1.weight;",
        ),
        (
            "v5",
            lambda w: {name: weight for name, weight in w.items() if name != "backout_lambda"},
            "1 tensors missing: backout_lambda;",
        ),
        (
            "v3",
            lambda w: {name: weight for name, weight in w.items() if ".2." not in name},
            "6 tensors missing: transformer.h.2.attn.c_k.weight, .* and 1 more;",
        ),
        (
            "v4",
            lambda w: w | {"transformer.h.0.mlp.c_fc.weight": torch.zeros(64, 256)},
            r"1 tensors do not fit: transformer.h.0.mlp.c_fc.weight is \(64, 256\), expected \(256",
        ),
        (
            "v4",
            lambda w: w | {"transformer.h.1.attn.ve_gate.weight": torch.zeros(2, 16)},
            "ve_gate.weight has 16 channels, expected 32",
        ),
        (
            "v4",
            lambda w: w | {"transformer.h.1.attn.ve_gate.weight": torch.zeros(())},
            "ve_gate.weight has 0 channels, expected 32",
        ),
        (
            "v5",
            lambda w: w | {"transformer.wte.weight": torch.zeros(())},
            "vocab_size 512 does not fit 0 rows of transformer.wte",
        ),
    ],
)
@pytest.mark.req("FR-047", "EC-2")
def test_tensors_too_many_too_few_and_of_other_shapes(
    generation: Generation, change: Change, message: str, reference_directory: ReferenceDirectory
) -> None:
    directory = reference_directory(generation)
    rewrite(directory, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_reference(files_of(directory))
    assert "000030" in str(caught.value) and "\n" not in str(caught.value)


def test_another_models_tokenizer(
    reference_directory: ReferenceDirectory, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    directory = reference_directory("v5")
    tiny_tokenizer.save(tmp_path / "tokenizer.json")
    options = ReadOptions(tokenizer=tmp_path / "tokenizer.json")
    message = "meta_000030.json: the tokenizer has 300 tokens, the model 512"
    with pytest.raises(CheckpointError, match=message):
        read_reference(files_of(directory), options)
    inside = directory / "tokenizer" / "tokenizer.pkl"
    inside.parent.mkdir()
    find_tokenizer(directory).rename(inside)
    assert find_tokenizer(directory) == inside
    inside.unlink()
    with pytest.raises(CheckpointError, match="d4: no tokenizer.pkl, looked for .*tokenizer.pkl"):
        read_reference(files_of(directory))


# --------------------------------------------------------------------------------- what is missing


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.req("FR-048")
def test_sizes_that_meta_lacks_are_read_off_the_tensors(
    generation: Generation, reference_directory: ReferenceDirectory
) -> None:
    directory = reference_directory(generation)
    whole = read_reference(files_of(directory))
    edit_meta(directory, without=("n_layer", "n_kv_head", "n_embd", "vocab_size", "sequence_len"))
    filled = read_reference(files_of(directory))
    assert filled.config == whole.config
    assert filled.state["imported"]["notes"] == [
        "n_layer 4: not in meta, filled in",
        "n_embd 64: not in meta, filled in",
        "n_kv_head 2: not in meta, filled in",
        "vocab_size 512: not in meta, filled in",
        "sequence_len 256: not in meta, filled in",
    ]


def test_sizes_that_nothing_says_are_the_scripts_own(
    reference_directory: ReferenceDirectory,
) -> None:
    """Heads of 128, a context of 2048."""
    directory = reference_directory("v1")
    rewrite(directory, lambda w: {n: torch.zeros(wide(n, tuple(t.shape))) for n, t in w.items()})
    edit_meta(
        directory,
        without=("n_head", "n_kv_head", "sequence_len", "max_seq_len"),
        n_embd=384,
    )
    config = read_reference(files_of(directory)).config
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (3, 1, 128)
    assert config.context_len == 2048


def wide(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A matrix of the golden model at six times the width, with one head in three for keys."""
    rows, columns = (size if size == 512 else 6 * size for size in shape)
    return (128 if ".c_k." in name or ".c_v." in name else rows, columns)


@pytest.mark.parametrize("missing", ["n_embd", "vocab_size", "n_kv_head"])
def test_what_cannot_be_filled_in(missing: str, reference_directory: ReferenceDirectory) -> None:
    directory = reference_directory("v1")
    gone = ("transformer.wte.weight", "transformer.h.0.attn.c_k.weight")
    rewrite(directory, lambda w: {name: t for name, t in w.items() if name not in gone})
    edit_meta(directory, without=(missing,))
    with pytest.raises(CheckpointError, match=f"model_config is missing or damaged: {missing} is"):
        read_reference(files_of(directory))


@pytest.mark.req("FR-048")
def test_padded_vocabularies(reference_directory: ReferenceDirectory, tmp_path: Path) -> None:
    """512 entries in 576 rows: those beyond the vocabulary change nothing."""
    directory = reference_directory("v2")
    figures = parity.from_golden("v2")
    edit_meta(directory, vocab_size=512)

    def pad(weights: Weights) -> Weights:
        for name in ("transformer.wte.weight", "lm_head.weight"):
            weights[name] = torch.cat((weights[name], torch.full((64, 64), 7.0)))
        return weights

    rewrite(directory, pad)
    with pytest.raises(CheckpointError, match="vocab_size 512 does not fit 576 rows"):
        read_reference(files_of(directory))
    # 503 entries in 512 rows, with a tokenizer of 503.
    from nanochat.tokenizer.reference import load_reference_tokenizer
    from nanochat.tokenizer.tokenizer import Tokenizer

    whole = load_reference_tokenizer(parity.HERE / "tokenizer.pkl")
    fewer = Tokenizer([whole.decode_bytes([token]) for token in range(494)], whole.pattern)
    fewer.save(tmp_path / "tokenizer.json")
    torch.save(figures.weights, directory / "model_000030.pt")
    edit_meta(directory, vocab_size=503)
    options = ReadOptions(tokenizer=tmp_path / "tokenizer.json")
    checkpoint = read_reference(files_of(directory), options)
    assert (checkpoint.config.vocab_size, checkpoint.config.padded_vocab_size) == (503, 512)
    logits = logits_of(checkpoint, figures)
    assert logits.shape[-1] == 503
    assert float((logits - figures.logits[..., :503]).abs().max()) <= LOGITS_ATOL


# ------------------------------------------------------------------------------------- the windows


@pytest.mark.parametrize(
    ("generation", "folder", "expected", "note"),
    [
        ("v1", "base", (None,) * 4, None),
        ("v1", "mid", (None,) * 4, None),
        ("v2", "base", (None,) * 4, "window_pattern: V2 without one is from before there were"),
        ("v2", "mid", (128, 128, 128, 256), "window_pattern SSSL: not in meta, the usual one"),
        ("v3", "chatsft", (128, 128, 128, 256), "window_pattern SSSL: not in meta, the usual"),
        ("v5", "base", (128, 128, 128, 256), "window_pattern SSSL: not in meta, the usual one"),
    ],
)
@pytest.mark.req("FR-048")
def test_a_pattern_that_meta_lacks(
    generation: Generation,
    folder: str,
    expected: tuple[int | None, ...],
    note: str | None,
    reference_directory: ReferenceDirectory,
) -> None:
    directory = reference_directory(generation)
    if generation != "v1":
        edit_meta(directory, without=("window_pattern",))
    if folder != "base":
        moved = directory.parents[1] / f"{folder}_checkpoints" / "d4"
        moved.parent.mkdir()
        directory = directory.rename(moved)
    checkpoint = read_reference(files_of(directory))
    assert checkpoint.config.windows == expected
    notes = checkpoint.state["imported"]["notes"]
    assert [n for n in notes if n.startswith("window")] == [n for n in notes if note and note in n]
    assert bool(note) == any(n.startswith("window_pattern") for n in notes)
    other = read_reference(files_of(directory), ReadOptions(window_pattern="SL"))
    assert other.config.windows == ((None,) * 4 if generation == "v1" else (128, 256, 128, 256))


@pytest.mark.req("FR-048")
def test_a_chat_model_has_the_windows_of_its_base(reference_directory: ReferenceDirectory) -> None:
    base = reference_directory("v3")
    sft = base.parents[1] / "chatsft_checkpoints" / "d4"
    shutil.copytree(base, sft)
    edit_meta(base, window_pattern="SL")
    edit_meta(sft, without=("window_pattern",))
    checkpoint = read_reference(files_of(sft))
    assert checkpoint.config.windows == (128, 256, 128, 256)
    notes = checkpoint.state["imported"]["notes"]
    assert "window_pattern SL: not in meta, taken from base_checkpoints/d4" in notes
    edit_meta(base, without=("window_pattern",))
    assert read_reference(files_of(sft)).config.windows == (128, 128, 128, 256)


def test_a_pattern_that_is_none(reference_directory: ReferenceDirectory) -> None:
    directory = reference_directory("v3")
    for pattern in ("X", "", 5, ["S"]):
        edit_meta(directory, window_pattern=pattern)
        with pytest.raises(CheckpointError, match="meta_000030.json: window pattern is"):
            read_reference(files_of(directory))


# ------------------------------------------------------------------------------------ the soft cap


@pytest.mark.req("FR-048")
def test_the_soft_cap_can_be_set_and_the_choice_is_said(
    reference_directory: ReferenceDirectory,
) -> None:
    figures = parity.from_golden("v3")
    directory = reference_directory("v3")
    certain = read_reference(files_of(directory))
    assert certain.state["imported"]["notes"] == [], "its meta is from before the cap changed"
    path = directory / "meta_000030.json"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps(meta | {"total_batch_size": 512}))
    open_ = read_reference(files_of(directory))
    assert open_.config.logit_softcap == open_.state["imported"]["logit_softcap"] == 15.0
    (note,) = open_.state["imported"]["notes"]
    assert note.startswith("soft cap 15: no file says it; V3 models") and "had 20" in note
    chosen = read_reference(files_of(directory), ReadOptions(softcap=20.0))
    assert chosen.config.logit_softcap == chosen.state["imported"]["logit_softcap"] == 20.0
    assert chosen.state["imported"]["notes"] == []
    away = (logits_of(chosen, figures) - figures.logits).abs().max()
    assert float(away) > SWITCHED_OFF
    # 20 tanh(z / 20) of the same z
    z = torch.atanh(figures.logits / 15) * 15
    assert torch.allclose(logits_of(chosen, figures), 20 * torch.tanh(z / 20), atol=LOGITS_ATOL)
    for cap in (0.0, -1.0, float("nan")):
        with pytest.raises(CheckpointError, match="meta_000030.json: .*logit_softcap is"):
            read_reference(files_of(directory), ReadOptions(softcap=cap))


@pytest.mark.parametrize("generation", ["v1", "v2", "v4", "v5"])
def test_other_generations_had_one_cap(
    generation: Generation, reference_directory: ReferenceDirectory
) -> None:
    directory = reference_directory(generation)
    edit_meta(directory, without=("dataloader_state_dict",))
    assert read_reference(files_of(directory)).state["imported"]["notes"] == []


# ------------------------------------------------------------------------------- stages and places


@pytest.mark.parametrize(
    ("meta", "generation", "expected"),
    [
        ({"model_config": {}}, "v1", "rl"),
        ({"step": 1, "val_loss": 1.0, "mmlu_acc": 0.3}, "v1", "sft"),
        ({"step": 1, "device_batch_size": 32, "user_config": {}}, "v1", "pretrain"),
        ({"step": 1, "user_config": {"depth": 4}}, "v5", "pretrain"),
        ({"step": 1, "val_bpb": 0.4}, "v5", "pretrain"),
        ({"step": 1, "user_config": {"init_lr_frac": 1.0}}, "v1", "midtrain"),
        ({"step": 1, "user_config": {"init_lr_frac": 1.0}}, "v2", "midtrain"),
        ({"step": 1, "user_config": {"init_lr_frac": 1.0}}, "v3", "sft"),
    ],
)
@pytest.mark.req("FR-048")
def test_the_stage_of_a_lone_folder_is_told_by_what_its_script_wrote(
    meta: dict[str, Any], generation: Generation, expected: str, tmp_path: Path
) -> None:
    model = tmp_path / "some" / "folder" / "model_000001.pt"
    files = ReferenceFiles(model, model.with_name("meta_000001.json"), 1, None)
    weights = parity.from_golden(generation).weights
    assert stage_of(files, MetaFile(files.meta, meta), weights) == expected
    known = tmp_path / "mid_checkpoints" / "d4" / "model_000001.pt"
    files = dataclasses.replace(files, model=known)
    assert stage_of(files, MetaFile(files.meta, meta), weights) == "midtrain"


def test_what_was_measured_and_how_large_a_step_was() -> None:
    raw = {
        "step": 5,
        "val_bpb": 0.5,
        "val_loss": float("nan"),
        "huge": 10**400,
        "flag": True,
        "mmlu_acc": 1,
        "model_config": {},
        "device_batch_size": 2,
        "user_config": {"total_batch_size": 512},
    }
    meta = MetaFile(Path("meta"), raw)
    assert metrics_of(meta) == {"val_bpb": 0.5, "mmlu_acc": 1.0}
    assert batch_tokens_of(meta) == 512
    assert batch_tokens_of(MetaFile(Path("meta"), raw | {"total_batch_size": 1024})) == 1024
    for settings in ({"total_batch_size": -1}, {}, None, []):
        assert batch_tokens_of(MetaFile(Path("meta"), {"user_config": settings})) is None


def model_folder(path: Path, *steps: int) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for step in steps:
        for name in (f"model_{step:06d}.pt", f"meta_{step:06d}.json"):
            (path / name).write_text("")
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """<base> with models of three stages."""
    base = tmp_path / "base"
    for folder, tag, *steps in (
        ("base_checkpoints", "d12", 100, 2000, 300),
        ("base_checkpoints", "d4", 5000),
        ("base_checkpoints", "d26_long", 7),
        ("mid_checkpoints", "d12", 80),
        ("chatsft_checkpoints", "d4", 10),
        ("chatsft_checkpoints", "d12", 20),
        ("chatrl_checkpoints", "empty"),
    ):
        model_folder(base / folder / str(tag), *map(int, steps))
    (base / "base_checkpoints" / "notes.txt").write_text("")
    return base


def place(files: ReferenceFiles | None) -> str:
    assert files is not None
    return "/".join(files.model.parts[-3:])


@pytest.mark.req("FR-046", "FR-048")
def test_the_last_stage_the_deepest_tag_the_last_step(tree: Path) -> None:
    assert place(locate(tree)) == "chatsft_checkpoints/d12/model_000020.pt"
    assert place(locate(tree, stage="pretrain")) == "base_checkpoints/d26_long/model_000007.pt"
    assert place(locate(tree, stage="midtrain")) == "mid_checkpoints/d12/model_000080.pt"
    bases = tree / "base_checkpoints"
    assert place(locate(bases)) == "base_checkpoints/d26_long/model_000007.pt"
    assert place(locate(bases, tag="d12")) == "base_checkpoints/d12/model_002000.pt"
    assert place(locate(bases, tag="d12", step=300)) == "base_checkpoints/d12/model_000300.pt"
    assert place(locate(bases / "d12")) == "base_checkpoints/d12/model_002000.pt"
    assert place(locate(bases / "d12", step=100)) == "base_checkpoints/d12/model_000100.pt"


def test_names_without_a_depth_by_time(tmp_path: Path) -> None:
    for index, tag in enumerate(("new", "old")):
        model_folder(tmp_path / tag, 1)
        os.utime(tmp_path / tag, (1000 - index, 1000 - index))
    assert place(locate(tmp_path)).endswith("new/model_000001.pt")
    model_folder(tmp_path / "d1", 1)
    os.utime(tmp_path / "d1", (1, 1))
    assert place(locate(tmp_path)).endswith("d1/model_000001.pt")


def test_forks_folders_are_known(tmp_path: Path) -> None:
    for folder, stage in STAGES_BY_FOLDER.items():
        base = tmp_path / folder
        model_folder(base / folder / "d4", 1)
        assert place(locate(base, stage=stage)).startswith(folder)


@pytest.mark.req("EC-2")
def test_what_is_not_there(tree: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ({"stage": "mid"}, "stage is 'mid', expected one of pretrain, midtrain, sft, rl"),
        ({"stage": "rl"}, "no model of stage rl, it has base_checkpoints, mid_checkpoints, chat"),
        ({"tag": "d5"}, "chatsft_checkpoints: no model 'd5', it has d12, d4"),
        ({"step": 21}, "d12 has no step 21: it has 20"),
    ):
        with pytest.raises(CheckpointError, match=message):
            locate(tree, **arguments)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="it has 100, 300, 2000"):
        locate(tree / "base_checkpoints" / "d12", step=5)
    (tree / "base_checkpoints" / "d12" / "meta_002000.json").unlink()
    message = r"model_002000.pt: its meta file .* is missing.*steps here: 100, 300, 2000"
    with pytest.raises(CheckpointError, match=message):
        locate(tree / "base_checkpoints" / "d12")
    assert place(locate(tree / "base_checkpoints" / "d12", step=300)).endswith("000300.pt")
    assert locate(tmp_path / "base" / "chatrl_checkpoints") is None
    (tmp_path / "nothing").mkdir()
    assert locate(tmp_path / "nothing") is None


# ----------------------------------------------------------------------------------------- moments


def split(raw: dict[str, Any], num_ranks: int) -> list[dict[str, Any]]:
    """The state of one device as several would have written it, after DistMuonAdamW's docstring."""
    ranks: list[dict[str, Any]] = [
        {"state": {}, "param_groups": raw["param_groups"]} for _ in range(num_ranks)
    ]
    for number, state in raw["state"].items():
        for rank, written in enumerate(ranks):
            written["state"][number] = {
                key: share(key, value, rank, num_ranks) for key, value in state.items()
            }
    return ranks


def share(key: str, value: Any, rank: int, num_ranks: int) -> Any:
    if not isinstance(value, Tensor):
        return value
    if key.startswith("exp_avg"):
        return value if value.numel() < 1024 else value.chunk(num_ranks)[rank].clone()
    size = -(-len(value) // num_ranks)
    filled = torch.cat((value, torch.zeros(size * num_ranks - len(value), *value.shape[1:])))
    return filled[rank * size : (rank + 1) * size].clone()


@pytest.mark.parametrize("num_ranks", [2, 16])
@pytest.mark.req("FR-020", "FR-046", "FR-048")
def test_moments_of_several_devices_are_put_together(num_ranks: int, tmp_path: Path) -> None:
    figures = parity.from_golden("v5")
    assert figures.optimizer is not None
    torch.save(figures.optimizer, tmp_path / "optim_000030.pt")
    whole = load_optimizer(tmp_path / "optim_000030.pt", figures.weights)
    for rank, state in enumerate(split(figures.optimizer, num_ranks)):
        torch.save(state, tmp_path / f"optim_000030_rank{rank}.pt")
    (tmp_path / "optim_000030_rankx.pt").write_text("")  # is not one of them
    for rank in {0, num_ranks - 1}:
        parts = load_optimizer(tmp_path / f"optim_000030_rank{rank}.pt", figures.weights)
        assert parts.keys() == whole.keys()
        assert all(torch.equal(parts[name], moment) for name, moment in whole.items())


@pytest.mark.req("FR-047", "EC-2")
def test_a_device_too_few(tmp_path: Path) -> None:
    figures = parity.from_golden("v5")
    assert figures.optimizer is not None
    paths = [tmp_path / f"optim_000030_rank{rank}.pt" for rank in range(4)]
    for path, state in zip(paths, split(figures.optimizer, 4), strict=True):
        torch.save(state, path)
    paths[3].rename(tmp_path / "last.pt")
    message = (
        r"optim_000030_rank0.pt: lm_head.weight: exp_avg is \(128, 64\), expected \(512, 64\) "
        r"of each of 3 devices \(several devices write a part each: are all their files here\?\)"
    )
    with pytest.raises(CheckpointError, match=message):
        load_optimizer(paths[0], figures.weights)
    (tmp_path / "last.pt").rename(paths[3])
    paths[1].unlink()
    with pytest.raises(CheckpointError, match=r"optim_000030_rank1.pt is missing: every device"):
        load_optimizer(paths[0], figures.weights)


def test_matrices_that_are_none(tmp_path: Path) -> None:
    figures = parity.from_golden("v5")
    torch.save(figures.optimizer, tmp_path / "optim_000030.pt")
    odd = {n: w[0] if w.shape == (64, 64) else w for n, w in figures.weights.items()}
    with pytest.raises(
        CheckpointError, match=r"optim_000030.pt: .*c_q.weight is \(64,\), expected"
    ):
        load_optimizer(tmp_path / "optim_000030.pt", odd)


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.req("FR-020", "FR-045", "FR-046")
def test_moments_come_through_our_format(
    is_streamed: bool, reference_directory: ReferenceDirectory, tmp_path: Path
) -> None:
    figures = parity.from_golden("v5")
    files = files_of(reference_directory("v5"))
    options = ReadOptions(with_optimizer=True, is_streamed=is_streamed)
    checkpoint = read_reference(files, options)
    assert isinstance(checkpoint.optimizer, StoredTensors) == is_streamed
    save_checkpoint(tmp_path / "ours", checkpoint)
    loaded = load_checkpoint(tmp_path / "ours", with_optimizer=True)
    assert files.optimizer is not None and loaded.optimizer is not None
    expected = stored_optimizer(files.optimizer, figures.weights)
    assert set(loaded.optimizer) == set(expected) and int(loaded.optimizer["num_steps"]) == 30
    assert all(torch.equal(loaded.optimizer[name], moment) for name, moment in expected.items())


@pytest.mark.parametrize("generation", GENERATIONS)
def test_moments_that_are_not_there_are_said(
    generation: Generation, reference_directory: ReferenceDirectory
) -> None:
    directory = reference_directory(generation)
    optimizer = directory / "optim_000030_rank0.pt"
    optimizer.unlink(missing_ok=True)
    checkpoint = read_reference(files_of(directory), ReadOptions(with_optimizer=True))
    assert checkpoint.optimizer is None
    (note,) = checkpoint.state["imported"]["notes"]
    assert note == "optimizer: the file is not there; training goes on from the weights alone"
    if generation in ("v1", "v2"):
        torch.save([{}, {}], optimizer)
        checkpoint = read_reference(files_of(directory), ReadOptions(with_optimizer=True))
        assert checkpoint.optimizer is None
        (note,) = checkpoint.state["imported"]["notes"]
        assert note.startswith(f"optimizer: {generation} had others than ours, its moments are")

"""What karpathy/nanochat's files leave open is filled in and said: sizes, windows, the soft cap."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from nanochat.checkpoint.reference import (
    ReadOptions,
    read_reference,
)
from nanochat.common.errors import CheckpointError
from nanochat.model.config import GENERATIONS, Generation
from tests.checkpoint.conftest import ReferenceDirectory
from tests.checkpoint.directories import Weights, edit_meta, files_of, logits_of, rewrite
from tests.conftest import LOGITS_ATOL, SWITCHED_OFF
from tests.golden import parity


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

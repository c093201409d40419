"""Whole directories of karpathy/nanochat's become checkpoints of ours, tensor by tensor."""

from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.checkpoint.format import load_checkpoint, save_checkpoint
from nanochat.checkpoint.reference import (
    ReadOptions,
    find_tokenizer,
    read_reference,
)
from nanochat.checkpoint.reference_names import canonical_names, name_of, reference_name_of
from nanochat.checkpoint.torch_file import StoredTensors
from nanochat.common.errors import CheckpointError
from nanochat.model.config import GENERATIONS, Generation
from tests.checkpoint.conftest import ReferenceDirectory
from tests.checkpoint.directories import Change, Weights, files_of, logits_of, rewrite
from tests.conftest import LOGITS_ATOL
from tests.golden import parity


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

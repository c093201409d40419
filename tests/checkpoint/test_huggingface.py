"""Hugging Face directories -> checkpoints: ours, anybody's V1, and what is refused."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nanochat.checkpoint.format import Checkpoint, load_checkpoint, save_checkpoint
from nanochat.checkpoint.huggingface import (
    INDEX,
    MODEL_TYPES,
    PADDING,
    TEMPLATE,
    WEIGHTS,
    check_model_type,
    is_huggingface,
    is_native,
    read_huggingface,
    v1_name,
    weight_parts,
)
from nanochat.checkpoint.huggingface_export import MODEL_FILE, Export, export_huggingface
from nanochat.checkpoint.resolve import load, resolve, restore
from nanochat.common.errors import CheckpointError
from nanochat.model.config import GENERATIONS, Generation
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.engine.conftest import random_model

Change = Callable[[dict[str, Any]], object]


def export(directory: Path, tokenizer: Tokenizer, generation: Generation = "v1") -> Export:
    model = random_model(generation)
    checkpoint = Checkpoint(
        config=model.config,
        weights=dict(model.named_parameters()),
        tokenizer=tokenizer,
        state={"stage": "midtrain", "step": 9},
    )
    return export_huggingface(checkpoint, directory)


def edit(path: Path, change: Change) -> None:
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


@pytest.fixture
def native(tiny_tokenizer: Tokenizer, tmp_path: Path) -> Path:
    return export(tmp_path / "native", tiny_tokenizer).directory


@pytest.fixture
def foreign(native: Path) -> Path:
    """As somebody else's V1: nothing of ours in it."""
    for name in (PADDING, TEMPLATE, "generation_config.json", "README.md"):
        (native / name).unlink()

    def forget(raw: dict[str, Any]) -> None:
        del raw["nanochat"], raw["nanochat_state"], raw["head_dim"]
        raw["rms_norm_eps"] = 1e-6

    edit(native / "config.json", forget)
    return native.rename(native.with_name("foreign"))


# ------------------------------------------------------------------------------ what is understood


@pytest.mark.req("FR-046")
def test_what_a_directory_is(native: Path, tmp_path: Path) -> None:
    assert is_huggingface(native) and not is_huggingface(tmp_path)
    assert resolve(str(native)) == native
    assert weight_parts(native) == [native / WEIGHTS]
    assert check_model_type(native / "config.json")["model_type"] == MODEL_TYPES[0]
    loaded = load(str(native))
    assert (loaded.stage, loaded.step, loaded.path) == ("midtrain", 9, native)
    save_checkpoint(tmp_path / "ours", read_huggingface(native))
    assert not is_huggingface(tmp_path / "ours"), "ours has a manifest"


@pytest.mark.req("FR-046")
def test_what_transformers_has_itself() -> None:
    assert [is_native(random_model(generation).config) for generation in GENERATIONS] == [
        True,
        *[False] * 4,
    ]
    config = random_model("v1").config
    for changes in ({"qk_scale": 1.2}, {"backout": True}, {"windows": (None, 8, None, None)}):
        assert not is_native(dataclasses.replace(config, **changes))  # type: ignore[arg-type]
    for changes in ({"rope_dtype": "compute"}, {"rope_base": 1e5}, {"logit_softcap": 20.0}):
        assert is_native(dataclasses.replace(config, **changes))  # type: ignore[arg-type]


def test_names_there() -> None:
    assert v1_name("embedding.weight") == "model.embed_tokens.weight"
    assert v1_name("head.weight") == "lm_head.weight"
    assert v1_name("blocks.11.attention.output.weight") == "model.layers.11.self_attn.o_proj.weight"
    assert v1_name("blocks.0.mlp.contract.weight") == "model.layers.0.mlp.fc2.weight"


@pytest.mark.req("FR-046", "FR-048", "SC-008")
def test_anybodys_v1(foreign: Path, tiny_tokenizer: Tokenizer) -> None:
    """It computes what transformers computes; tensors bit for bit."""
    back, ours = read_huggingface(foreign), random_model("v1")
    expected = dataclasses.replace(
        ours.config, rope_dtype="compute", norm_eps=1e-6, vocab_padding=1
    )
    assert back.config == expected and back.tokenizer == tiny_tokenizer
    assert (back.state["stage"], back.state["step"]) == ("pretrain", 0)
    (note,) = back.state["imported"]["notes"]
    assert "rotary table in float32 and eps 1e-06" in note
    for name, weight in ours.named_parameters():
        assert torch.equal(back.weights[name], weight[: back.weights[name].size(0)]), name
    restore(back, "here")
    assert len(back.weights) == len(list(ours.parameters()))


@pytest.mark.req("FR-048")
def test_older_ways_of_writing_it(foreign: Path) -> None:
    def age(raw: dict[str, Any]) -> None:
        del raw["rope_parameters"], raw["final_logit_softcapping"], raw["rms_norm_eps"]
        raw["rope_theta"], raw["num_key_value_heads"] = 20_000, None
        raw["max_position_embeddings"] = 77

    edit(foreign / "config.json", age)
    edit(foreign / "tokenizer_config.json", lambda raw: raw.update(chat_template="{{ x }}"))
    back = read_huggingface(foreign)
    assert (back.config.rope_base, back.config.norm_eps) == (20_000, 1e-6)
    assert (back.config.logit_softcap, back.config.context_len) == (15, 77)
    assert back.config.num_kv_heads == back.config.num_heads
    assert back.state["stage"] == "sft", "a template is for conversations"


@pytest.mark.req("FR-048")
def test_anybodys_v1_with_padded_tables(foreign: Path) -> None:
    tensors = load_file(foreign / WEIGHTS)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat((tensors[name], torch.ones(20, tensors[name].size(1))))
    save_file(tensors, foreign / WEIGHTS)
    edit(foreign / "config.json", lambda raw: raw.update(vocab_size=320))
    loaded = load(str(foreign))
    assert loaded.model.config.padded_vocab_size == 320 and loaded.model.config.vocab_size == 300


@pytest.mark.req("FR-046")
def test_weights_in_parts_and_in_halves(native: Path) -> None:
    """As transformers writes large models: several files, an index, bfloat16."""
    tensors = load_file(native / WEIGHTS)
    tensors = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[:7], "model-00002.safetensors": names[7:]}
    for part, its in parts.items():
        save_file({name: tensors[name] for name in its}, native / part)
    weight_map = {name: part for part, its in parts.items() for name in its}
    (native / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (native / WEIGHTS).unlink()
    assert is_huggingface(native)
    assert weight_parts(native) == [native / part for part in parts]
    back = read_huggingface(native)
    for name, weight in random_model("v1").named_parameters():
        rows = slice(300) if name in ("embedding.weight", "head.weight") else slice(None)
        assert back.weights[name].dtype == torch.float32
        assert torch.equal(back.weights[name][rows], weight.bfloat16().float()[rows]), name


@pytest.mark.req("FR-062")
def test_code_in_a_directory_is_never_run(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    directory = export(tmp_path / "out", tiny_tokenizer, "v5").directory
    attack = f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit('ran')\n"
    for name in (MODEL_FILE, "setup.py", "__init__.py", "tokenizer.py", "conftest.py"):
        (directory / name).write_text(attack)
    edit(
        directory / "config.json",
        lambda raw: raw.update(auto_map={"AutoConfig": "setup.Config", "AutoTokenizer": "x.y"}),
    )
    assert load(str(directory)).step == 9
    assert not (tmp_path / "ran").exists()


# ------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.update(model_type="llama"), "is for 'llama', expected nanochat or nano"),
        (lambda raw: raw.update(model_type=["x"]), "is for \\['x'\\], expected"),
        (lambda raw: raw.pop("nanochat_state"), r"config\.json: damaged \(KeyError"),
        (lambda raw: raw["nanochat_state"].update(format_version=99), "reads 1 to .*newer one"),
        (lambda raw: raw["nanochat_state"].update(format_version="1"), "format version '1'"),
        (lambda raw: raw["nanochat_state"].update(stage="../../x"), "stage '../../x', step 9, exp"),
        (lambda raw: raw["nanochat_state"].update(step=-1), "step -1, expected one of pretrain"),
        (lambda raw: raw.update(nanochat=5), r"config\.json: damaged \(TypeError"),
        (lambda raw: raw["nanochat"].pop("windows"), "missing keys \\['windows'\\]"),
        (lambda raw: raw["nanochat"].update(num_heads=0), r"config\.json: model config: num_heads"),
    ],
)
@pytest.mark.req("EC-2", "FR-047", "FR-062")
def test_configs_that_are_refused(change: Change, message: str, native: Path) -> None:
    edit(native / "config.json", change)
    with pytest.raises(CheckpointError, match=f"native.*{message}"):
        read_huggingface(native)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.update(model_type="nanochat_gpt"), "model_type is 'nanochat_gpt', exp"),
        (lambda raw: raw.update(hidden_act="gelu"), "hidden_act is 'gelu', expected 'relu2'"),
        (lambda raw: raw.pop("intermediate_size"), "intermediate_size is 8192, expected 256"),
        (lambda raw: raw.update(attention_bias=True), "attention_bias is True"),
        (lambda raw: raw.update(tie_word_embeddings=True), "tie_word_embeddings is True"),
        (lambda raw: raw["rope_parameters"].update(rope_type="yarn"), "rope_type is 'yarn'"),
        (lambda raw: raw.update(vocab_size=301), "vocab_size is 301, expected 300"),
        (lambda raw: raw.update(num_hidden_layers=10**12), "26 tensors cannot be 1000000000000"),
        (lambda raw: raw.update(num_attention_heads=0), r"damaged \(ZeroDivisionError"),
        (lambda raw: raw.update(rms_norm_eps="tiny"), r"damaged \(ValueError"),
        (lambda raw: raw.update(rms_norm_eps=-1), "norm_eps is -1"),
        (lambda raw: raw.pop("hidden_size"), r"damaged \(KeyError"),
    ],
)
@pytest.mark.req("EC-2", "FR-047", "FR-062")
def test_foreign_configs_that_are_refused(change: Change, message: str, foreign: Path) -> None:
    edit(foreign / "config.json", change)
    with pytest.raises(CheckpointError, match=f"foreign.*{message}"):
        read_huggingface(foreign)


@pytest.mark.req("EC-2", "FR-047")
def test_files_that_are_missing_or_damaged(native: Path, tmp_path: Path) -> None:
    for name, message in (
        ("config.json", r"config\.json does not exist"),
        ("tokenizer.json", r"tokenizer\.json does not exist"),
    ):
        content = (native / name).read_bytes()
        (native / name).unlink()
        with pytest.raises(CheckpointError, match=message):
            read_huggingface(native)
        (native / name).write_bytes(content)
    (native / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"config\.json is a list, expected a JSON object"):
        check_model_type(native / "config.json")


@pytest.mark.req("EC-2", "FR-047")
def test_tensors_that_are_damaged_or_strange(native: Path, tiny_tokenizer: Tokenizer) -> None:
    tensors = load_file(native / WEIGHTS)
    whole = (native / WEIGHTS).read_bytes()
    (native / WEIGHTS).write_bytes(whole[:100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a readable safetensors"):
        read_huggingface(native)
    (native / WEIGHTS).write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a readable safetensors"):
        read_huggingface(native)
    save_file(tensors | {"model.layers.0.self_attn.rotary": torch.ones(1)}, native / WEIGHTS)
    with pytest.raises(CheckpointError, match="self_attn.rotary has no place in transformers' Na"):
        read_huggingface(native)
    save_file(tensors | {"lm_head.weight": tensors["lm_head.weight"].int()}, native / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"lm_head.weight is torch.int32, expected floats"):
        load(str(native))
    del tensors["lm_head.weight"]
    save_file(tensors, native / WEIGHTS)
    (native / PADDING).unlink()
    with pytest.raises(CheckpointError, match=r"native: .*head.weight: expected .*found none"):
        load(str(native))
    save_file(tensors, native / WEIGHTS)
    back = read_huggingface(native)
    (native / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: .* cannot be read"):
        next(iter(back.weights.values()))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "no weight_map"),
        ('{"weight_map": {}}', "no weight_map"),
        ('{"weight_map": {"x": "../../etc/x.safetensors"}}', "names '../../etc/x.safetensors'"),
        ('{"weight_map": {"x": "model.bin"}}', r"names 'model\.bin', expected a file beside it"),
        ('{"weight_map": {"x": "y.safetensors"}}', r"y\.safetensors: missing, though .* lists it"),
    ],
)
@pytest.mark.req("EC-2", "FR-062")
def test_an_index_that_is_refused(content: str, message: str, native: Path) -> None:
    (native / WEIGHTS).rename(native / "other.safetensors")
    (native / INDEX).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        read_huggingface(native)


@pytest.mark.req("FR-045", "SC-008")
def test_read_one_tensor_at_a_time_and_saved_as_ours(native: Path, tmp_path: Path) -> None:
    back = read_huggingface(native)
    save_checkpoint(tmp_path / "step_000009", back)
    shutil.rmtree(native)
    saved = load_checkpoint(tmp_path / "step_000009")
    for name, weight in random_model("v1").named_parameters():
        assert torch.equal(saved.weights[name], weight), name
    assert saved.config == random_model("v1").config

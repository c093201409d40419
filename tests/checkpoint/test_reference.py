"""karpathy/nanochat's files: generations told apart, moments read, everything else refused."""

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

from nanochat.checkpoint.reference import (
    ReferenceFiles,
    detect_generation,
    find_files,
    load_config,
    load_optimizer,
    load_weights,
    name_of,
)
from nanochat.checkpoint.reference_config import their_config
from nanochat.common.errors import CheckpointError
from nanochat.model.config import GENERATIONS, Generation
from nanochat.model.gpt import GPT
from tests.checkpoint.conftest import ReferenceDirectory
from tests.golden import parity

Weights = dict[str, Tensor]


@pytest.fixture
def weights() -> Weights:
    return dict(parity.from_golden("v5").weights)


@pytest.fixture
def meta(tmp_path: Path) -> Path:
    shutil.copy(parity.HERE / "parity_v5_meta.json", tmp_path / "meta_000030.json")
    return tmp_path / "meta_000030.json"


# ----------------------------------------------------------------------------------------- files


@pytest.mark.req("FR-048")
def test_the_newest_step_is_found(tmp_path: Path) -> None:
    assert find_files(tmp_path) is None
    for name in ("model_000030.pt", "meta_000030.json", "model_000100.pt", "model_x.pt"):
        (tmp_path / name).write_text("")
    with pytest.raises(CheckpointError, match=r"model_000100.pt: its meta file meta_000100.json"):
        find_files(tmp_path)
    (tmp_path / "meta_000100.json").write_text("")
    model, meta = tmp_path / "model_000100.pt", tmp_path / "meta_000100.json"
    assert find_files(tmp_path) == ReferenceFiles(model, meta, 100, None)
    for name in ("optim_000100.pt", "optim_000100_rank0.pt"):  # V1's name, then V2's to V5's
        (tmp_path / name).write_text("")
        assert find_files(tmp_path) == ReferenceFiles(model, meta, 100, tmp_path / name)


# --------------------------------------------------------------------------------------- weights


@pytest.mark.req("FR-046", "FR-048")
def test_weights_come_without_the_compilers_prefix(tmp_path: Path, weights: Weights) -> None:
    compiled = {f"_orig_mod.{name}": weight for name, weight in weights.items()}
    torch.save(compiled, tmp_path / "model_000001.pt")
    loaded = load_weights(tmp_path / "model_000001.pt")
    assert list(loaded) == list(weights)
    assert all(torch.equal(loaded[name], weight) for name, weight in weights.items())


class Trap:
    """Runs a command when it is unpickled by anything that runs code."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch " + os.environ["TRAP"],)


@pytest.mark.req("FR-047", "FR-062")
def test_code_in_a_file_is_refused_and_not_run(
    tmp_path: Path, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAP", str(tmp_path / "sprung"))
    path = tmp_path / "model_000001.pt"
    torch.save({**weights, "extra": Trap()}, path)
    with pytest.raises(CheckpointError, match=r"model_000001.pt: names 'posix.system'"):
        load_weights(path)
    torch.save({"state": {0: Trap()}, "param_groups": []}, path)
    with pytest.raises(CheckpointError, match="names 'posix.system', but weights need only"):
        load_optimizer(path, weights)
    assert not (tmp_path / "sprung").exists()
    torch.load(path, weights_only=False)  # the trap is a real one
    assert (tmp_path / "sprung").exists()


@pytest.mark.req("FR-047")
def test_files_that_hold_no_weights(tmp_path: Path) -> None:
    path = tmp_path / "model_000001.pt"
    with pytest.raises(CheckpointError, match=r"model_000001.pt: does not exist"):
        load_weights(path)
    with pytest.raises(CheckpointError, match=f"{tmp_path}: cannot be read \\(Is a directory"):
        load_weights(tmp_path)
    for content in (b"", b"not a zip file", b"PK\x03\x04" + bytes(50)):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="is no whole archive of tensors"):
            load_weights(path)
    for value in ([torch.zeros(1)], {"a": 5}, {5: torch.zeros(1)}, torch.zeros(2)):
        torch.save(value, path)
        with pytest.raises(CheckpointError, match="expected a dictionary of tensors by name"):
            load_weights(path)
    for dtype in (torch.int64, torch.float64, torch.bool):
        torch.save({"a": torch.zeros(1, dtype=dtype)}, path)
        with pytest.raises(CheckpointError, match=f"a is {dtype}, expected float32, bfloat16 or"):
            load_weights(path)
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match="is no whole archive of tensors"):
        load_weights(path)


# ---------------------------------------------------------------------------------- generations


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.req("FR-048", "FR-070")
def test_the_tensors_tell_the_generation(generation: Generation) -> None:
    figures = parity.from_golden(generation)
    assert detect_generation(figures.weights, "here") == generation
    config = load_config(figures.meta, figures.weights)
    assert (config.num_layers, config.model_dim, config.vocab_size) == (4, 64, 512)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (4, 2, 16)
    assert config.windows == ((None,) * 4 if generation == "v1" else (128, 128, 128, 256))
    for name, value in GENERATIONS[generation].items():
        assert getattr(config, name) == value
    model = GPT(config)
    model.load_state_dict({name_of(name): weight for name, weight in figures.weights.items()})


@pytest.mark.parametrize("variant", ["bigram_embed.weight", "v0_lambdas", "value_embed_A.weight"])
def test_trials_nobody_published_are_refused_by_name(variant: str, weights: Weights) -> None:
    with pytest.raises(CheckpointError, match=f"here: holds {variant.split('.')[0]}"):
        detect_generation({**weights, variant: torch.zeros(1)}, "here")


def test_rows_of_padding_are_read_off_the_table(meta: Path, weights: Weights) -> None:
    """The oldest models have as many rows as entries, the others multiples of 64."""
    raw = json.loads(meta.read_text())
    raw["model_config"]["vocab_size"] = 500
    meta.write_text(json.dumps(raw))
    config = load_config(meta, weights)
    assert (config.vocab_size, config.padded_vocab_size) == (500, 512)
    whole = {**weights, "transformer.wte.weight": torch.zeros(500, 64)}
    assert load_config(meta, whole).padded_vocab_size == 500


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layer": None}, "model_config is missing or damaged"),
        ({"n_head": 0}, "model_config is missing or damaged"),
        ({"n_kv_head": "two"}, "model_config is missing or damaged"),
        ({"n_layer": 10**9}, "35 tensors cannot be the 1000000000 layers it says"),
        ({"n_kv_head": 3}, "num_heads 4 is not a multiple of num_kv_heads 3"),
        ({"n_embd": 0}, "n_embd is 0, expected a whole number above 0"),
        ({"n_embd": True}, "n_embd is True, expected a whole number above 0"),
        ({"n_embd": 64.0}, "n_embd is 64.0, expected a whole number above 0"),
        ({"window_pattern": "SX"}, "window pattern is 'SX'"),
        ({"vocab_size": 600}, "vocab_size 600 does not fit 512 rows of transformer.wte"),
        ({"vocab_size": 100}, "vocab_size 100 does not fit 512 rows of transformer.wte"),
    ],
)
@pytest.mark.req("FR-047", "FR-062")
def test_a_meta_file_that_contradicts_the_tensors(
    changes: dict[str, Any], message: str, meta: Path, weights: Weights
) -> None:
    raw = json.loads(meta.read_text())
    raw["model_config"] |= changes
    meta.write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=f"meta_000030.json: .*{message}"):
        load_config(meta, weights)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "5", "{}", '{"model_config": 5}', b"\xff\xfe", "[" * 10_000, " " * 2**21],
)
@pytest.mark.req("FR-047")
def test_a_damaged_meta_file(text: str | bytes, meta: Path, weights: Weights) -> None:
    meta.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CheckpointError, match="meta_000030.json: model_config is missing or dam"):
        load_config(meta, weights)
    meta.unlink()
    with pytest.raises(CheckpointError, match="meta_000030.json: model_config is missing or dam"):
        load_config(meta, weights)


def test_weights_without_an_embedding(meta: Path, weights: Weights) -> None:
    del weights["transformer.wte.weight"]
    with pytest.raises(CheckpointError, match="does not fit 0 rows of transformer.wte"):
        load_config(meta, weights)


def test_names() -> None:
    assert name_of("transformer.h.3.attn.c_q.weight") == "blocks.3.attention.query.weight"
    assert name_of("value_embeds.11.weight") == "value_embeddings.11.weight"
    assert name_of("x0_lambdas") == "input_lambdas"
    for name in ("transformer.h.3.attn.c_x.weight", "transformer.h.x.attn.c_q.weight", "cos", ""):
        with pytest.raises(CheckpointError, match=f"tensor {name} has no place"):
            name_of(name)


# --------------------------------------------------------------------------------------- moments


@pytest.fixture
def optimizer_file(tmp_path: Path) -> Path:
    torch.save(parity.from_golden("v5").optimizer, tmp_path / "optim_000030_rank0.pt")
    return tmp_path / "optim_000030_rank0.pt"


@pytest.mark.req("FR-020", "FR-046", "FR-048")
def test_moments_by_our_names(optimizer_file: Path, weights: Weights) -> None:
    """Number 0 is the head, 8 the last scalar; matrices of one shape stand in the order of the
    blocks, the smallest shape first."""
    state = load_optimizer(optimizer_file, weights)
    raw = parity.from_golden("v5").optimizer
    assert raw is not None
    assert int(state["num_steps"]) == 30 and len(state) == 2 * len(weights) + 1
    for number, name in {
        0: "head.weight",
        1: "embedding.weight",
        2: "value_embeddings.1.weight",
        3: "value_embeddings.3.weight",
        4: "residual_lambdas",
        5: "input_lambdas",
        6: "smear_gate.weight",
        7: "smear_lambda",
        8: "backout_lambda",
    }.items():
        assert torch.equal(state[f"{name}/first"], raw["state"][number]["exp_avg"])
        assert torch.equal(state[f"{name}/second"], raw["state"][number]["exp_avg_sq"])
    for number, part, name in (
        (9, 1, "blocks.3.attention.value_gate.weight"),
        (11, 0, "blocks.0.attention.key.weight"),
        (11, 3, "blocks.1.attention.value.weight"),
        (19, 6, "blocks.3.attention.query.weight"),
        (27, 2, "blocks.2.mlp.contract.weight"),
        (31, 1, "blocks.1.mlp.expand.weight"),
    ):
        stacks = raw["state"][number]
        assert torch.equal(state[f"{name}/first"], stacks["momentum_buffer"][part])
        assert torch.equal(state[f"{name}/second"], stacks["second_momentum_buffer"][part])


@pytest.mark.parametrize("generation", ["v3", "v4", "v5"])
@pytest.mark.req("FR-046", "FR-048")
def test_moments_of_the_shared_files(generation: Generation, shared_dir: Path) -> None:
    directory = shared_dir / "parity" / parity.FOLDERS[generation] / "base/base_checkpoints/d4"
    files = find_files(directory)
    assert files is not None and files.optimizer is not None
    weights = load_weights(files.model)
    state = load_optimizer(files.optimizer, weights)
    for name, weight in weights.items():
        assert state[f"{name_of(name)}/first"].shape == weight.shape
        assert (state[f"{name_of(name)}/second"] >= 0).all()


@pytest.mark.parametrize("generation", ["v1", "v2"])
def test_older_moments_are_refused(generation: Generation, optimizer_file: Path) -> None:
    weights = parity.from_golden(generation).weights
    with pytest.raises(CheckpointError, match=f"{generation} had other optimizers .*go on from"):
        load_optimizer(optimizer_file, weights)


def changed_state(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    raw = parity.from_golden("v5").optimizer
    assert raw is not None
    change(raw)
    return raw


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.pop("state"), "not the state of one optimizer"),
        (lambda raw: raw.update(state=5), "not the state of one optimizer"),
        (lambda raw: raw.update(param_groups=[{}]), "not the state of one optimizer"),
        (lambda raw: raw["param_groups"].pop(), r"groups of \[.*\] tensors, expected \[1, 1, 2"),
        (lambda raw: raw["state"].update({0: 5}), "groups of"),
        (lambda raw: raw["state"].pop(0), "lm_head.weight: exp_avg is missing"),
        (lambda raw: raw["state"].pop(9), "ve_gate.weight and 1 more: momentum_buffer is missing"),
        (lambda raw: raw["state"][4].pop("exp_avg_sq"), "resid_lambdas: exp_avg_sq is missing"),
        (
            # of two devices each has half of the rows
            lambda raw: raw["state"][0].update(exp_avg=torch.zeros(256, 64)),
            r"lm_head.weight: exp_avg is \(256, 64\), expected \(512, 64\) \(several devices",
        ),
        (
            lambda raw: raw["state"][11].update(second_momentum_buffer=torch.zeros(8, 32, 1)),
            r"second_momentum_buffer is \(8, 32, 1\), expected \(8, 1, 64\)",
        ),
        (lambda raw: raw["state"][0].update(exp_avg=torch.zeros(512, 64).long()), "is torch.int64"),
        (lambda raw: raw["state"][3].update(step=29), "have made 29, 30 steps"),
        (
            lambda raw: raw["state"][3].update(step="many"),
            "have made 30, many steps, expected one",
        ),
    ],
)
@pytest.mark.req("FR-047")
def test_moments_that_do_not_fit(
    change: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path, weights: Weights
) -> None:
    path = tmp_path / "optim_000030_rank0.pt"
    torch.save(changed_state(change), path)
    with pytest.raises(CheckpointError, match=f"optim_000030_rank0.pt: .*{message}"):
        load_optimizer(path, weights)


def test_a_list_of_optimizers_is_none(tmp_path: Path, weights: Weights) -> None:
    """V1 and V2 saved two; a file of theirs beside V5's weights is a mistake."""
    path = tmp_path / "optim_000030_rank0.pt"
    torch.save([parity.from_golden("v5").optimizer] * 2, path)
    with pytest.raises(CheckpointError, match="not the state of one optimizer"):
        load_optimizer(path, weights)


def test_directories_made_here_are_those_of_the_shared_folder(
    reference_directory: ReferenceDirectory, shared_dir: Path
) -> None:
    """The tests above would prove nothing if the golden files were laid out otherwise."""
    theirs = shared_dir / "parity" / parity.FOLDERS["v5"] / "base"
    ours = reference_directory("v5").parents[1]
    names = sorted(str(path.relative_to(theirs)) for path in theirs.rglob("*"))
    assert sorted(str(path.relative_to(ours)) for path in ours.rglob("*")) == names
    a, b = find_files(ours / "base_checkpoints/d4"), find_files(theirs / "base_checkpoints/d4")
    assert a is not None and b is not None and a.optimizer is not None and b.optimizer is not None
    for left, right in ((a.model, b.model), (a.optimizer, b.optimizer)):
        x, y = torch.load(left, weights_only=True), torch.load(right, weights_only=True)
        assert list(x) == list(y)
    assert a.meta.read_bytes() == b.meta.read_bytes()
    assert dataclasses.replace(a, model=b.model, meta=b.meta, optimizer=b.optimizer) == b


def test_our_config_in_their_words(meta: Path, weights: Weights) -> None:
    """What their meta file says of a model is what a config read from it says again."""
    said = json.loads(meta.read_text())["model_config"]
    config = load_config(meta, weights)
    assert their_config(config, said["window_pattern"]) == said

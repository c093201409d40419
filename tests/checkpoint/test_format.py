"""A checkpoint is whole or absent, comes back bit for bit, and is refused when it is damaged."""

import dataclasses
import hashlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from nanochat.checkpoint import format as module
from nanochat.checkpoint.format import (
    FORMAT_VERSION,
    Checkpoint,
    find_steps,
    load_checkpoint,
    newest_valid,
    save_checkpoint,
    step_path,
    verify_checkpoint,
)
from nanochat.common.errors import CheckpointError
from nanochat.common.files import sha256_of_file
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.checkpoint.conftest import tiny_checkpoint

FILES = (
    "config.json",
    "manifest.json",
    "model.safetensors",
    "optimizer.safetensors",
    "state.json",
    "tokenizer/tokenizer.json",
)


@pytest.fixture
def saved(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    directory = tmp_path / "checkpoints" / "step_000005"
    save_checkpoint(directory, checkpoint)
    return directory


def files_of(directory: Path) -> list[str]:
    paths = (path for path in directory.rglob("*") if path.is_file())
    return sorted(str(path.relative_to(directory)) for path in paths)


def reseal(directory: Path, *names: str, **changes: Any) -> None:
    """The manifest agrees with the files again: somebody meant what follows."""
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text())
    for name in names:
        file = directory / name
        manifest["files"][name] = {"bytes": file.stat().st_size, "sha256": sha256_of_file(file)}
    seal(path, manifest | changes)


def seal(path: Path, manifest: dict[str, Any]) -> None:
    """A manifest with a digest of its own that is right."""
    zeros = "0" * 64
    text = json.dumps(manifest | {"manifest_sha256": zeros})
    path.write_text(text.replace(zeros, hashlib.sha256(text.encode()).hexdigest()))


# ---------------------------------------------------------------------------------- there and back


@pytest.mark.req("SC-008", "FR-045", "FR-046")
def test_everything_comes_back_bit_for_bit(saved: Path, checkpoint: Checkpoint) -> None:
    loaded = load_checkpoint(saved, with_optimizer=True)
    assert loaded.config == checkpoint.config and loaded.state == checkpoint.state
    assert loaded.tokenizer == checkpoint.tokenizer
    for ours, theirs in (
        (loaded.weights, checkpoint.weights),
        (loaded.optimizer, checkpoint.optimizer),
    ):
        assert ours is not None and theirs is not None and set(ours) == set(theirs)
        for name, tensor in theirs.items():
            assert ours[name].dtype == tensor.dtype
            assert torch.equal(ours[name], tensor), name
    assert load_checkpoint(saved).optimizer is None


@pytest.mark.req("SC-008")
def test_rare_bits_survive(tmp_path: Path, checkpoint: Checkpoint) -> None:
    """Infinities, NaNs of any payload, minus zero, subnormals; weights that lie strided."""
    bits = torch.tensor([0x7FC00001, 0x7F800000, -0x00800000, -0x80000000, 1], dtype=torch.int64)
    rare = bits.to(torch.int32).view(torch.float32)
    weights = dict(checkpoint.weights)
    head = weights["head.weight"]
    weights["head.weight"] = rare.repeat(head.numel() // 5).view(head.T.shape).T  # strided
    weights["embedding.weight"] = rare[:1].expand(weights["embedding.weight"].shape)
    save_checkpoint(tmp_path / "step_1", dataclasses.replace(checkpoint, weights=weights))
    loaded = load_checkpoint(tmp_path / "step_1").weights
    for name, weight in weights.items():
        assert torch.equal(loaded[name].view(torch.int32), weight.contiguous().view(torch.int32)), (
            name
        )


@pytest.mark.req("FR-045", "FR-047")
def test_the_directory(saved: Path, checkpoint: Checkpoint) -> None:
    assert tuple(files_of(saved)) == FILES
    manifest = json.loads((saved / "manifest.json").read_text())
    assert manifest["format_version"] == FORMAT_VERSION and manifest["step"] == 5
    assert manifest["tokenizer_hash"] == checkpoint.tokenizer.content_hash
    for name, entry in manifest["files"].items():
        assert entry["bytes"] == (saved / name).stat().st_size
        assert entry["sha256"] == sha256_of_file(saved / name)
    assert set(manifest["files"]) == set(FILES) - {"manifest.json"}
    mask = os.umask(0)
    os.umask(mask)
    modes = {stat.S_IMODE((saved / name).stat().st_mode) for name in FILES}
    assert modes == {0o666 & ~mask}  # weights can be read by whoever may read the rest


def test_moments_may_be_left_out(tmp_path: Path, checkpoint: Checkpoint) -> None:
    save_checkpoint(tmp_path / "step_1", dataclasses.replace(checkpoint, optimizer=None))
    assert "optimizer.safetensors" not in files_of(tmp_path / "step_1")
    assert load_checkpoint(tmp_path / "step_1", with_optimizer=True).optimizer is None


def test_a_leftover_file_of_moments_is_not_read(saved: Path, checkpoint: Checkpoint) -> None:
    manifest = json.loads((saved / "manifest.json").read_text())
    del manifest["files"]["optimizer.safetensors"]
    seal(saved / "manifest.json", manifest)
    assert load_checkpoint(saved, with_optimizer=True).optimizer is None


# --------------------------------------------------------------------------------- whole or absent


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt(), RuntimeError("x")])
@pytest.mark.parametrize("at", range(6))
@pytest.mark.req("FR-045", "FR-047")
def test_what_is_interrupted_never_existed(
    at: int,
    error: BaseException,
    saved: Path,
    tiny_tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An end before each of the files, and before the renaming."""
    before = {name: (saved / name).read_bytes() for name in FILES}
    steps = iter(range(100))

    def interrupted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if next(steps) == at:
                raise error
            return function(*args, **kwargs)

        return call

    for name in ("write_json_atomically", "save_tensors", "write_manifest", "_flush"):
        monkeypatch.setattr(module, name, interrupted(getattr(module, name)))
    directory = saved.with_name("step_000006")
    with pytest.raises(CheckpointError if isinstance(error, OSError) else type(error)) as caught:
        save_checkpoint(directory, tiny_checkpoint(tiny_tokenizer, seed=1))
    if isinstance(error, OSError):
        assert "step_000006: not saved, disk full; earlier checkpoints are" in str(caught.value)
    assert os.listdir(saved.parent) == ["step_000005"]
    assert list(find_steps(saved.parents[1])) == [5]
    assert {name: (saved / name).read_bytes() for name in FILES} == before
    monkeypatch.undo()
    save_checkpoint(directory, tiny_checkpoint(tiny_tokenizer, seed=1))
    assert list(find_steps(saved.parents[1])) == [5, 6]


@pytest.mark.req("FR-045", "FR-047")
def test_it_appears_in_one_step(
    tmp_path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the renaming nothing is there, at the renaming everything is, on the disk."""
    directory = tmp_path / "step_000001"
    synced: set[int] = set()
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda file: (synced.add(os.fstat(file).st_ino), fsync(file))[1]
    )

    def rename(source: Path, target: Path) -> Path:
        assert target == directory and not directory.exists()
        assert tuple(files_of(source)) == FILES
        parts = [source, *source.rglob("*")]
        assert {part.stat().st_ino for part in parts} <= synced
        raise OSError("the power is gone")

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(CheckpointError, match="not saved, the power is gone"):
        save_checkpoint(directory, checkpoint)
    assert os.listdir(tmp_path) == []


@pytest.mark.req("FR-045")
def test_what_a_killed_process_left_is_in_nobodys_way(
    tmp_path: Path, checkpoint: Checkpoint
) -> None:
    left = tmp_path / "checkpoints" / ".step_000005.writing"
    (left / "tokenizer").mkdir(parents=True)
    (left / "optimizer.safetensors").write_bytes(b"half of it")
    assert find_steps(tmp_path) == {}
    directory = tmp_path / "checkpoints" / "step_000005"
    save_checkpoint(directory, dataclasses.replace(checkpoint, optimizer=None))
    assert "optimizer.safetensors" not in files_of(directory) and not left.exists()


def test_a_checkpoint_is_never_replaced(saved: Path, checkpoint: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match="step_000005 exists already: .*--overwrite"):
        save_checkpoint(saved, checkpoint)


def test_no_place_to_write(tmp_path: Path, checkpoint: Checkpoint) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="not saved, .*Not a directory"):
        save_checkpoint(tmp_path / "file" / "step_1", checkpoint)


def test_a_state_that_is_not_json(tmp_path: Path, checkpoint: Checkpoint) -> None:
    state = {"metrics": {"val_bpb": float("nan")}}
    with pytest.raises(CheckpointError, match="step_1: not saved, .*JSON"):
        save_checkpoint(tmp_path / "step_1", dataclasses.replace(checkpoint, state=state))
    assert os.listdir(tmp_path) == []


def test_a_file_system_that_cannot_sync_directories(
    tmp_path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def files_only(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError("directories cannot be synced here")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", files_only)
    save_checkpoint(tmp_path / "step_1", checkpoint)
    assert load_checkpoint(tmp_path / "step_1").state == checkpoint.state


def test_steps_are_found_by_number(tmp_path: Path, saved: Path, checkpoint: Checkpoint) -> None:
    save_checkpoint(saved.with_name("step_000100"), checkpoint)
    save_checkpoint(saved.with_name("step_20"), checkpoint)
    (saved.with_name("step_000300")).mkdir()  # no manifest
    (saved.with_name("step_x")).mkdir()
    (saved.with_name("step_x") / "manifest.json").write_text("{}")
    assert list(find_steps(tmp_path)) == [5, 20, 100]
    assert find_steps(tmp_path / "nothing here") == {}


# ------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", FILES[:1] + FILES[2:])
@pytest.mark.req("FR-047")
def test_a_damaged_file_is_named(name: str, saved: Path) -> None:
    path = saved / name
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    for damage, message in (
        (bytes(flipped), "its SHA-256 differs from the manifest"),
        (content[:-1], f"{len(content) - 1} bytes, the manifest says {len(content)}"),
        (b"", "0 bytes, the manifest says"),
        (content + b" ", f"{len(content) + 1} bytes"),
    ):
        path.write_bytes(damage)
        with pytest.raises(CheckpointError, match=f"{name}: {message}"):
            load_checkpoint(saved)
    path.unlink()
    with pytest.raises(CheckpointError, match=f"{name}: missing, though the manifest lists it"):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "manifest.json does not exist, expected a JSON file"),
        ("{", "manifest.json, line 1: not JSON"),
        ("[]", "manifest.json is a list, expected a JSON object"),
        ("{}", "manifest.json: format version None, this nanochat reads 1"),
        ('{"format_version": true}', "manifest.json: format version True"),
        ('{"format_version": 2}', "manifest.json: format version 2, .* by another version"),
        ('{"format_version": 1}', "manifest.json: files is None"),
        ('{"format_version": 1, "files": {}}', "manifest.json: lists no config.json, expected"),
        (b"\xff", "manifest.json is not UTF-8 at byte 0"),
    ],
)
@pytest.mark.req("FR-047")
def test_a_manifest_that_is_none(text: str | bytes | None, message: str, saved: Path) -> None:
    path = saved / "manifest.json"
    path.unlink()
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(saved)


@pytest.mark.parametrize("entry", [None, 5, {}, {"bytes": "9"}, {"bytes": None, "sha256": 1}])
def test_entries_that_say_nothing(entry: Any, saved: Path) -> None:
    manifest = json.loads((saved / "manifest.json").read_text())
    manifest["files"]["model.safetensors"] = entry
    seal(saved / "manifest.json", manifest)
    with pytest.raises(CheckpointError, match="model.safetensors: .* bytes, the manifest says"):
        load_checkpoint(saved)


@pytest.mark.req("FR-047")
def test_a_config_of_another_program(saved: Path) -> None:
    path = saved / "config.json"
    raw = json.loads(path.read_text())
    for changed, message in (
        (raw | {"num_experts": 8}, r"config.json: model config: unknown keys \['num_experts'\]"),
        ({k: v for k, v in raw.items() if k != "smear_channels"}, "missing keys .*smear_channels"),
        (raw | {"num_layers": "two"}, "config.json: model config: num_layers is 'two'"),
        (raw | {"head_dim": 7}, "config.json: model config: head_dim is 7"),
        ([], "config.json is a list, expected a JSON object"),
    ):
        path.write_text(json.dumps(changed))
        reseal(saved, "config.json")
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage": 5}, "state.json: stage is 5, expected str"),
        ({"step": "five"}, "state.json: step is 'five', expected int"),
        ({"batch_tokens": None}, "state.json: batch_tokens is None, expected int"),
        ({"step": 6}, "state.json: step is 6, the manifest says 5"),
    ],
)
@pytest.mark.req("FR-047")
def test_a_state_that_cannot_be_gone_on_from(
    changes: dict[str, Any], message: str, saved: Path
) -> None:
    path = saved / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    reseal(saved, "state.json")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(saved)


@pytest.mark.req("FR-047")
def test_another_tokenizer(saved: Path, checkpoint: Checkpoint) -> None:
    path = saved / "tokenizer" / "tokenizer.json"
    path.unlink()
    Tokenizer([bytes([byte]) for byte in range(256)]).save(path)
    reseal(saved, "tokenizer/tokenizer.json")
    with pytest.raises(CheckpointError, match="tokenizer.json: the tokenizer is another one"):
        load_checkpoint(saved)
    path.write_text("{}")
    reseal(saved, "tokenizer/tokenizer.json")
    with pytest.raises(CheckpointError, match="tokenizer.json"):
        load_checkpoint(saved)


@pytest.mark.req("FR-047", "FR-062")
def test_weights_that_are_no_safetensors(saved: Path) -> None:
    path = saved / "model.safetensors"
    for content in (b"", b"PK\x03\x04" + bytes(100), (2**62).to_bytes(8, "little") + b"{}"):
        path.write_bytes(content)
        reseal(saved, "model.safetensors")
        with pytest.raises(CheckpointError, match="model.safetensors: not a readable safetensors"):
            load_checkpoint(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w | {"a": torch.zeros(2)}, "1 tensors .*such as a: expected none, found .2,."),
        (
            lambda w: w | {"head.weight": w["head.weight"].bfloat16()},
            r"such as head.weight: expected \(320, 32\) float32, found \(320, 32\) bfloat16",
        ),
        (
            lambda w: w | {"head.weight": w["head.weight"].T.contiguous()},
            r"expected \(320, 32\) float32, found \(32, 320\) float32",
        ),
        (
            lambda w: {name: tensor for name, tensor in w.items() if name != "head.weight"},
            r"head.weight: expected \(320, 32\) float32, found none",
        ),
        (lambda w: {"a": torch.zeros(2)}, "the config is for [0-9,]+ weights, it holds 2"),
    ],
)
@pytest.mark.req("FR-047", "EC-2")
def test_weights_of_another_model(
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    message: str,
    saved: Path,
    checkpoint: Checkpoint,
) -> None:
    path = saved / "model.safetensors"
    save_file(change({name: w.clone() for name, w in checkpoint.weights.items()}), path)
    reseal(saved, "model.safetensors")
    with pytest.raises(CheckpointError, match=f"model.safetensors: .*{message}"):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    ("key", "moment", "message"),
    [
        ("stranger/first", torch.zeros(2), "stranger/first belongs to no weight of the model"),
        ("head.weight/first", torch.zeros(320, 1), r"has shape \(320, 1\), its weight \(320, 32\)"),
        ("head.weight/second", torch.zeros(5, 32), r"has shape \(5, 32\), its weight \(320, 32\)"),
        ("head.weight/second", torch.zeros(320), r"has shape \(320,\), its weight \(320, 32\)"),
        ("head.weight/first", torch.zeros(320, 32).half(), "is float16, expected float32"),
    ],
)
@pytest.mark.req("FR-047", "EC-2")
def test_moments_of_another_model(
    key: str, moment: torch.Tensor, message: str, saved: Path, checkpoint: Checkpoint
) -> None:
    path = saved / "optimizer.safetensors"
    assert checkpoint.optimizer is not None
    kept = {name: tensor.clone() for name, tensor in checkpoint.optimizer.items()}
    save_file(kept | {key: moment}, path)
    reseal(saved, "optimizer.safetensors")
    with pytest.raises(CheckpointError, match=f"optimizer.safetensors: .*{message}"):
        load_checkpoint(saved, with_optimizer=True)
    assert load_checkpoint(saved).optimizer is None  # nobody asked for them


@pytest.mark.req("FR-047", "EC-2")
def test_a_vocabulary_of_another_size(saved: Path) -> None:
    other = Tokenizer([bytes([byte]) for byte in range(256)])
    other.save(saved / "tokenizer" / "tokenizer.json")
    reseal(saved, "tokenizer/tokenizer.json", tokenizer_hash=other.content_hash)
    with pytest.raises(CheckpointError, match="the tokenizer has 265 tokens, the model 300"):
        load_checkpoint(saved)


@pytest.mark.req("FR-047")
def test_hashes_may_be_left_out_sizes_never(saved: Path) -> None:
    path = saved / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="model.safetensors: its SHA-256 differs"):
        load_checkpoint(saved)
    assert load_checkpoint(saved, with_hashes=False).state["step"] == 5
    path.write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match="model.safetensors: .* bytes, the manifest says"):
        load_checkpoint(saved, with_hashes=False)


# --------------------------------------------------------------------------------- newest valid


@pytest.mark.req("FR-047", "EC-2", "EC-5")
def test_the_newest_valid_one_is_found(saved: Path, tiny_tokenizer: Tokenizer) -> None:
    stage = saved.parents[1]
    for step in (6, 7, 8):
        save_checkpoint(step_path(saved.parent, step), tiny_checkpoint(tiny_tokenizer, step=step))
    assert newest_valid(stage) == (8, step_path(saved.parent, 8))
    (step_path(saved.parent, 8) / "state.json").write_text("{}")
    (step_path(saved.parent, 7) / "manifest.json").write_text("{")
    refused: list[tuple[Path, CheckpointError]] = []
    found = newest_valid(stage, lambda path, error: refused.append((path, error)))
    assert found == (6, step_path(saved.parent, 6)) == newest_valid(stage)
    assert [path.name for path, _ in refused] == ["step_000008", "step_000007"]
    assert "state.json: 2 bytes" in str(refused[0][1])
    assert "manifest.json, line 1: not JSON" in str(refused[1][1])
    for step in (5, 6):
        (step_path(saved.parent, step) / "model.safetensors").unlink()
    assert newest_valid(stage) is None
    assert newest_valid(stage.with_name("absent")) is None
    with pytest.raises(CheckpointError, match="model.safetensors: missing"):
        verify_checkpoint(step_path(saved.parent, 6))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(st.text(max_size=5), children, max_size=3)
        | st.dictionaries(st.sampled_from(["files", "format_version", "bytes"]), children)
    ),
    max_leaves=6,
)


@given(
    file=st.sampled_from(["manifest.json", "config.json", "state.json"]),
    key=st.sampled_from(["files", "num_layers", "windows", "value_embedding", "head_dim", "step"]),
    value=JSON,
)
@pytest.mark.req("FR-047", "FR-062")
def test_whatever_stands_there_is_refused_or_read(
    file: str, key: str, value: Any, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """No exception but ours, whatever a file's values are."""
    directory = tmp_path / "any" / "step_1"
    if not directory.exists():
        save_checkpoint(directory, tiny_checkpoint(tiny_tokenizer))
    kept = {name: (directory / name).read_bytes() for name in ("manifest.json", file)}
    try:
        raw = json.loads(kept[file])
        raw[key] = value
        (directory / file).write_text(json.dumps(raw))
        if file != "manifest.json":
            reseal(directory, file)
        try:
            load_checkpoint(directory, with_optimizer=True)
        except CheckpointError as error:
            assert str(directory) in str(error)
    finally:
        for name, content in kept.items():
            (directory / name).write_bytes(content)

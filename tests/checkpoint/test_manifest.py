"""Not a byte of a manifest changes unseen, and what is in none is refused."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.checkpoint.format import Checkpoint, load_checkpoint, save_checkpoint
from nanochat.checkpoint.manifest import (
    FORMAT_VERSION,
    Manifest,
    describe_files,
    read_manifest,
    read_object,
    verify_file,
    verify_files,
    write_manifest,
)
from nanochat.common.errors import CheckpointError
from tests.checkpoint.test_format import seal

ENTRY = {"bytes": 3, "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}
FILES = ("config.json", "model.safetensors", "state.json", "tokenizer/tokenizer.json")
MANIFEST = Manifest(
    format_version=FORMAT_VERSION,
    nanochat="0.1",
    torch="2.13",
    step=5,
    tokenizer_hash="00",
    files=dict.fromkeys(FILES, ENTRY),
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("abc")
    return tmp_path


@pytest.mark.req("FR-047")
def test_there_and_back(directory: Path) -> None:
    assert describe_files(directory) == MANIFEST.files
    write_manifest(directory, MANIFEST)
    assert read_manifest(directory / "manifest.json") == MANIFEST
    verify_files(directory, MANIFEST)


@given(data=st.data())
@pytest.mark.req("FR-047", "EC-2")
def test_every_byte_counts(data: st.DataObject, tmp_path: Path) -> None:
    """Blanks and line ends too, any other byte in place of any."""
    path = tmp_path / "manifest.json"
    write_manifest(tmp_path, MANIFEST)
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[at]))
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="manifest.json"):
        read_manifest(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nanochat": "0.2"}, "its SHA-256 is not the one in it"),
        ({"manifest_sha256": 5}, "its SHA-256 is not the one in it"),
        ({"manifest_sha256": ""}, "its SHA-256 is not the one in it"),
    ],
)
@pytest.mark.req("FR-047")
def test_a_manifest_somebody_edited(changes: dict[str, Any], message: str, directory: Path) -> None:
    write_manifest(directory, MANIFEST)
    path = directory / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes, indent=2) + "\n")
    with pytest.raises(CheckpointError, match=message):
        read_manifest(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extra": 1}, "missing or unknown keys extra"),
        ({"files": MANIFEST.files | {"../../secret": ENTRY}}, r"lists '../../secret', expected"),
        ({"files": MANIFEST.files | {"/etc/passwd": ENTRY}}, "lists '/etc/passwd', expected files"),
        ({"files": MANIFEST.files | {"": ENTRY}}, "lists '', expected files of the checkpoint"),
        ({"format_version": FORMAT_VERSION + 1}, "was written by another version"),
        ({"format_version": 0}, "format version 0"),
    ],
)
@pytest.mark.req("FR-047", "FR-062")
def test_a_manifest_of_somebody_elses(
    changes: dict[str, Any], message: str, directory: Path
) -> None:
    seal(directory / "manifest.json", dataclasses.asdict(MANIFEST) | changes)
    with pytest.raises(CheckpointError, match=f"manifest.json: .*{message}"):
        read_manifest(directory / "manifest.json")


@pytest.mark.req("FR-048")
def test_manifests_had_no_digest_at_first(checkpoint: Checkpoint, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "step_1", checkpoint)
    path = tmp_path / "step_1" / "manifest.json"
    raw = json.loads(path.read_text())
    del raw["manifest_sha256"]
    path.write_text(json.dumps(raw))
    assert load_checkpoint(tmp_path / "step_1").config == checkpoint.config


@pytest.mark.parametrize("name", FILES)
@pytest.mark.req("FR-047", "EC-2")
def test_a_file_that_is_otherwise(name: str, directory: Path) -> None:
    (directory / name).write_text("abd")
    with pytest.raises(CheckpointError, match=f"{name}: its SHA-256 differs"):
        verify_files(directory, MANIFEST)
    verify_files(directory, MANIFEST, with_hashes=False)
    verify_file(directory / name, ENTRY, with_hash=False)
    (directory / name).write_text("abcd")
    with pytest.raises(CheckpointError, match=f"{name}: 4 bytes, the manifest says 3"):
        verify_files(directory, MANIFEST, with_hashes=False)
    (directory / name).unlink()
    (directory / name).mkdir()
    with pytest.raises(CheckpointError, match=f"{name}: missing"):
        verify_files(directory, MANIFEST)


@pytest.mark.req("FR-047", "EC-2")
def test_a_disk_that_cannot_read(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("nanochat.checkpoint.manifest.sha256_of_file", refuse)
    with pytest.raises(CheckpointError, match="config.json: cannot be read, .*Input/output error"):
        verify_file(directory / "config.json", ENTRY)


def test_objects(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for text, message in (
        ("[1]", "x.json is a list, expected a JSON object"),
        ("[" * 100_000, "x.json"),
        ("{", "x.json, line 1: not JSON"),
    ):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=message):
            read_object(path)
    path.write_text('{"a": 1}')
    assert read_object(path) == {"a": 1}
    os.unlink(path)
    with pytest.raises(CheckpointError, match="x.json does not exist"):
        read_object(path)

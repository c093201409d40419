"""Every damaged file is found at once, and what is whole is called whole."""

import json
from pathlib import Path

import pytest

from nanochat.checkpoint.examine import Finding, examine
from nanochat.checkpoint.format import Checkpoint, save_checkpoint
from tests.checkpoint.conftest import ReferenceDirectory
from tests.checkpoint.test_format import FILES, reseal


@pytest.fixture
def saved(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "step_000005", checkpoint)
    return tmp_path / "step_000005"


def refused(directory: Path) -> dict[str, str]:
    return {finding.file: finding.detail for finding in examine(directory) if finding.is_refused}


@pytest.mark.req("FR-047")
def test_what_is_whole(saved: Path) -> None:
    findings = examine(saved)
    assert refused(saved) == {}
    assert {finding.file for finding in findings} == set(FILES)
    found = {(finding.file, finding.check): finding for finding in findings}
    assert found["manifest.json", "SHA-256"].detail.startswith("format version 1, written by")
    assert found["model.safetensors", "size, SHA-256"].detail == "as in the manifest"
    assert "48,182 weights" in found["model.safetensors", "fits the config"].detail
    assert found["tokenizer/tokenizer.json", "fits the model"].detail == "300 tokens"
    assert found["state.json", "state"].detail == "pretrain, step 5"
    assert found["config.json", "config"] == Finding(
        file="config.json",
        check="config",
        num_bytes=(saved / "config.json").stat().st_size,
        detail="2 layers of width 32",
    )
    assert ("optimizer.safetensors", "fits the weights") in found


@pytest.mark.req("FR-047", "EC-2")
def test_all_damage_is_named(saved: Path) -> None:
    (saved / "config.json").unlink()
    (saved / "state.json").write_text("{}")
    content = bytearray((saved / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (saved / "model.safetensors").write_bytes(content)
    (saved / "notes.txt").write_text("mine")
    damage = refused(saved)
    assert list(damage) == ["config.json", "model.safetensors", "state.json"]
    assert damage["config.json"] == "missing, though the manifest lists it"
    assert damage["state.json"].startswith("2 bytes, the manifest says")
    assert damage["model.safetensors"].startswith("its SHA-256 differs")
    notes = next(finding for finding in examine(saved) if finding.file == "notes.txt")
    assert not notes.is_refused and notes.detail == "not in the manifest, not read"
    (saved / "manifest.json").write_text("{}")
    assert list(refused(saved)) == ["manifest.json"]


@pytest.mark.req("FR-047", "EC-2")
def test_contents_that_do_not_fit(saved: Path) -> None:
    path = saved / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_dim": 30}))
    reseal(saved, "config.json")
    damage = refused(saved)
    assert list(damage) == ["model.safetensors"]
    assert "tensors do not fit the config, such as" in damage["model.safetensors"]


@pytest.mark.req("FR-047", "FR-048")
def test_other_programs_files_have_no_hashes(reference_directory: ReferenceDirectory) -> None:
    directory = reference_directory("v3")
    findings = examine(directory)
    assert refused(directory) == {}
    assert ("model_000030.pt", "no hash in this format") in {(f.file, f.check) for f in findings}
    (directory / "model_000030.pt").write_bytes(b"nothing")
    assert refused(directory) != {}

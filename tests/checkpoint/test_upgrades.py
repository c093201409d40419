"""A checkpoint of every format version there has been still loads."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from nanochat.checkpoint import manifest
from nanochat.checkpoint.format import load_checkpoint
from nanochat.checkpoint.resolve import restore
from nanochat.checkpoint.upgrades import UPGRADES, Contents, upgraded
from nanochat.common.errors import CheckpointError
from tests.golden import formats as golden

VERSIONS = range(1, manifest.FORMAT_VERSION + 1)


@pytest.mark.req("FR-048")
def test_every_version_has_a_fixture_and_a_way_up() -> None:
    folders = {path.name for path in golden.FOLDER.iterdir() if path.is_dir()}
    assert folders == {f"v{version}" for version in VERSIONS}
    assert set(UPGRADES) == set(VERSIONS[:-1])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.req("FR-048", "FR-046", "SC-008")
def test_it_loads_and_computes_what_it_computed(version: int) -> None:
    folder = golden.FOLDER / f"v{version}"
    assert json.loads((folder / "manifest.json").read_text())["format_version"] == version
    checkpoint = load_checkpoint(folder, with_optimizer=True)
    expected = golden.expected()
    assert checkpoint.config == expected.config and checkpoint.tokenizer == expected.tokenizer
    assert checkpoint.state == expected.state
    assert checkpoint.optimizer is not None and expected.optimizer is not None
    ours = {**checkpoint.weights, **checkpoint.optimizer}
    theirs = {**expected.weights, **expected.optimizer}
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert restore(checkpoint, str(folder)).config == expected.config


@pytest.mark.req("FR-048")
def test_contents_pass_through_all_versions_in_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version 1 as if the third were the newest: one upgrade moves a key, the next a tensor."""
    newest = manifest.FORMAT_VERSION + 2
    monkeypatch.setattr(manifest, "FORMAT_VERSION", newest)
    monkeypatch.setitem(UPGRADES, newest - 2, renamed)
    monkeypatch.setitem(UPGRADES, newest - 1, doubled)
    shutil.copytree(golden.FOLDER / f"v{newest - 2}", tmp_path / "step_1")
    loaded, expected = load_checkpoint(tmp_path / "step_1"), golden.expected()
    assert loaded.state == {**expected.state, "upgraded": "once"}
    head = expected.weights["head.weight"]
    assert torch.equal(loaded.weights["head.weight"], 2 * head)


def renamed(contents: Contents) -> Contents:
    return dataclasses.replace(contents, state={**contents.state, "upgraded": "once"})


def doubled(contents: Contents) -> Contents:
    assert contents.state["upgraded"] == "once"
    head = contents.weights["head.weight"]
    return dataclasses.replace(contents, weights={**contents.weights, "head.weight": 2 * head})


def test_the_newest_needs_nothing() -> None:
    contents = Contents(config={}, state={}, weights={}, optimizer=None)
    assert upgraded(contents, manifest.FORMAT_VERSION) is contents


@pytest.mark.req("FR-048", "EC-2")
def test_a_later_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(golden.FOLDER / "v1", tmp_path / "step_1")
    monkeypatch.setattr(manifest, "FORMAT_VERSION", 0)
    with pytest.raises(CheckpointError, match="format version 1, this nanochat reads 1 to 0"):
        load_checkpoint(tmp_path / "step_1")

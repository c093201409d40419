"""nanochat show: config, plan, metrics, lineage; for people and as JSON."""

import json
from pathlib import Path

import pytest

from nanochat.checkpoint.format import save_checkpoint
from nanochat.cli import show
from nanochat.cli.main import main
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.checkpoint.conftest import ReferenceDirectory, reference_directory, tiny_checkpoint

__all__ = ["reference_directory"]  # a fixture of another room


@pytest.fixture
def stage(home: Path, tiny_tokenizer: Tokenizer) -> Path:
    parent = home / "runs/d2/pretrain/checkpoints/step_000010"
    stage = home / "runs/d2/sft"
    save_checkpoint(parent, tiny_checkpoint(tiny_tokenizer, step=10))
    state = {
        "stage": "sft",
        "step": 3,
        "parent": str(parent),
        "metrics": {"loss": 2.34567891, "note": "x\x1b[2J"},
    }
    save_checkpoint(stage / "checkpoints" / "step_000003", tiny_checkpoint(tiny_tokenizer, **state))
    plan = {"num_steps": 3000, "is_compiled": False, "reasons": {"steps": "as you said"}}
    (stage / "plan.json").write_text(json.dumps(plan))
    (stage / "checkpoints" / "best.json").write_text('{"val_bpb": {"3": 1.25}}')
    return stage


@pytest.mark.req("FR-045")
def test_for_people(stage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "d2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("d2/sft@3   ")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    for line in (
        "weights 48,182",
        "num_layers 2",
        "num_steps 3,000",
        "is_compiled false",
        "steps as you said",
        "loss 2.34568",
        "3 1.25",
        "d2/sft@3",
        "d2/pretrain@10",
    ):
        assert line in lines, line
    assert any(line.startswith("tokenizer 300 tokens (") for line in lines)
    assert "\x1b" not in out
    for title in ("config", "plan", "why", "metrics", "validation (bits per byte)", "came from"):
        assert title in lines


@pytest.mark.req("EC-2", "FR-045", "FR-047")
def test_what_is_damaged_is_not_shown(
    stage: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A flipped bit where hashing is cheap, another size always; one line says what was seen."""
    assert main(["show", "d2"]) == 0
    assert "sizes and SHA-256 as in the manifest" in capsys.readouterr().out
    weights = stage / "checkpoints/step_000003/model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert main(["show", "d2"]) == 2
    error = capsys.readouterr().err
    assert "model.safetensors: its SHA-256 differs" in error and error.count("\n") == 1
    monkeypatch.setattr(show, "CHEAP_BYTES", 100_000)
    assert main(["show", "d2"]) == 0
    assert "SHA-256 of model.safetensors" in " ".join(capsys.readouterr().out.split())
    weights.write_bytes(whole[:-1])
    assert main(["show", "d2"]) == 2
    assert "the manifest says" in capsys.readouterr().err


@pytest.mark.req("FR-045")
def test_as_json(
    stage: Path, tiny_tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", "d2", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["model"] == "d2/sft@3" and shown["config"]["num_layers"] == 2
    assert shown["plan"]["num_steps"] == 3000 and shown["metrics"]["loss"] == 2.34567891
    assert shown["tokenizer"]["content_hash"] == tiny_tokenizer.content_hash
    assert shown["val_bpb"] == {"3": 1.25}
    assert [(entry["run"], entry["stage"], entry["step"]) for entry in shown["lineage"]] == [
        ("d2", "sft", 3),
        ("d2", "pretrain", 10),
    ]


def test_with_nothing_beside_it(stage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (stage / "plan.json").write_text("[]")
    (stage / "checkpoints" / "best.json").write_text('{"val_bpb": 3}')
    (stage.parent / "pretrain/checkpoints/step_000010").rename(stage / "away")
    assert main(["show", "d2"]) == 0
    out = capsys.readouterr().out
    assert "\nplan\n" not in out and "validation" not in out
    assert "d2/pretrain@10" in out and "no longer here" in out
    assert main(["show", str(stage / "away"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["plan"] == shown["val_bpb"] == shown["metrics"] == {}


@pytest.mark.req("FR-048")
def test_models_of_other_programs(
    reference_directory: ReferenceDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = reference_directory("v1")
    assert main(["show", str(directory)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(str(directory)) and "num_layers" in out


@pytest.mark.req("FR-047")
def test_no_model(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "absent"]) == 2
    assert "neither a directory nor a run" in capsys.readouterr().err

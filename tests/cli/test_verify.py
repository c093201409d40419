"""nanochat verify: a table, exit code 2 when anything is refused, JSON for scripts."""

import json
from pathlib import Path

import pytest

from nanochat.cli.main import main
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.cli.models import save_model


@pytest.fixture
def checkpoint(home: Path, tiny_tokenizer: Tokenizer) -> Path:
    save_model(home, tiny_tokenizer)
    return home / "runs/tiny/sft/checkpoints/step_000003"


@pytest.mark.req("FR-047")
def test_what_is_whole(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "tiny"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(checkpoint) and lines[1].split() == ["file", "bytes", "check", "result"]
    assert lines[-1] == "all is in order"
    assert any(line.startswith("model.safetensors ") and " ok " in line for line in lines)


@pytest.mark.req("FR-047", "EC-2")
def test_what_is_damaged(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    older = checkpoint.with_name("step_000002")
    checkpoint.rename(older)
    save_model(checkpoint.parents[4], Tokenizer.load(older / "tokenizer/tokenizer.json"))
    (checkpoint / "state.json").unlink()
    assert main(["verify", "tiny"]) == 2  # the newest is looked at, not what stands in for it
    out = capsys.readouterr().out
    assert "state.json" in out and "missing  " in out and "REFUSED" in out
    assert out.endswith("1 refused: this checkpoint is not used\n") and str(older) not in out
    assert main(["verify", "tiny@2"]) == 0
    capsys.readouterr()
    assert main(["verify", "tiny", "--every", "--json"]) == 2
    result = json.loads(capsys.readouterr().out)
    assert result["model"] == "tiny" and result["is_valid"] is False
    assert [entry["path"] for entry in result["checkpoints"]] == [str(checkpoint), str(older)]
    refused = [
        [check["file"] for check in entry["checks"] if check["is_refused"]]
        for entry in result["checkpoints"]
    ]
    assert refused == [["state.json"], []]


def test_no_model(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "absent"]) == 2
    assert "'absent' is neither a directory nor a run" in capsys.readouterr().err


@pytest.mark.req("FR-047")
def test_hashes_can_be_left_out_where_a_model_is_used(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = checkpoint / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    words = ["generate", "tiny", "-p", "the", "--max-tokens", "2"]
    assert main(words) == 2
    assert "model.safetensors: its SHA-256 differs" in capsys.readouterr().err
    assert main([*words, "--no-verify"]) == 0

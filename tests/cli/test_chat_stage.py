"""Conversations of several places, each as often as --epochs says."""

import json
from pathlib import Path

import pytest

from nanochat.cli.main import main
from nanochat.common.errors import ConfigError
from nanochat.tokenizer.tokenizer import Tokenizer
from nanochat.train.config import SftConfig
from tests.cli.models import save_model

pytestmark = pytest.mark.req("FR-022", "FR-033")


def write_chats(path: Path, letter: str, count: int) -> str:
    lines = []
    for number in range(count):
        turns = [("user", f"{letter}{number}?"), ("assistant", "yes")]
        lines.append(json.dumps({"messages": [{"role": r, "content": c} for r, c in turns]}))
    path.write_text("\n".join(lines))
    return str(path)


def test_each_place_has_its_epochs(
    tiny_tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path, tiny_tokenizer, stage="midtrain")
    places = [write_chats(tmp_path / f"{name}.jsonl", name, 40) for name in ("few", "many")]
    prose = [json.dumps({"text": f"plain text number {number}. " * 9}) for number in range(150)]
    (tmp_path / "prose.jsonl").write_text("\n".join(prose))
    words = ["sft", "tiny", "--home", str(tmp_path), "--chats", *places, "--epochs", "0.5", "3"]
    words += ["--data", str(tmp_path / "prose.jsonl"), "--text-share", "0.1"]
    words += ["--batch-tokens", "2048", "--eval-tokens", "64", "--eval-every", "0"]
    assert main([*words, "--save-every", "0", "--device", "cpu", "--compile", "off"]) == 0
    told = capsys.readouterr().err
    assert "many.jsonl: " in told and "(3 times all there are)" in told
    metrics = tmp_path / "runs" / "tiny" / "sft" / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    few, many, text = (
        sum(row.get(f"tokens/{name}", 0) for row in rows) for name in (*places, "text")
    )
    assert few and text and many == pytest.approx(6 * few, rel=0.1)


def test_what_is_refused() -> None:
    for said, message in (
        ({"epochs": (1.0,)}, "epochs has 1 numbers for 0 names of chats"),
        ({"chats": ("a", "b"), "epochs": (1.0,)}, "epochs has 1 numbers for 2 names of chats"),
        ({"chats": ("a", "b"), "epochs": (1.0, 0.0)}, "epochs has 0.0, expected numbers above 0"),
        ({"chats": ("a", "a"), "epochs": (1.0, 2.0)}, "chats has a twice"),
    ):
        with pytest.raises(ConfigError, match=message):
            SftConfig(model="tiny", **said)


def test_held_out_conversations_are_measured(
    tiny_tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of every place by name, without any text to validate on; the best checkpoint is known."""
    save_model(tmp_path, tiny_tokenizer, stage="midtrain")
    places = [write_chats(tmp_path / f"{name}.jsonl", name, 40) for name in ("few", "many")]
    words = ["sft", "tiny", "--home", str(tmp_path), "--chats", *places, "--epochs", "0.5", "3"]
    words += ["--batch-tokens", "2048", "--eval-tokens", "64", "--eval-every", "0"]
    assert main([*words, "--save-every", "0", "--device", "cpu", "--compile", "off"]) == 0
    told = capsys.readouterr().err
    assert f"{places[0]}: at least one held out by hash of text" in told
    assert "; 2 held out" in told
    stage = tmp_path / "runs" / "tiny" / "sft"
    row = json.loads((stage / "metrics.jsonl").read_text().splitlines()[-1])
    few, many = (row[f"val_bpb/{place}"] for place in places)
    assert min(few, many) < row["val_bpb"] < max(few, many)
    assert row["val_bpb"] == pytest.approx((few + 6 * many) / 7, rel=0.02)  # as they are trained
    assert json.loads((stage / "checkpoints" / "best.json").read_text())["val_bpb"]


def test_a_text_is_validated_beside_conversations(
    tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """val_bpb stays the text's."""
    save_model(tmp_path, tiny_tokenizer, stage="midtrain")
    chats = write_chats(tmp_path / "chats.jsonl", "chats", 40)
    words = [
        "sft",
        "tiny",
        "--home",
        str(tmp_path),
        "--batch-tokens",
        "2048",
        "--eval-tokens",
        "64",
    ]
    words += ["--eval-every", "0", "--save-every", "0", "--device", "cpu", "--compile", "off"]
    metrics = tmp_path / "runs" / "tiny" / "sft" / "metrics.jsonl"

    def last_row(*more: str) -> dict[str, float]:
        assert main([*words, "--overwrite", *more]) == 0
        row: dict[str, float] = json.loads(metrics.read_text().splitlines()[-1])
        return row

    prose = [json.dumps({"text": f"plain text number {number}. " * 9}) for number in range(150)]
    (tmp_path / "prose.jsonl").write_text("\n".join(prose))
    row = last_row("--chats", chats, "--data", str(tmp_path / "prose.jsonl"))
    alone = last_row("--chats", chats)
    assert alone["val_bpb"] == alone["val_bpb/conversations"] == row["val_bpb/conversations"]
    assert row["val_bpb"] != row["val_bpb/conversations"]
    world = last_row("--num-conversations", "30", "--world-chars", "3000")
    assert {"val_bpb", "val_bpb/conversations"} <= world.keys()

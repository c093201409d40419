"""export.py through the command line; what transformers makes of it is in
tests/checkpoint/test_huggingface_export.py."""

import json
from pathlib import Path

import pytest
import torch

from nanochat.checkpoint.huggingface import read_huggingface
from nanochat.cli.main import main
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.cli.models import save_model


@pytest.mark.req("FR-046", "FR-078")
def test_a_run_becomes_a_directory(
    home: Path, tiny_tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_model(home, tiny_tokenizer)
    assert main(["export", "tiny", "--to", "hf", "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == (
        f"wrote {tmp_path / 'out'}  (load it with trust_remote_code=True: its model file lies "
        "beside the weights)\n"
    )
    for name, weight in model.named_parameters():
        assert torch.equal(read_huggingface(tmp_path / "out").weights[name], weight)
    assert main(["export", "tiny", "--out", str(tmp_path / "half"), "--dtype", "bfloat16"]) == 0
    half = read_huggingface(tmp_path / "half").weights
    assert torch.equal(half["head.weight"], model.head.weight.bfloat16().float())


@pytest.mark.req("FR-046")
def test_what_differs_is_said(
    reference_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = str(reference_home / "base_checkpoints" / "d4")
    assert main(["export", directory, "--out", str(tmp_path / "out")]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"wrote {tmp_path / 'out'}  (transformers has this architecture itself)"
    assert second.startswith("note: transformers keeps the rotary table in float32")
    assert "about 7e-4" in second
    assert main(["export", directory, "--out", str(tmp_path / "json"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["is_native"] is True and len(result["notes"]) == 1
    assert result["directory"] == str(tmp_path / "json")


@pytest.mark.req("EC-2")
def test_what_cannot_be_exported(
    home: Path, tiny_tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "absent", "--out", str(tmp_path / "out")]) == 2
    assert "neither a directory nor a run" in capsys.readouterr().err
    save_model(home, tiny_tokenizer)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").write_text("x")
    assert main(["export", "tiny", "--out", str(tmp_path / "there")]) == 2
    assert "exists already and is not empty: choose another --out" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["mine"]
    with pytest.MonkeyPatch.context() as patch:  # a tokenizer that is not the model's
        patch.setattr(Tokenizer, "vocab_size", property(lambda self: 299))
        assert main(["export", "tiny", "--out", str(tmp_path / "out")]) == 2
    assert "the tokenizer has 299 tokens, the model 300" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

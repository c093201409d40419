"""import_.py through the command line: every door in, and what was there before."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from nanochat.checkpoint.resolve import load, read
from nanochat.cli.main import main
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.cli.models import save_model


@pytest.fixture
def exported(home: Path, tiny_tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """The run `tiny`, sft@3, as a directory for Hugging Face."""
    save_model(home, tiny_tokenizer)
    assert main(["export", "tiny", "--out", str(tmp_path / "exported")]) == 0
    return tmp_path / "exported"


@pytest.mark.req("FR-046", "SC-008")
def test_an_export_comes_back(
    home: Path, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a run of its own, bit for bit, with the way it came."""
    capsys.readouterr()
    assert main(["import", str(exported), "--run", "back"]) == 0
    assert capsys.readouterr().out == f"back/sft@3 is {exported}\n"
    back, ours = load("back"), load("tiny")
    assert back.path == home / "runs/back/sft/checkpoints/step_000003"
    assert back.model.config == ours.model.config and back.tokenizer == ours.tokenizer
    for a, b in zip(back.model.parameters(), ours.model.parameters(), strict=True):
        assert torch.equal(a, b)
    state = read(back.path).state
    assert state["parent"] == str(exported)
    assert state["imported"]["source"] == str(exported)


@pytest.mark.req("FR-046", "FR-048")
def test_the_references_files(
    home: Path, reference_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its whole home, as it is; what the files left open is said."""
    assert main(["import", str(reference_home), "--run", "theirs", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["model"] == "theirs/pretrain@30"
    assert result["imported"]["generation"] == "v1"
    assert main(["import", str(reference_home), "--run", "x", "--softcap", "20"]) == 0
    first, *notes = capsys.readouterr().out.splitlines()
    assert first.endswith("base_checkpoints/d4") and all(n.startswith("note: ") for n in notes)
    assert load("theirs").model.config.logit_softcap == 15
    assert load("x").model.config.logit_softcap == 20
    words = ["--run", "y", "--tag", "d4", "--step", "30", "--stage", "pretrain", "--no-optimizer"]
    words += ["--alias", "blocks.*.attention=transformer.h.*.attn", "--window-pattern", "SSSL"]
    assert main(["import", str(reference_home), *words]) == 0
    assert not list((home / "runs/y/pretrain").rglob("optimizer.safetensors"))
    assert main(["import", str(reference_home), "--run", "z", "--alias", "one"]) == 2
    assert "--alias 'one': expected OLD=NEW" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["--softcap", "20"],
        ["--window-pattern", "SSSL"],
        ["--alias", "a=b"],
        ["--tag", "d4"],
        ["--step", "3"],
        ["--no-optimizer"],
    ],
)
@pytest.mark.req("FR-046")
def test_what_would_do_nothing_is_refused(
    words: list[str], home: Path, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A directory for transformers leaves nothing open that these flags could decide."""
    assert main(["import", str(exported), "--run", "x", *words]) == 2
    assert f"{words[0]}: {exported} is a directory for Hugging Face" in capsys.readouterr().err
    assert not (home / "runs" / "x").exists()


@pytest.mark.req("FR-046")
def test_a_model_of_reinforcement_learning_is_named_by_its_run(home: Path, exported: Path) -> None:
    assert main(["import", str(exported), "--run", "theirs", "--stage", "rl"]) == 0
    assert main(["show", "theirs"]) == 0
    loaded = load("theirs")
    assert (loaded.stage, loaded.is_chat) == ("rl", True)
    assert load(str(home / "runs/theirs")).path == loaded.path
    assert main(["import", str(exported), "--run", "theirs", "--stage", "sft"]) == 0
    assert load("theirs").stage == "rl", "the last one"


@pytest.mark.req("FR-046")
def test_a_stage_can_be_said(home: Path, exported: Path) -> None:
    assert main(["import", str(exported), "--run", "mid", "--stage", "midtrain"]) == 0
    loaded = load("mid")
    assert (loaded.stage, loaded.step) == ("midtrain", 3)
    assert read(loaded.path).state["stage"] == "midtrain"


@pytest.mark.req("EC-2", "FR-046")
def test_a_stage_that_is_there_stays(
    home: Path,
    exported: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Unless --overwrite is passed and the new one is whole."""
    stage = home / "runs" / "tiny" / "sft"
    (stage / "plan.json").write_text("{}")
    assert main(["import", str(exported), "--run", "tiny"]) == 2
    assert "run tiny has sft already: choose another --run, or pass --" in capsys.readouterr().err

    def refuse(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("nanochat.checkpoint.format.save_checkpoint", refuse)
        assert main(["import", str(exported), "--run", "tiny", "--overwrite"]) == 130
    assert (stage / "plan.json").exists() and load("tiny").step == 3
    assert main(["import", str(exported), "--run", "tiny", "--overwrite"]) == 0
    assert not (stage / "plan.json").exists() and load("tiny").step == 3
    assert sorted(path.name for path in stage.parent.iterdir()) == ["sft"]


@pytest.mark.req("EC-2")
def test_what_cannot_be_imported(
    home: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*words: str) -> str:
        capsys.readouterr()
        assert main(["import", *words]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    assert "absent is no directory, expected one, or hf:org/name" in refused("absent", "--run", "x")
    assert "holds no model of another program" in refused(str(tmp_path), "--run", "x")
    assert "run name '../x'" in refused(str(exported), "--run", "../x")
    assert "expected hf:org/name" in refused("hf:name", "--run", "x")
    whole = (exported / "model.safetensors").read_bytes()
    (exported / "model.safetensors").write_bytes(whole[:-4])
    assert "not a readable safetensors file" in refused(str(exported), "--run", "x")
    shutil.rmtree(exported)
    assert not (home / "runs" / "x").exists(), "nothing is made for what is refused"

"""nanochat tokenizer import and export: every form, there and back with the same ids."""

import json
import shutil
from pathlib import Path

import pytest
import tokenizers

from nanochat.cli import tokenizer_export, tokenizer_import
from nanochat.cli.main import main
from nanochat.common.errors import ConfigError
from nanochat.tokenizer.load import load_tokenizer
from nanochat.tokenizer.reference import load_reference_tokenizer
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.checkpoint.conftest import tiny_checkpoint

PICKLE = Path(__file__).resolve().parent.parent / "golden" / "tokenizer.pkl"
MULTILINGUAL = PICKLE.with_name("tokenizer_multilingual.json")


@pytest.mark.parametrize(("to", "name"), [("hf", "t.json"), ("tiktoken", "t.tiktoken")])
@pytest.mark.req("US-5", "FR-027", "FR-031", "SC-009")
def test_there_and_back(to: str, name: str, tmp_path: Path, home: Path) -> None:
    out = tmp_path / name
    assert main(["tokenizer", "export", str(PICKLE), "--to", to, "--out", str(out)]) == 0
    assert main(["tokenizer", "import", str(out)]) == 0
    back = Tokenizer.load(home / "tokenizer" / "tokenizer.json")
    assert back == load_reference_tokenizer(PICKLE)
    for text in json.loads(MULTILINGUAL.read_text(encoding="utf-8")).values():
        assert back.encode(text) == load_tokenizer(out).encode(text)


@pytest.mark.req("FR-031")
def test_hugging_face_reads_what_is_exported(tmp_path: Path) -> None:
    """Into a folder the file gets its usual name; the ids are those of the library."""
    config = tokenizer_export.Config(source=str(PICKLE.parent), to="hf", out=tmp_path)
    assert tokenizer_export.run(config) == 0
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ours = load_reference_tokenizer(PICKLE)
    for text in json.loads(MULTILINGUAL.read_text(encoding="utf-8")).values():
        assert library.encode(text).ids == ours.encode(text)


def test_export_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tokenizer", "export", str(PICKLE), "--to", "tiktoken", "--out", str(tmp_path)]
    assert main(words) == 0
    path = tmp_path / "tokenizer.tiktoken"
    printed = capsys.readouterr().out
    assert printed == f"512 tokens, <|bos|> is 503\nsaved {path}\nsaved {path}.json\n"
    assert main(words) == 2
    message = f"{path} is there already: give another --out, or --overwrite to replace it"
    assert message in capsys.readouterr().err
    path.unlink()
    with pytest.raises(ConfigError, match="tokenizer.tiktoken.json is there already"):
        tokenizer_export.run(
            tokenizer_export.Config(source=str(PICKLE), to="tiktoken", out=tmp_path)
        )
    assert main([*words, "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "files": [str(path), f"{path}.json"],
        "vocab_size": 512,
        "content_hash": load_reference_tokenizer(PICKLE).content_hash,
    }


@pytest.mark.req("US-5")
def test_a_models_tokenizer_by_its_name_or_place(
    tmp_path: Path, home: Path, tiny_tokenizer: Tokenizer
) -> None:
    from nanochat.checkpoint.format import save_checkpoint

    checkpoint = home / "runs" / "d2" / "pretrain" / "checkpoints" / "step_000005"
    save_checkpoint(checkpoint, tiny_checkpoint(tiny_tokenizer))
    theirs = tmp_path / "base" / "base_checkpoints" / "d4"
    theirs.mkdir(parents=True)
    for name in ("model_000001.pt", "meta_000001.json"):
        (theirs / name).write_text("")
    shutil.copytree(
        PICKLE.parent,
        tmp_path / "base" / "tokenizer",
        ignore=lambda _, names: [name for name in names if name != "tokenizer.pkl"],
    )
    for number, (source, vocab_size) in enumerate(
        [
            ("d2", 300),
            ("d2/pretrain@5", 300),
            (str(checkpoint), 300),
            (str(home / "runs" / "d2"), 300),
            (str(theirs), 512),
            (str(theirs.parent.parent), 512),
        ]
    ):
        out = tmp_path / f"{number}.tiktoken"
        assert main(["tokenizer", "export", source, "--to", "tiktoken", "--out", str(out)]) == 0
        assert load_tokenizer(out).vocab_size == vocab_size


@pytest.mark.req("EC-2", "US-5")
def test_wrong_sources_in_one_line(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = tmp_path / "alone.tiktoken"
    main(["tokenizer", "export", str(PICKLE), "--to", "tiktoken", "--out", str(alone)])
    Path(f"{alone}.json").unlink()
    (tmp_path / "other.json").write_text('{"added_tokens": []}')
    capsys.readouterr()
    out = ["--out", str(tmp_path / "out")]
    for words, message in (
        (["import", str(alone)], "say --pattern nanochat"),
        (["import", str(PICKLE), "--pattern", "gpt4"], "--pattern is for .tiktoken"),
        (["import", str(tmp_path / "other.json")], "other.json: not a tokenizer.json of Hugging"),
        (["export", "absent", "--to", "hf", *out], "model 'absent' is neither a directory"),
        (["export", str(PICKLE), "--to", "gguf", *out], "gguf"),
    ):
        assert main(["tokenizer", *words]) == 2, words
        output = capsys.readouterr()
        assert output.out == "" and message in output.err, output.err
        assert output.err.count("\n") == 1
    assert not (home / "tokenizer").exists() and not (tmp_path / "out").exists()
    config = tokenizer_import.Config(path=alone, pattern="nanochat")
    assert tokenizer_import.run(config) == 0
    assert load_tokenizer(home / "tokenizer") == load_reference_tokenizer(PICKLE)

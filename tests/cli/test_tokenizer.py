"""nanochat tokenizer train, encode, decode, import: what they print, keep and refuse."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat.cli import tokenizer_decode, tokenizer_encode, tokenizer_import, tokenizer_train
from nanochat.cli.main import main
from nanochat.common.errors import ConfigError
from nanochat.tokenizer.reference import load_reference_tokenizer
from nanochat.tokenizer.tokenizer import Tokenizer
from nanochat.tokenizer.train import train_tokenizer

PICKLE = Path(__file__).resolve().parent.parent / "golden" / "tokenizer.pkl"
TEXT = "The cat sat on the mat, and the bat sat on the hat. " * 4


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text(TEXT)
    (tmp_path / "corpus" / "b.jsonl").write_text(json.dumps({"text": TEXT + "caf\u00e9"}) + "\n")
    return tmp_path / "corpus"


def stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


# ----------------------------------------------------------------------------------------- train


@pytest.mark.req("FR-026", "FR-030", "US-5")
def test_train_saves_what_training_gives(
    corpus: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tokenizer", "train", str(corpus), "--vocab-size", "280"]) == 0
    saved = Tokenizer.load(home / "tokenizer" / "tokenizer.json")
    assert saved == train_tokenizer([TEXT, TEXT + "caf\u00e9"], 280)
    printed = capsys.readouterr().out
    assert f"280 tokens from 2 documents, {2 * len(TEXT) + 4:,} characters" in printed
    assert f"content hash {saved.content_hash[:12]}" in printed and "cut at" not in printed


@pytest.mark.req("FR-026")
def test_train_reports_in_json_and_what_it_cut(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new"
    words = [
        *["tokenizer", "train", str(corpus / "a.txt"), str(corpus / "b.jsonl"), "--out", str(out)],
        *["--vocab-size", "270", "--doc-cap", "100", "--max-chars", "50"],
    ]
    assert main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result.pop("wall_s") >= 0
    assert result == {
        "tokenizer": str(out / "tokenizer.json"),
        "vocab_size": 270,
        "content_hash": Tokenizer.load(out / "tokenizer.json").content_hash,
        "documents": 1,
        "characters": 100,
        "documents_cut": 1,
        "characters_cut": len(TEXT) - 100,
    }
    assert main([*words, "--overwrite"]) == 0
    cut = f"1 documents cut at 100 characters (--doc-cap): {len(TEXT) - 100} characters not used"
    assert cut in capsys.readouterr().out


@pytest.mark.req("FR-025")
def test_train_says_how_far_it_is(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tokenizer_train, "_REPORT_EVERY_S", 0.0)
    assert main(["tokenizer", "train", str(corpus), "--vocab-size", "265"]) == 0
    assert capsys.readouterr().err.count(" M characters, ") == 2


@pytest.mark.req("EC-7", "FR-030")
def test_train_refuses_in_one_line_and_leaves_nothing(
    corpus: Path, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    invalid = tmp_path / "invalid.txt"
    invalid.write_bytes(b"caf\xe9 " * 9)
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "a"}\n{"text": \n')
    a_file = str(tmp_path / "empty.txt")
    for words, message in (
        ([str(corpus), "--vocab-size", "5000"], "vocab_size is 5000, but the "),
        ([str(corpus), "--vocab-size", "100"], "vocab_size is 100, expected 265 to 1048576"),
        ([str(corpus), "--doc-cap", "0"], "doc_cap is 0, expected 1 to 100000"),
        ([str(corpus), "--out", a_file], f"--out is {a_file}, which is a file: expected a folder"),
        ([str(tmp_path / "absent")], "absent does not exist"),
        ([str(empty)], "no text in it"),
        ([str(invalid)], "invalid.txt"),
        ([str(broken)], "broken.jsonl, line 2"),
        ([], "no path was given"),
        ([str(corpus), "--vocab", "300"], "unknown flag --vocab, did you mean '--vocab-size'?"),
    ):
        assert main(["tokenizer", "train", *words]) == 2, words
        output = capsys.readouterr()
        assert output.out == "" and message in output.err, output.err
        assert output.err.count("\n") == 1 and output.err.startswith("nanochat: ")
    assert not (home / "tokenizer").exists()


@pytest.mark.req("US-5")
def test_nothing_is_replaced_unasked(
    corpus: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = home / "tokenizer" / "tokenizer.json"
    path.parent.mkdir()
    path.write_text("mine")
    assert main(["tokenizer", "train", str(corpus), "--vocab-size", "270"]) == 2
    assert main(["tokenizer", "import", str(PICKLE)]) == 2
    assert (
        capsys.readouterr().err.count("is there already: give another --out, or --overwrite") == 2
    )
    assert path.read_text() == "mine"
    assert tokenizer_train.output_file(None, home, overwrite=True) == path
    with pytest.raises(ConfigError, match="is there already"):
        tokenizer_train.output_file(path.parent, None, overwrite=False)
    assert main(["tokenizer", "import", str(PICKLE), "--overwrite"]) == 0
    assert Tokenizer.load(path).vocab_size == 512


# -------------------------------------------------------------------------------- encode, decode


@pytest.mark.req("FR-027")
def test_encode_shows_pieces(capsys: pytest.CaptureFixture[str]) -> None:
    config = tokenizer_encode.Config(text="Hello \u00e9\n", tokenizer=PICKLE)
    assert tokenizer_encode.run(config) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == '     72  "H"' and lines[-2] == '     10  "\\n"'
    assert "    195  b'\\xc3'" in lines
    assert (
        lines[-1] == f"{len(lines) - 1} tokens, 9 bytes, {9 / (len(lines) - 1):.2f} bytes per token"
    )


@pytest.mark.req("FR-027")
def test_encode_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tokenizer", "encode", "Hello <|bos|>", "--tokenizer", str(PICKLE), "--json"]
    assert main(words) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["tokens"] == load_reference_tokenizer(PICKLE).encode("Hello <|bos|>")
    assert "".join(result["pieces"]) == "Hello <|bos|>" and result["num_bytes"] == 13


@pytest.mark.req("EC-3")
def test_nothing_is_no_tokens(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin(monkeypatch, b"")
    assert tokenizer_encode.run(tokenizer_encode.Config(tokenizer=PICKLE)) == 0
    assert capsys.readouterr().out == "0 tokens, 0 bytes\n"
    stdin(monkeypatch, b"")
    assert tokenizer_decode.run(tokenizer_decode.Config(tokenizer=PICKLE)) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.req("FR-031", "US-5")
def test_encode_then_decode_gives_every_byte_back(
    monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    content = "na\u00efve \U0001f600\r\n\n  \t<|user_end|> no line end".encode()
    stdin(monkeypatch, content)
    config = tokenizer_encode.Config(tokenizer=PICKLE.parent, ids=True)
    assert tokenizer_encode.run(config) == 0
    ids = capsysbinary.readouterr().out
    stdin(monkeypatch, ids)
    assert tokenizer_decode.run(tokenizer_decode.Config(tokenizer=PICKLE)) == 0
    assert capsysbinary.readouterr().out == content


@pytest.mark.req("FR-028")
def test_decode_words_commas_and_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tokenizer", "decode", "72,101", "108", "306", "--tokenizer", str(PICKLE)]
    assert main(words) == 0
    assert capsys.readouterr().out == "Hello"
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"text": "Hello", "tokens": [72, 101, 108, 306]}
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(words) == 0
    assert capsys.readouterr().out == "Hello\n"


@pytest.mark.req("FR-028")
def test_wrong_input_in_one_line(
    monkeypatch: pytest.MonkeyPatch, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin(monkeypatch, b"caf\xe9")
    pickled = ["--tokenizer", str(PICKLE)]
    for words, message in (
        (["encode", *pickled], "standard input is not UTF-8 at byte 3"),
        (["decode", "72", "x1", *pickled], "'x1' is no token: expected whole numbers"),
        (["decode", "512", *pickled], "token 512 is outside the vocabulary of 512"),
        (["encode", "a"], f"{home / 'tokenizer'} does not exist"),
        (
            ["import", str(home)],
            "has none of tokenizer.json, tokenizer.pkl, tokenizer.tiktoken in it",
        ),
        (["import", str(home / "absent.pkl")], "absent.pkl: cannot be read"),
    ):
        assert main(["tokenizer", *words]) == 2, words
        output = capsys.readouterr()
        assert output.out == "" and message in output.err, output.err
        assert output.err.count("\n") == 1


# ---------------------------------------------------------------------------------------- import


@pytest.mark.req("US-5", "FR-031")
def test_import_gives_the_same_tokenizer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tokenizer_import.Config(path=PICKLE, out=tmp_path / "out")
    assert tokenizer_import.run(config) == 0
    assert "512 tokens, <|bos|> is 503" in capsys.readouterr().out
    path = tmp_path / "out" / "tokenizer.json"
    assert Tokenizer.load(path) == load_reference_tokenizer(PICKLE)
    words = ["tokenizer", "import", str(path), "--out", str(tmp_path / "copy"), "--json"]
    assert main(words) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == {
        "tokenizer": str(tmp_path / "copy" / "tokenizer.json"),
        "vocab_size": 512,
        "content_hash": Tokenizer.load(path).content_hash,
    }


def test_none_of_this_needs_torch() -> None:
    modules = "chat huggingface load reference stream tiktoken_file tokenizer train".split()
    verbs = "train encode decode import export".split()
    names = [f"nanochat.tokenizer.{name}" for name in modules]
    names += [f"nanochat.cli.tokenizer_{name}" for name in verbs]
    check = f"import sys, {', '.join(names)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0

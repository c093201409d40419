"""nanochat data prepare, data show of what it made, and training on it."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nanochat.cli.data_prepare import Config
from nanochat.cli.main import main
from nanochat.common.errors import ConfigError
from nanochat.tokenizer.tokenizer import Tokenizer

pytestmark = pytest.mark.req("FR-032", "FR-034")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files of 200 texts each, one of them twice."""
    folder = tmp_path_factory.mktemp("corpus")
    dice = random.Random(1)
    for name in ("a", "b", "c"):
        texts = [
            " ".join(f"w{dice.randrange(500)}" for _ in range(dice.randrange(20, 120)))
            for _ in range(200)
        ]
        texts.append(texts[3])
        lines = (json.dumps({"text": text}) + "\n" for text in texts)
        (folder / f"{name}.jsonl").write_text("".join(lines))
    Tokenizer([bytes([byte]) for byte in range(256)]).save(folder / "bytes.tokenizer")
    return folder


def words(corpus: Path, to: Path, *more: str) -> list[str]:
    files = [str(corpus / f"{name}.jsonl") for name in ("a", "b", "c")]
    tokenizer = str(corpus / "bytes.tokenizer")
    return ["data", "prepare", *files, "--to", str(to), "--tokenizer", tokenizer, *more]


def result(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_it_tells_what_it_did(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(corpus, tmp_path / "it", "--workers", "1")) == 0
    captured = capsys.readouterr()
    assert "with 1 process" in captured.out
    assert "equal to an earlier one" in captured.out
    assert f"train with nanochat pretrain --data {tmp_path / 'it'}" in captured.out
    assert "read, clean, tokenize: 100%" in captured.err
    assert "shuffle into shards: 100%" in captured.err
    assert main(words(corpus, tmp_path / "it", "--workers", "1")) == 0
    assert "it was complete already" in capsys.readouterr().out
    assert main(words(corpus, tmp_path / "it", "--seed", "4")) == 2
    assert "begun with other settings: seed (0, now 4)" in capsys.readouterr().err
    more = ("--seed", "4", "--overwrite", "--workers", "1", "--json")
    assert main(words(corpus, tmp_path / "it", *more)) == 0
    found = result(capsys)
    assert found["report"]["duplicates"]["equal"] == 3
    assert found["train"]["num_documents"] + found["validation"]["num_documents"] == 600


def test_what_was_prepared_is_shown(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(corpus, tmp_path / "it", "--workers", "1", "--json")) == 0
    prepared = result(capsys)
    assert main(["data", "show", str(tmp_path / "it"), "--all"]) == 0
    shown = capsys.readouterr().out
    assert "equal to an earlier one" in shown and "every shard is as it was written" in shown
    assert f"train: fingerprint {prepared['train']['fingerprint']}" in shown
    assert main(["data", "show", str(tmp_path / "it"), "--json"]) == 0
    shown = result(capsys)
    assert shown["report"] == prepared["report"]
    lines = (line for name in "abc" for line in (corpus / f"{name}.jsonl").read_text().splitlines())
    texts = [json.loads(line)["text"] for line in lines]
    for part in ("train", "validation"):
        assert len(shown["examples"][part]) == 2
        for example in shown["examples"][part]:
            assert any(text.startswith(example.removesuffix("...")) for text in texts)
    assert main(["data", "show", str(tmp_path / "it"), "--examples", "3"]) == 0
    assert capsys.readouterr().out.count("  example  w") == 6
    assert main(["data", "show", str(tmp_path / "it"), "--text-column", "body"]) == 2
    assert "--text-column is 'body', but" in capsys.readouterr().err
    tokens = tmp_path / "it" / "train" / "00000" / "tokens.bin"
    tokens.write_bytes(tokens.read_bytes()[:-1] + b"\x01")
    assert main(["data", "show", str(tmp_path / "it"), "--all"]) == 2
    assert "has changed since it was written" in capsys.readouterr().err


def test_it_goes_under_the_home_and_finds_evaluation_sets_there(
    corpus: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = json.loads((corpus / "a.jsonl").read_text().splitlines()[7])["text"]
    folder = home / "data" / "eval" / "quiz"
    folder.mkdir(parents=True)
    (folder / "test.jsonl").write_text(json.dumps({"q": " ".join(first.split()[:14])}) + "\n")
    files = [str(corpus / "a.jsonl"), "--tokenizer", str(corpus / "bytes.tokenizer")]
    assert main(["data", "prepare", *files, "--name", "mine", "--workers", "1", "--json"]) == 0
    found = result(capsys)
    assert found["directory"] == str(home / "data" / "prepared" / "mine")
    assert found["report"]["evaluation"]["documents"] == 1


def test_a_home_that_evaluates_spelling_only_is_no_reason_to_refuse(
    corpus: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`nanochat eval --tasks spellingbee` leaves a list of words there, which has no questions."""
    folder = home / "data" / "eval" / "spellingbee"
    folder.mkdir(parents=True)
    (folder / "words_alpha.txt").write_text("abc\nabd\n")
    (folder.parent / ".lock").touch()
    files = [str(corpus / "a.jsonl"), "--tokenizer", str(corpus / "bytes.tokenizer")]
    assert main(["data", "prepare", *files, "--name", "mine", "--workers", "1", "--json"]) == 0
    assert result(capsys)["report"]["evaluation"]["files"] == []


@pytest.mark.parametrize(
    ("changes", "message"), [({"data": ()}, "no data was named"), ({"workers": 0}, "workers is 0")]
)
def test_what_cannot_be_asked_for(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config(**({"data": ("a.txt",)} | changes))


def test_killed_processes_lose_a_piece_at_most(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--workers", "2", "--piece-bytes", "8000", "--shard-tokens", "20000", "--json")
    assert main(words(corpus, tmp_path / "whole", *more)) == 0
    undisturbed = result(capsys)
    target = tmp_path / "killed"
    command = [sys.executable, "-m", "nanochat", *words(corpus, target, *more)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    is_begun = {
        "pieces": lambda: len(list(target.glob("work/pieces/0*"))) >= 3,
        "duplicates": lambda: any(target.glob("work/duplicates/*.npy")),
        "shards": lambda: any(target.glob("train/0*")),
    }
    for stage, is_there in is_begun.items():
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        end_s = time.monotonic() + 100
        while process.poll() is None and not is_there():
            assert time.monotonic() < end_s, f"{stage} did not begin"
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert main(words(corpus, target, *more)) == 0
    again = result(capsys)
    for part in ("train", "validation"):
        assert again[part] == undisturbed[part]
    assert not list(target.rglob(".*.tmp")) and not (target / "work").exists()


TINY = (
    "--depth 2 --head-dim 16 --aspect-ratio 16 --context-len 32 --batch-tokens 128 --eval-tokens 64"
    " --num-steps 4 --device cpu --json"
).split()


def test_training_reads_it(
    corpus: Path, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared = str(tmp_path / "it")
    assert main(words(corpus, tmp_path / "it", "--workers", "1", "--json")) == 0
    tokenizer_hash = json.loads((tmp_path / "it" / "index.json").read_text())["tokenizer"]
    losses = []
    for run in ("one", "two"):
        assert main(["pretrain", "--data", prepared, "--run", run, *TINY]) == 0
        stage = home / "runs" / run / "pretrain"
        rows = (stage / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(row)["loss"] for row in rows])
        config = json.loads((stage / "config.json").read_text())
        assert config["tokenizer_hash"] == tokenizer_hash["content_hash"]
    assert losses[0] == losses[1] and len(losses[0]) >= 4
    assert not (home / "data" / "tokens").exists()  # nothing was tokenized again
    # Plain text of the next stage may be prepared too.
    chats = tmp_path / "chats.jsonl"
    answer = {"role": "assistant", "content": "Yes"}
    asked = [[{"role": "user", "content": f"Is it {number}?"}, answer] for number in range(300)]
    chats.write_text("".join(json.dumps(chat) + "\n" for chat in asked))
    more = ["--chats", str(chats), "--data", prepared, "--num-steps", "2", "--device", "cpu"]
    assert main(["midtrain", "one", *more, "--batch-tokens", "128", "--eval-tokens", "64"]) == 0

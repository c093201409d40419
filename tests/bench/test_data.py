"""nanochat bench data: the same files for all, and a peer with our vocabulary."""

import base64
import itertools
import json
import random
import re
import types
from pathlib import Path
from typing import Any

import pytest
import torch

import nanochat
from nanochat.bench import data as bench_data_module
from nanochat.bench import peer_data
from nanochat.bench.data import DataBench, bench_data, write_corpus
from nanochat.bench.peer import PeerFailed
from nanochat.cli.bench_data import Config
from nanochat.cli.main import main
from nanochat.common.errors import ConfigError
from nanochat.corpus.documents import read_documents

pytestmark = pytest.mark.req("FR-068", "FR-034")

# Stands in for a checkout of karpathy/nanochat: its interface.
FAKE_TOKENIZER = """
class RustBPETokenizer:
    def __init__(self, encoding, bos_token):
        self.encoding, self.bos = encoding, encoding.encode_single_token(bos_token)

    def encode(self, texts, prepend=None, num_threads=8):
        assert num_threads == 4
        return [[prepend, *self.encoding.encode_ordinary(text)] for text in texts]
"""
FAKE_LOADER = """
import os
from pathlib import Path
import pyarrow.parquet
import torch

def tokenizing_distributed_data_loader_bos_bestfit(tokenizer, B, T, split, device="cuda"):
    assert split == "train" and device == "cpu"
    folder = Path(os.environ["NANOCHAT_BASE_DIR"]) / "base_data_climbmix"
    *train, _ = sorted(folder.glob("*.parquet"))
    tokens = []
    while True:
        for path in train:
            for text in pyarrow.parquet.read_table(path)["text"].to_pylist():
                tokens += tokenizer.encode([text], tokenizer.bos, num_threads=4)[0]
                while len(tokens) > B * T:
                    rows, tokens = torch.tensor(tokens[: B * T]).view(B, T), tokens[B * T :]
                    yield rows, rows
"""


@pytest.fixture
def text(tmp_path: Path) -> Path:
    dice = random.Random(0)
    lines = [
        json.dumps(
            {
                "text": "\n".join(
                    " ".join(f"w{dice.randrange(900)}" for _ in range(12)) for _ in "1234"
                )
            }
        )
        for _ in range(300)
    ]
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    return tmp_path / "text.jsonl"


@pytest.fixture
def peer(tmp_path: Path) -> Path:
    package = tmp_path / "peer" / "nanochat"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "tokenizer.py").write_text(FAKE_TOKENIZER)
    (package / "dataloader.py").write_text(FAKE_LOADER)
    return package.parent


def bench(text: Path, **changes: Any) -> DataBench:
    settings: dict[str, Any] = {
        "data": (str(text),), "megabytes": 1, "vocab_size": 320, "tokenizer": None,
        "evaluation": (), "context_len": 64, "rows": 4, "num_workers": 1, "rounds": 1,
        "train_megabytes": 0, "peer": None, "seed": 0,
    }  # fmt: skip
    return DataBench(**(settings | changes))


def test_the_files_are_as_large_as_asked_for_and_always_the_same(
    text: Path, tmp_path: Path
) -> None:
    num_chars = write_corpus(bench(text), tmp_path / "one")
    assert 1_000_000 <= num_chars < 1_100_000
    write_corpus(bench(text), tmp_path / "two")
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["shard_00000.parquet", "shard_00001.parquet"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    texts = [document.text for document in read_documents(tmp_path / "one")]
    assert len(set(texts)) == len(texts)


def test_all_sides_are_measured_and_printed(
    text: Path, peer: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["bench", "data", "--data", str(text), "--megabytes", "1", "--vocab-size", "320"]
    words += ["--rounds", "1", "--workers", "1", "--train-megabytes", "1", "--context-len", "64"]
    words += ["--rows", "4", "--peer-nanochat", str(peer)]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["characters"] >= 1_000_000
    assert found["prepare"]["tokens"] > 200_000
    for side in ("prepare", "on_the_fly", "peer"):
        assert found[side]["tokens_per_s"] > 0
    assert found["peer"]["encoded_tokens"] >= 0.8 * found["prepare"]["tokens"]
    ratio = found["prepare"]["tokens_per_s"] / found["peer"]["encoded_tokens_per_s"]
    assert found["ratios"]["prepare_over_peer_encoded"] == pytest.approx(ratio)
    assert found["vocabulary"]["all_cores_s"] > 0 and found["vocabulary"]["speedup"] > 0
    stages = {f"{stage}_s" for stage in ("pieces", "duplicates", "shards", "piece_tokenize")}
    assert stages <= found["prepare"].keys()
    asked: list[DataBench] = []
    monkeypatch.setattr(bench_data_module, "bench_data", lambda it: asked.append(it) or found)
    assert main(words) == 0
    assert asked == [bench(text, peer=peer, train_megabytes=1)]
    shown = capsys.readouterr().out
    for side in ("prepare", "on_the_fly", "peer"):
        assert re.search(rf"^{side} +[\d,]+ tok/s  [\d.]+ s$", shown, re.MULTILINE)
    assert "vocabulary of 1 MB" in shown and "prepare_over_peer_encoded" in shown


def test_a_peer_that_fails_is_told(text: Path, peer: Path) -> None:
    (peer / "nanochat" / "dataloader.py").write_text("raise SystemError('not today')")
    with pytest.raises(PeerFailed, match=r"the peer failed with code 1: .*not today"):
        bench_data(bench(text, peer=peer))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": ()}, "no text was named"),
        ({"rounds": 0}, "rounds is 0"),
        ({"peer_nanochat": Path("nowhere")}, "no nanochat/dataloader.py there"),
    ],
)
def test_what_cannot_be_asked_for(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config(**({"data": ("a.txt",)} | changes))


def test_a_vocabulary_is_timed(text: Path) -> None:
    assert bench_data_module.main([str(text), "1", "300"])["wall_s"] > 0


def test_the_peers_process_counts_what_it_encodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first batch fills its buffer and does not count."""
    loader = types.ModuleType("nanochat.dataloader")

    def batches(tokenizer: Any, rows: int, context_len: int, split: str, device: str) -> Any:
        for number in itertools.count(1):
            tokenizer.encode(["abc"] * 10 * number, prepend=tokenizer.bos, num_threads=4)
            yield torch.zeros(rows, context_len), None

    vars(loader)["tokenizing_distributed_data_loader_bos_bestfit"] = batches
    names: dict[str, Any] = {}
    exec(FAKE_TOKENIZER, names)
    monkeypatch.setattr(nanochat, "dataloader", loader, raising=False)
    monkeypatch.setattr(
        "nanochat.tokenizer.RustBPETokenizer", names["RustBPETokenizer"], raising=False
    )
    ranks = [f"{base64.b64encode(bytes([byte])).decode()} {byte}" for byte in range(256)]
    (tmp_path / "ranks").write_text("\n".join(ranks))
    setting = {"ranks": str(tmp_path / "ranks"), "pattern": ".", "special_tokens": {"<|bos|>": 256},
               "rows": 2, "context_len": 8, "tokens": 100}  # fmt: skip
    found = peer_data.main(setting)
    # 20 and 30 texts of four tokens, after the first ten.
    assert (found["tokens"], found["encoded_tokens"]) == (2 * 16, 20 * 4 + 30 * 4)

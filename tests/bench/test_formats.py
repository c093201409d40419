"""nanochat bench formats: bits per byte in each format that weights are kept in."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from nanochat.cli.bench_formats import Config
from nanochat.cli.main import main
from nanochat.common.errors import ConfigError
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.cli.models import CONTEXT_LEN, save_model

pytestmark = pytest.mark.req("FR-068")

TEXTS = [
    "The mill turned in the river.",
    "Three geese went to the market and came back with a hat each.",
    "Bread is made of flour, water and salt. " * 8,
]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*TEXTS, "not read"]))
    return path


def test_every_format_beside_float32(
    texts: Path, home: Path, tiny_tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_model(home, tiny_tokenizer)
    encoded = [tiny_tokenizer.encode(text) for text in TEXTS]
    num_tokens = sum(map(len, encoded))
    argv = ["bench", "formats", "tiny", "--data", str(texts), "--num-tokens", str(num_tokens)]
    assert main([*argv, "--device", "cpu", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    num_bytes = sum(len(text.encode()) for text in TEXTS)
    assert (result["num_documents"], result["num_bytes"]) == (len(TEXTS), num_bytes)
    assert result["num_tokens"] == num_tokens
    assert [row["format"] for row in result["rows"]] == ["float32", "bfloat16", "int8", "int4"]
    # The same by the transformer itself: every stretch of a context begins with <|bos|>.
    nats, size = 0.0, CONTEXT_LEN - 1
    for tokens in encoded:
        for start in range(0, len(tokens), size):
            row_T = torch.tensor([tiny_tokenizer.bos, *tokens[start : start + size]])
            nats += float(F.cross_entropy(model(row_T[None, :-1])[0], row_T[1:], reduction="sum"))
    exact, *others = result["rows"]
    assert exact["bits_per_byte"] == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-4)
    assert exact["change_percent"] == 0
    for row in others:
        change = 100 * (row["bits_per_byte"] / exact["bits_per_byte"] - 1)
        assert row["change_percent"] == pytest.approx(change) != 0
    assert abs(others[1]["change_percent"]) < 2 and abs(others[2]["change_percent"]) < 20
    assert main([*argv, "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["float32", "bfloat16", "int8", "int4"]
    assert f"{num_tokens:,} tokens" in lines[0] and "bits per byte   +0.000%" in lines[1]


@pytest.mark.req("EC-3")
def test_what_cannot_be_measured_is_refused(
    tmp_path: Path, home: Path, tiny_tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="--data is empty"):
        Config(model="tiny", data=())
    with pytest.raises(ConfigError, match="num_tokens is 0, expected at least 1"):
        Config(model="tiny", data=("a.txt",), num_tokens=0)
    save_model(home, tiny_tokenizer)
    assert main(["bench", "formats", "tiny", "--data", str(tmp_path / "none.txt")]) == 2
    assert "none.txt" in capsys.readouterr().err

"""nanochat bench decode: rates of ours and of the peers, from one run."""

import json
import struct
import sys
import types
from pathlib import Path

import pytest
import torch

from nanochat.bench import peer_decode
from nanochat.bench.decode import DecodeBench, bench_decode, memory_bandwidth
from nanochat.bench.gguf import FORMATS, write_gguf
from nanochat.bench.peer import PeerFailed
from nanochat.cli.bench_decode import Config
from nanochat.cli.main import main
from nanochat.common.errors import ConfigError
from nanochat.model.config import GPTConfig

pytestmark = pytest.mark.req("FR-068")

CPU = torch.device("cpu")
# Whole stretches of four: the best of all stretches is then at least as fast as the mean.
SMALL = ["--depth", "2", "--vocab-size", "300", "--context", "40", "--num-steps", "8",
         "--head-dim", "32", "--device", "cpu", "--dtype", "float32"]  # fmt: skip

FAKE_ENGINE = """
class KVCache:
    def __init__(self, batch_size, num_heads, seq_len, head_dim, num_layers, device, dtype):
        self.batch_size = batch_size
"""
FAKE_GPT = """
import torch
from torch import nn

class GPTConfig:
    def __init__(self, **fields):
        self.__dict__.update(fields)

class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.head = nn.Linear(1, config.vocab_size)

    def init_weights(self):
        pass

    def forward(self, tokens, kv_cache):
        assert len(tokens) == kv_cache.batch_size
        return self.head(tokens[..., None].to(self.head.weight.dtype))
"""


@pytest.fixture(autouse=True)
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanochat.bench.decode.memory_bandwidth", lambda device: 1e10)


def checkout(folder: Path) -> Path:
    package = folder / "nanochat"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "gpt.py").write_text(FAKE_GPT)
    (package / "engine.py").write_text(FAKE_ENGINE)
    return folder


def test_ours_beside_a_peer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["bench", "decode", *SMALL, "--batch-sizes", "1,3"]
    assert main([*argv, "--peer-nanochat", str(checkout(tmp_path)), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["batch_size"] for row in result["rows"]] == [1, 3]
    for row in result["rows"]:
        read = result["weight_bytes"] + row["batch_size"] * result["kv_bytes_per_row"]
        share = read * row["tokens_per_s"] / row["batch_size"] / 1e10
        assert row["bandwidth_share"] == pytest.approx(share) and row["ttft_s"] > 0
        assert row["tokens_per_s"] >= row["tokens_per_s_mean"] > 0
    assert list(result["peers"]) == ["nanochat_float32", "nanochat_bfloat16"]
    for name, rows in result["peers"].items():
        rate = result["rows"][1]["tokens_per_s"] / rows[1]["tokens_per_s"]
        assert result["ratios"][name][1] == pytest.approx(rate)
    matrices = 2 * (3 * 128**2 + 128**2 + 8 * 128**2) + 320 * 128 + 16 * 128  # and a row of gates
    assert result["weight_bytes"] == 4 * matrices
    assert result["kv_bytes_per_row"] == 2 * 2 * 40 * 128 * 4  # two layers of 40 tokens
    assert main(argv) == 0
    assert "of memory bandwidth" in capsys.readouterr().out


def test_a_peer_that_fails(tmp_path: Path) -> None:
    folder = checkout(tmp_path)
    (folder / "nanochat" / "gpt.py").write_text("raise RuntimeError('no GPT today')")
    bench = DecodeBench(
        depth=1, dtype="float32", batch_sizes=(1,), context=8, num_steps=1, vocab_size=300,
        device="cpu", peer_nanochat=folder,
    )  # fmt: skip
    with pytest.raises(PeerFailed, match="no GPT today"):
        bench_decode(bench)


def fake_llama(tmp_path: Path, crashes: bool) -> Path:
    """An interpreter whose llama.cpp dies of a signal where weights are repacked."""
    script = tmp_path / "python"
    script.write_text(
        f"#!{sys.executable}\n"
        "import json, os, sys\n"
        "setting = json.loads(sys.argv[2])\n"
        "assert open(setting['file'], 'rb').read(4) == b'GGUF'\n"
        f"if {crashes} and setting['is_repacked']: os.kill(os.getpid(), 11)\n"
        "rows = [{'batch_size': n, 'ttft_s': 1.0, 'seconds': [0.5] * 4}"
        " for n in setting['batch_sizes']]\n"
        "print(json.dumps(rows))\n"
    )
    script.chmod(0o755)
    return script


@pytest.mark.parametrize("crashes", [False, True])
def test_llama_cpp(tmp_path: Path, crashes: bool, capsys: pytest.CaptureFixture[str]) -> None:
    python = fake_llama(tmp_path, crashes)
    argv = ["bench", "decode", *SMALL, "--batch-sizes", "2", "--peer-llama-cpp"]
    assert main([*argv, "--llama-cpp-python", str(python), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["peers"]["llama_cpp_bf16"][0]["tokens_per_s"] == 4.0
    assert result["ratios"]["llama_cpp_bf16"][0] == result["rows"][0]["tokens_per_s"] / 4


def test_what_runs_in_karpathys_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, source in (("nanochat.gpt", FAKE_GPT), ("nanochat.engine", FAKE_ENGINE)):
        module = types.ModuleType(name)
        exec(source, module.__dict__)
        monkeypatch.setitem(sys.modules, name, module)
    config = {"n_kv_head": 2, "n_head": 2, "n_embd": 8, "n_layer": 1, "vocab_size": 300}
    setting = {"peer": "nanochat", "dtype": "bfloat16", "config": config, "batch_sizes": [1, 2],
               "context": 8, "num_steps": 3, "num_threads": torch.get_num_threads()}  # fmt: skip
    rows = peer_decode.main(setting)
    assert [(row["batch_size"], len(row["seconds"])) for row in rows] == [(1, 3), (2, 3)]


class FakeLibrary:
    """llama_cpp's functions as far as they are called; what is fed is kept."""

    def __init__(self) -> None:
        self.fed: list[list[tuple[int, int, bool]]] = []
        self.is_broken = False

    def __getattr__(self, name: str):
        return lambda *arguments: types.SimpleNamespace(name=name)

    def llama_batch_init(self, size: int, *_: int) -> types.SimpleNamespace:
        columns = ("token", "pos", "n_seq_id", "logits")
        batch = types.SimpleNamespace(**{name: [0] * size for name in columns})
        batch.seq_id = [[0] for _ in range(size)]
        return batch

    def llama_decode(self, state, batch) -> int:
        rows = range(batch.n_tokens)
        self.fed.append([(batch.pos[i], batch.seq_id[i][0], batch.logits[i]) for i in rows])
        return int(self.is_broken)


def test_what_runs_in_llama_cpps_process(monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeLibrary()
    monkeypatch.setitem(sys.modules, "llama_cpp", library)  # type: ignore[arg-type]
    setting = {"peer": "llama_cpp", "file": "x.gguf", "is_repacked": True, "batch_sizes": [2],
               "context": 600, "num_steps": 2, "num_threads": 1}  # fmt: skip
    (row,) = peer_decode.main(setting)
    assert row["batch_size"] == 2 and len(row["seconds"]) == 2
    assert [len(fed) for fed in library.fed] == [100] * 3 + [512, 88] * 2 + [2, 2]
    assert library.fed[-1] == [(601, 0, True), (601, 1, True)]
    library.is_broken = True
    with pytest.raises(RuntimeError, match="llama_decode failed"):
        peer_decode.main(setting)
    library.llama_model_load_from_file = lambda *arguments: None  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="cannot read x.gguf"):
        peer_decode.main(setting)


@pytest.mark.parametrize("format", FORMATS)
def test_gguf(format: str, tmp_path: Path) -> None:
    """The header counts what follows, and the file ends with the last tensor."""
    config = GPTConfig.from_depth(2, vocab_size=2000, head_dim=32)
    matrices = write_gguf(tmp_path / "x.gguf", config, format)
    content = (tmp_path / "x.gguf").read_bytes()
    magic, version, num_tensors, num_keys = struct.unpack_from("<4sIQQ", content)
    assert (magic, version, num_tensors, num_keys) == (b"GGUF", 3, 3 + 2 * 9, 11)
    assert matrices == 2048 * 128 + 2 * (4 * 128**2 + 3 * 128 * 352)
    bits = {"bf16": 16, "q8_0": 8.5, "q4_0": 4.5}[format]
    payload = (matrices + 2048 * 128) * bits / 8 + 5 * 128 * 4
    assert payload < len(content) < payload + 4000


def test_bandwidth() -> None:
    assert 1e8 < memory_bandwidth(CPU, 2**22) < 1e13


def test_what_cannot_be_measured_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for wrong, text in (
        ({"batch_sizes": "1,x"}, "expected numbers from 1 on"),
        ({"batch_sizes": "0"}, "expected numbers from 1 on"),
        ({"depth": 0, "num_steps": 0}, "depth is 0.*num_steps is 0"),
        ({"context": 8, "batch_sizes": "16"}, "context is 8, expected at least 9"),
        ({"peer_nanochat": tmp_path}, "give a checkout"),
        ({"llama_cpp_python": tmp_path / "none"}, "give an interpreter"),
    ):
        with pytest.raises(ConfigError, match=text):
            Config(**wrong)  # type: ignore[arg-type]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["bench", "decode", *SMALL, "--peer-llama-cpp"]) == 2
    assert "install llama-cpp-python" in capsys.readouterr().err

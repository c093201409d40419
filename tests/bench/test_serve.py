"""nanochat bench serve: a server started and ended, the engine beside it, peers beside both."""

import json
import stat
import struct
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.bench import peer_serve
from nanochat.bench.gguf import write_gguf
from nanochat.bench.load import Lengths, Load, Workload
from nanochat.bench.load_engine import EngineLoad, engine_rate
from nanochat.bench.load_model import made_up_tokens, random_weights, write_random_run
from nanochat.bench.peer_serve import PeerModel, llama_server, nanochat_server
from nanochat.bench.serve import ServeBench, _in_turns, bench_serve, serving
from nanochat.checkpoint.format import load_checkpoint
from nanochat.cli.bench_serve import Config
from nanochat.cli.main import main
from nanochat.common.errors import ConfigError, EngineError
from nanochat.engine.engine import Engine
from nanochat.engine.load import EngineSpec
from nanochat.engine.request import SamplingParams
from nanochat.model.config import GPTConfig
from nanochat.server.app import ServedModel, create_app
from nanochat.tokenizer.reference import load_reference_tokenizer
from nanochat.tokenizer.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, Tokenizer
from tests.server.conftest import live

pytestmark = pytest.mark.req("FR-068")

SMALL = ["--depth", "2", "--vocab-size", "1100", "--head-dim", "32", "--device", "cpu",
         "--dtype", "float32", "--seconds", "1", "--warmup-s", "0.1", "--prompt-tokens", "12",
         "--output-tokens", "4-8"]  # fmt: skip
WORKLOAD = Workload(prompt=Lengths.parse("12"), output=Lengths.parse("8"))

# Both peers: a server of the standard library that answers with three tokens.
FAKE_SERVER = """
import json, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

def serve(port, frames):
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments): pass
        def do_GET(self):
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()
            for frame in frames(self.path, asked):
                self.wfile.write(b"data: " + frame.encode() + b"\\n\\n")
                time.sleep(0.01)
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
FAKE_LLAMA = """
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
assert open(flags["--model"], "rb").read(4) == b"GGUF"
assert int(flags["--parallel"]) == 2 and int(flags["--ctx-size"]) >= 2 * 2048

def frames(path, asked):
    assert path == "/v1/completions" and len(asked["prompt"]) == 12 and asked["ignore_eos"]
    for text in "abc":
        yield json.dumps({"choices": [{"text": text}]})
    yield json.dumps({"choices": [], "usage": {"prompt_tokens": 12, "completion_tokens": 3}})
    yield "[DONE]"

serve(int(flags["--port"]), frames)
"""
FAKE_GPT = """
from torch import nn

class GPTConfig:
    def __init__(self, **fields):
        self.fields = fields

class GPT(nn.Linear):
    def __init__(self, config):
        super().__init__(1, config.fields["vocab_size"])

    def init_weights(self):
        pass
"""
FAKE_PYTHON = """
from pathlib import Path

assert Path(sys.argv[1]).name == "peer_serve.py"
setting = json.loads(Path(sys.argv[2]).read_text())
assert setting["config"]["n_layer"] == 2 and setting["config"]["vocab_size"] == 1100
assert len(setting["tokens"]) + len(setting["special_tokens"]) == 1100

def frames(path, asked):
    assert path == "/chat/completions" and asked["messages"][0]["role"] == "user"
    for text in "abc":
        yield json.dumps({"token": text, "gpu": 0})
    yield json.dumps({"done": True})

serve(setting["port"], frames)
"""


def program(path: Path, source: str) -> Path:
    path.write_text(f"#!{sys.executable}\n{FAKE_SERVER}{source}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def checkout(folder: Path) -> Path:
    (folder / "scripts").mkdir(parents=True)
    (folder / "scripts" / "chat_web.py").write_text("")
    return folder


def remembering(started: list[Any]) -> Any:
    original = subprocess.Popen

    def start(*arguments: Any, **options: Any) -> Any:
        started.append(original(*arguments, **options))
        return started[-1]

    return start


def small_config(vocab_size: int = 1100) -> GPTConfig:
    return GPTConfig.from_depth(2, vocab_size=vocab_size, head_dim=32, context_len=128)


@pytest.mark.timeout(300)  # three processes import torch; alone on two cores it takes 15 s
def test_ours_beside_the_engine_and_the_peers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every process that is started has ended."""
    llama = program(tmp_path / "llama-server", FAKE_LLAMA)
    python = program(tmp_path / "python", FAKE_PYTHON)
    peers = ["--peer-llama-server", str(llama), "--peer-python", str(python),
             "--peer-nanochat", str(checkout(tmp_path / "old"))]  # fmt: skip
    argv = ["bench", "serve", *SMALL, "--users", "2", "--engine", *peers, "--json"]
    started = []
    monkeypatch.setattr(subprocess, "Popen", remembering(started))
    assert main(argv) == 0
    assert len(started) == 3 and all(process.returncode is not None for process in started)
    result = json.loads(capsys.readouterr().out)
    assert [row["users"] for row in result["rows"]] == [2]
    for row in result["rows"]:
        assert row["num_success"] == row["num_requests"] > 0 and row["fairness"] > 0
        share = row["output_tokens_per_s"] / row["engine_tokens_per_s"]
        assert row["over_engine"] == pytest.approx(share) and row["engine_ttft_s"] > 0
        assert [turn["over_engine"] for turn in row["turns"]] == [row["over_engine"]]
    assert list(result["peers"]) == ["llama_server_bf16", "nanochat_chat_web"]
    for name, rows in result["peers"].items():
        assert [row["users"] for row in rows] == [2]
        for row, mine, ratio in zip(rows, result["rows"], result["ratios"][name], strict=True):
            assert row["num_success"] == row["num_requests"] > 0, row["errors"]
            assert ratio == pytest.approx(mine["output_tokens_per_s"] / row["output_tokens_per_s"])


def test_the_turn_in_the_middle_is_told() -> None:
    """Each beside the engine just before and just after it."""
    rates = iter((10.0, 30.0, 20.0, 40.0))
    counts = {"num_requests": 4, "num_success": 4}
    turns = iter({"output_tokens_per_s": rate, **counts} for rate in (18.0, 25.0, 24.0))
    row = _in_turns(3, lambda: next(turns), lambda: {"tokens_per_s": next(rates), "ttft_s": 0.1})
    assert [turn["over_engine"] for turn in row["turns"]] == [0.9, 1.0, 0.8]
    assert (row["output_tokens_per_s"], row["over_engine"], row["engine_ttft_s"]) == (18, 0.9, 0.1)
    alone = iter({"output_tokens_per_s": rate, **counts} for rate in (3.0, 1.0, 2.0))
    row = _in_turns(3, lambda: next(alone), lambda: None)
    assert row["output_tokens_per_s"] == 2.0 and row["over_engine"] is None


def test_a_server_that_runs_already(capsys: pytest.CaptureFixture[str]) -> None:
    engine = Engine(random_weights(small_config()), Tokenizer(made_up_tokens(1100)))
    model = ServedModel(name="x", tokenizer=engine.tokenizer, context_len=engine.context_len)
    with live(create_app(engine, model)) as url:
        argv = ["bench", "serve", "--url", url, *SMALL, "--rate", "20"]
        assert main(argv) == 0
        printed = capsys.readouterr().out
        assert "Request rate configured (RPS):" in printed and "Mean TTFT (ms):" in printed
        idle = ["bench", "serve", "--url", url, *SMALL, "--users", "1", "--max-ttft-ms"]
        for limit_ms, code, word in (("60000", 0, "yes"), ("0.001", 1, "NO")):
            assert main([*idle, limit_ms]) == code
            assert f"expected at most {limit_ms}: {word}" in capsys.readouterr().out
    assert main(argv) == 2
    assert "is a server there?" in capsys.readouterr().err


def test_a_server_that_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="did not start: nanochat: .*nothing_here"):
        with serving("nothing_here", home=tmp_path):
            pass
    model = PeerModel(config=small_config(), format="int8", folder=tmp_path, num_users=1)
    assert model.llama_format == "q8_0"
    broken = program(tmp_path / "llama-server", "sys.exit('no such thing')")
    with pytest.raises(EngineError, match="llama-server did not start: no such thing"):
        with llama_server(broken, model):
            pass
    (tmp_path / "old").mkdir()
    with pytest.raises(EngineError, match="llama-server did not start: no such thing"):
        with nanochat_server(tmp_path / "old", broken, model):
            pass


def test_what_runs_in_karpathy_nanochats_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpt = types.ModuleType("nanochat.gpt")
    exec(FAKE_GPT, gpt.__dict__)
    monkeypatch.setitem(sys.modules, "nanochat.gpt", gpt)
    run: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(sys, "argv", ["before"])
    monkeypatch.setattr("runpy.run_module", lambda name, run_name: run.append((name, sys.argv)))
    setting = {"port": 7, "pattern": SPLIT_PATTERN, "special_tokens": list(SPECIAL_TOKENS),
               "tokens": [token.decode("latin-1") for token in made_up_tokens(300)],
               "config": {"vocab_size": 300}}  # fmt: skip
    (tmp_path / "setting.json").write_text(json.dumps(setting))
    peer_serve.main(tmp_path / "setting.json")
    ((name, argv),) = run
    assert name == "scripts.chat_web" and argv[1:3] == ["--source", "sft"] and "7" in argv
    checkpoint = tmp_path / "chatsft_checkpoints" / "random"
    assert torch.load(checkpoint / "model_000001.pt")["weight"].shape == (300, 1)
    encoding = load_reference_tokenizer(tmp_path / "tokenizer" / "tokenizer.pkl")
    assert encoding == Tokenizer(made_up_tokens(300))


# -------------------------------------------------------------------------------- the engine


def engine_load(model: str) -> EngineLoad:
    return EngineLoad(
        spec=EngineSpec(model=model, device="cpu", format="float32"),
        workload=WORKLOAD,
        sampling=SamplingParams(),
        seconds=0.5,
        warmup_s=0.1,
    )


def test_the_engine_alone() -> None:
    engine = Engine(random_weights(small_config()), Tokenizer(made_up_tokens(1100)))
    rate = engine_rate(engine, engine_load("unused"), 3)
    assert rate["tokens_per_s"] > 0 and 0 < rate["ttft_s"] < 6
    assert engine.num_active == 0
    asked = engine.stats().num_fed_tokens
    assert rate["tokens_per_s"] * 0.5 < asked  # no token is counted that was not computed


def test_what_an_engine_says_instead_of_a_token_is_raised() -> None:
    engine = Engine(random_weights(small_config()), Tokenizer(made_up_tokens(1100)))
    engine.forward.logits = lambda hidden_ND: hidden_ND * float("nan")  # type: ignore[method-assign]
    with pytest.raises(EngineError):
        engine_rate(engine, engine_load("unused"), 2)


# -------------------------------------------------------------------------- random weights


def test_a_gguf_with_a_vocabulary(tmp_path: Path) -> None:
    """As many tokens as rows of the table: the bytes, the words, then what is special."""
    config = GPTConfig.from_depth(2, vocab_size=300, head_dim=32)
    write_gguf(tmp_path / "x.gguf", config, "q8_0", tokens=made_up_tokens(300))
    content = (tmp_path / "x.gguf").read_bytes()
    head = b"tokenizer.ggml.tokens" + struct.pack("<IIQ", 9, 8, config.padded_vocab_size)
    names = content[content.index(head) + len(head) :]
    texts = []
    for _ in range(config.padded_vocab_size):
        (size,) = struct.unpack_from("<Q", names)
        texts.append(names[8 : 8 + size].decode())
        names = names[8 + size :]
    assert texts[:2] == ["<0x00>", "<0x01>"] and texts[256] == "\u2581a"
    assert texts[-1].startswith("<|special_") and len(set(texts)) == len(texts)
    assert names.startswith(struct.pack("<Q", 21) + b"tokenizer.ggml.scores")


@pytest.mark.parametrize("vocab_size", [300, 5000, 32_768])
def test_a_made_up_vocabulary(vocab_size: int) -> None:
    """Every token is found again in its own text, so text and tokens are one to one."""
    tokens = made_up_tokens(vocab_size)
    tokenizer = Tokenizer(tokens)
    assert tokenizer.vocab_size == vocab_size
    for token in range(256, len(tokens), 97):
        assert tokenizer.encode(tokens[token].decode()) == [token]
    if vocab_size == 32_768:
        assert len(tokenizer.encode(" the cat and the dog")) == 5


def test_random_weights_are_served_as_they_are(tmp_path: Path) -> None:
    config = small_config()
    path = write_random_run(tmp_path, config)
    loaded = load_checkpoint(path)
    assert loaded.config == config and loaded.tokenizer == Tokenizer(made_up_tokens(1100))
    assert path.is_relative_to(tmp_path / "runs" / "random_d2")
    for name, weight in random_weights(config).named_parameters():
        assert torch.equal(loaded.weights[name], weight)
        assert weight.isfinite().all() and (weight.ndim < 2 or 0.01 < weight.std() < 0.03)


# ------------------------------------------------------------------------------------ flags


def test_what_cannot_be_measured_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = "http://127.0.0.1:1"
    for wrong, text in (
        ({"url": "host"}, "expected http://host:port"),
        ({"url": url, "model": "d4", "engine": True}, "url goes without model, engine"),
        ({"rate": 2.0, "engine": True}, "engine goes with users"),
        ({"max_ttft_ms": 200.0, "users": "4,16"}, "max_ttft_ms is about a single user"),
        ({"max_ttft_ms": 200.0, "rate": 2.0}, "max_ttft_ms is about a single user"),
        ({"max_ttft_ms": 0.0, "users": "1"}, "max_ttft_ms is 0, expected more than 0"),
        ({"rate": 0.0}, "rate is 0, expected more than 0"),
        ({"users": "1,x"}, "expected numbers from 1 on"),
        ({"users": "0"}, "expected numbers from 1 on"),
        ({"depth": 0, "seconds": 0.0}, "depth is 0.*seconds is 0"),
        ({"turns": 0}, "turns is 0, expected at least 1"),
        ({"vocab_size": 100, "warmup_s": -1.0}, "vocab_size is 100.*warmup_s is -1"),
        ({"prompt_tokens": "long"}, "length 'long'"),
        ({"slo": "soon"}, "slo has 'soon'"),
        ({"peer_nanochat": tmp_path}, "give a checkout"),
        ({"peer_llama_server": tmp_path}, "no program there"),
        ({"peer_python": tmp_path}, "no interpreter there"),
    ):
        with pytest.raises(ConfigError, match=text):
            Config(**wrong)  # type: ignore[arg-type]
    assert Config(users="1, 4").counts() == (1, 4) and Config(rate=2.0).counts() == ()
    assert Config(slo="ttft:200").load().slo is not None
    bench = ServeBench(load=Load(workload=WORKLOAD), users=(1,), url=url)
    assert bench.model_config().num_layers == 12
    with pytest.raises(EngineError, match="is a server there"):
        bench_serve(bench)

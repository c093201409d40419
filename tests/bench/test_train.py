"""nanochat bench train: both sides start from the same weights and see the same batches."""

import json
from pathlib import Path

import pytest
import torch

from nanochat.bench import peer_train
from nanochat.bench.peer import PeerFailed
from nanochat.bench.train import TrainBench, bench_train
from nanochat.cli.bench_train import Config
from nanochat.cli.main import main
from nanochat.common.errors import ConfigError

pytestmark = pytest.mark.req("FR-068", "FR-025")

# Stands in for a checkout of karpathy/nanochat: its interface, with our model inside.
FAKE_PEER = """
import torch
from torch import nn

class GPTConfig:
    def __init__(self, **fields):
        self.__dict__.update(fields)

class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        rows, width, layers = 320, config.n_embd, config.n_layer
        def add(name, *shape):
            *path, last = name.split(".")
            module = self
            for part in path:
                if not hasattr(module, part):
                    module.add_module(part, nn.Module())
                module = getattr(module, part)
            module.register_parameter(last, nn.Parameter(torch.zeros(shape)))
        add("transformer.wte.weight", rows, width)
        add("lm_head.weight", rows, width)
        for i in range(layers):
            for name in ("c_q", "c_k", "c_v", "c_proj"):
                add(f"transformer.h.{i}.attn.{name}.weight", width, width)
            add(f"transformer.h.{i}.mlp.c_fc.weight", 4 * width, width)
            add(f"transformer.h.{i}.mlp.c_proj.weight", width, 4 * width)
        add(f"transformer.h.{layers - 1}.attn.ve_gate.weight", config.n_head, 12)
        add(f"value_embeds.{layers - 1}.weight", rows, width)
        for name, shape in (("resid_lambdas", layers), ("x0_lambdas", layers), ("smear_lambda", 1),
                            ("backout_lambda", 1)):
            add(name, shape)
        add("smear_gate.weight", 1, 24)

    def init_weights(self):
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(0, 0.02)

    def setup_optimizer(self, **rates):
        assert set(rates) == {"unembedding_lr", "embedding_lr", "scalar_lr", "matrix_lr"}
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def forward(self, inputs, targets):
        return sum(parameter.sum() for parameter in self.parameters()) * 0 + 5.0
"""

SMALL = [
    "--depth",
    "1",
    "--vocab-size",
    "300",
    "--context-len",
    "16",
    "--rows",
    "2",
    "--head-dim",
    "64",
]
STEPS = [
    "--num-steps",
    "3",
    "--warmup-steps",
    "1",
    "--dtype",
    "float32",
    "--compile",
    "off",
    "--device",
    "cpu",
]


def _bench(**changes: object) -> TrainBench:
    settings = {
        "depth": 1, "vocab_size": 300, "context_len": 16, "rows": 2, "head_dim": 64,
        "num_steps": 3, "warmup_steps": 1, "dtype": "float32", "is_compiled": False,
        "device": "cpu", "peer": None, "seed": 0,
    }  # fmt: skip
    return TrainBench(**settings | changes)  # type: ignore[arg-type]


def test_ours_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "train", *SMALL, *STEPS, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    ours = result["ours"]
    assert ours["tokens_per_s"] == pytest.approx(32 / ours["step_s"])
    assert len(ours["losses"]) == 3 and 0 < ours["mfu_causal"] < ours["mfu"]
    assert ours["losses"][0] == pytest.approx(5.70, abs=0.01), "log 300 before the first step"
    assert main(["bench", "train", *SMALL, *STEPS]) == 0
    assert "tok/s" in capsys.readouterr().out


def test_equal_seeds_measure_the_same_steps() -> None:
    first, second = bench_train(_bench()), bench_train(_bench())
    assert first["ours"]["losses"] == second["ours"]["losses"]


def test_a_peer_starts_from_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # the interface is tested, not the compiler
    package = tmp_path / "nanochat"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "gpt.py").write_text(FAKE_PEER)
    argv = ["bench", "train", *SMALL, *STEPS, "--peer-nanochat", str(tmp_path)]
    assert main([*argv, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["peer"]["float32"]["losses"] == [5.0] * 3 == result["peer"]["bfloat16"]["losses"]
    rate = result["ours"]["tokens_per_s"] / result["peer"]["float32"]["tokens_per_s"]
    assert result["ratios"]["over_float32"] == pytest.approx(rate)
    assert result["ours_in"]["float32"] == result["ours"]
    assert result["ours_in"]["bfloat16"]["dtype"] == "bfloat16"
    losses = {dtype: side["losses"] for dtype, side in result["ours_in"].items()}
    assert losses["float32"] != losses["bfloat16"], "each beside the peer's of the same dtype"
    for dtype, ours in losses.items():
        drift = abs(ours[-1] / 5.0 - 1)
        assert result["ratios"][f"loss_in_{dtype}"] == pytest.approx(drift)
    with monkeypatch.context() as known:
        known.setattr("nanochat.bench.train.bench_train", lambda bench: result)
        assert main(argv) == 0
    sides = [line.split()[:2] for line in capsys.readouterr().out.splitlines()[:4]]
    assert sides == [[who, dtype] for who in ("ours", "peer's") for dtype in losses]
    (package / "gpt.py").write_text("raise RuntimeError('no GPT today')")
    with pytest.raises(PeerFailed, match="no GPT today"):
        bench_train(_bench(peer=tmp_path))


def test_the_peers_process_reads_its_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys
    import types

    module = types.ModuleType("nanochat.gpt")
    exec(FAKE_PEER, module.__dict__)
    monkeypatch.setitem(sys.modules, "nanochat.gpt", module)
    monkeypatch.setattr(torch, "compile", lambda model, dynamic: model)
    torch.save(torch.randint(300, (2, 2, 17)), tmp_path / "tokens.pt")
    config = {"n_layer": 1, "n_head": 1, "n_embd": 64}
    setting = {
        "tokens": str(tmp_path / "tokens.pt"), "weights": str(tmp_path / "weights.pt"), "seed": 0,
        "batch_scale": 1.0, "config": config,
    }  # fmt: skip
    losses, seconds = peer_train.main(setting)
    assert losses == [5.0, 5.0] and len(seconds) == 2
    first = torch.load(tmp_path / "weights.pt", weights_only=True)
    peer_train.main(setting | {"seed": 1})
    again = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert all(torch.equal(first[name], again[name]) for name in first), (
        "the first run's weights stay"
    )


@pytest.mark.req("EC-3")
def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected more steps than warm-up"):
        Config(num_steps=5, warmup_steps=5)
    with pytest.raises(ConfigError, match="give a checkout"):
        Config(peer_nanochat=tmp_path)

"""Importing takes memory for one tensor at a time, not for the checkpoint."""

import itertools
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import tiktoken
import torch

from nanochat.tokenizer.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")

PEAK = """
import sys
from nanochat.cli.main import main

def peak():
    with open("/proc/self/status") as lines:
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

def imported(base, run):
    assert main(["import", base, "--run", run, "--home", sys.argv[1]]) == 0
    return peak()

print(*[imported(base, f"run{place}") for place, base in enumerate(sys.argv[2:])])
"""


def write_v1(base: Path, *, depth: int, width: int, vocab_size: int) -> int:
    """<base> with a V1 model of this size, its embedding in bfloat16 as CUDA runs have it; the
    bytes of its weights."""
    weights = {"transformer.wte.weight": torch.full((vocab_size, width), 0.5).bfloat16()}
    for layer in range(depth):
        block = f"transformer.h.{layer}"
        for name in ("c_q", "c_k", "c_v", "c_proj"):
            weights[f"{block}.attn.{name}.weight"] = torch.full((width, width), float(layer))
        weights[f"{block}.mlp.c_fc.weight"] = torch.full((4 * width, width), 1.5)
        weights[f"{block}.mlp.c_proj.weight"] = torch.full((width, 4 * width), 2.5)
    weights["lm_head.weight"] = torch.full((vocab_size, width), 0.25)
    directory = base / "base_checkpoints" / f"d{depth}"
    directory.mkdir(parents=True)
    torch.save(weights, directory / "model_000500.pt")
    num_heads = width // 128
    config = {"sequence_len": 2048, "vocab_size": vocab_size, "n_layer": depth, "n_embd": width}
    config |= {"n_head": num_heads, "n_kv_head": num_heads}
    (directory / "meta_000500.json").write_text(json.dumps({"step": 500, "model_config": config}))
    write_tokenizer(base / "tokenizer" / "tokenizer.pkl", vocab_size)
    return (directory / "model_000500.pt").stat().st_size


def write_tokenizer(path: Path, vocab_size: int) -> None:
    words = itertools.product(b"abcdefghijklmnopqrstuvwxyz", repeat=4)
    num_words = vocab_size - 256 - len(SPECIAL_TOKENS)
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [bytes(word) for word in itertools.islice(words, num_words)]
    encoding = tiktoken.Encoding(
        "rustbpe",
        pat_str=SPLIT_PATTERN,
        mergeable_ranks={token: rank for rank, token in enumerate(tokens)},
        special_tokens={name: len(tokens) + i for i, name in enumerate(SPECIAL_TOKENS)},
    )
    path.parent.mkdir()
    path.write_bytes(pickle.dumps(encoding, protocol=4))


def peaks(home: Path, *bases: Path) -> list[int]:
    """The peaks of one process after importing each of these, in bytes."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(home), *map(str, bases)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-500:]
    return [int(word) for word in done.stdout.split("\n")[-2].split()]


@pytest.mark.req("FR-046", "FR-048")
def test_memory_does_not_grow_with_the_checkpoint(tmp_path: Path) -> None:
    """A small one first, which takes what Python and torch take; the large one then adds less than
    a third of its size, where a copy of all tensors would add all of it."""
    write_v1(tmp_path / "small", depth=1, width=128, vocab_size=512)
    size = write_v1(tmp_path / "large", depth=12, width=384, vocab_size=4096)
    assert size > 90e6
    small, large = peaks(tmp_path / "home", tmp_path / "small", tmp_path / "large")
    assert large - small < 0.3 * size


@pytest.mark.slow
@pytest.mark.req("FR-046", "FR-048")
def test_depth_12_peaks_at_less_than_1_3_times_its_size(tmp_path: Path) -> None:
    """All of the process counted, 310 MB of Python and torch included."""
    size = write_v1(tmp_path / "base", depth=12, width=768, vocab_size=65_536)
    (peak,) = peaks(tmp_path / "home", tmp_path / "base")
    assert peak <= 1.3 * size, f"{peak / size:.2f} times its {size / 1e6:.0f} MB"

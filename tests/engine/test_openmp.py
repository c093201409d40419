"""Who hands work to the engine has no helpers left: they would make the engine's own sleep."""

import subprocess
import sys
from pathlib import Path

import pytest

from nanochat.engine import openmp
from nanochat.engine.openmp import release_helpers

pytestmark = pytest.mark.req("SC-010")

# In a process of its own: how many helpers there are depends on all that ran before.
COUNTED = """
import os, time
import torch
from nanochat.bench.load_model import made_up_tokens, random_weights
from nanochat.engine.engine import Engine
from nanochat.engine.openmp import release_helpers
from nanochat.engine.request import Request, SamplingParams
from nanochat.model.config import GPTConfig
from nanochat.tokenizer.tokenizer import Tokenizer

def num_threads(expected):
    end = time.monotonic() + 20
    while len(os.listdir("/proc/self/task")) != expected and time.monotonic() < end:
        time.sleep(0.01)
    return len(os.listdir("/proc/self/task"))

torch.set_num_threads(3)
def compute():
    return torch.rand(700, 700) @ torch.rand(700, 700)

alone = len(os.listdir("/proc/self/task"))  # nothing has been computed: no helpers
compute()
assert num_threads(alone + 2) == alone + 2, "two helpers are expected"
release_helpers()
assert num_threads(alone) == alone, "the helpers are still there"
compute()
assert num_threads(alone + 2) == alone + 2, "they come back"

config = GPTConfig.from_depth(2, vocab_size=2000, head_dim=32, context_len=128)
engine = Engine(random_weights(config), Tokenizer(made_up_tokens(2000)))
assert num_threads(alone) == alone, "loading leaves helpers"
compute()
asked = Request(request_id="a", prompt_tokens=tuple(range(64)),
                sampling=SamplingParams(max_tokens=8))
list(engine.stream(asked))
assert num_threads(alone) == alone, "asking leaves helpers"
compute()
engine.score_groups([[(list(range(64)), 1)]])
assert num_threads(alone) == alone, "scoring leaves helpers"
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="Linux counts threads there")
def test_loading_asking_and_scoring_leave_no_helpers() -> None:
    done = subprocess.run(
        [sys.executable, "-c", COUNTED], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_without_gnu_openmp_nothing_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = tmp_path / "maps"
    maps.write_text("7f00-7f01 r-xp 0 00:00 0  /lib/libomp.so\n7f02 r 0 0 0  /gone/libgomp.so.1\n")
    for place in (maps, tmp_path / "none"):
        monkeypatch.setattr(openmp, "MAPS", place)
        openmp._runtimes.cache_clear()
        release_helpers()
        assert openmp._runtimes() == ()
    openmp._runtimes.cache_clear()

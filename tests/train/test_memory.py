"""Evaluating and generating during training leave memory as it was."""

import re
from pathlib import Path

import pytest
import torch

from nanochat.batches.batch import Batch
from nanochat.engine.engine import Engine
from nanochat.engine.request import Request, SamplingParams
from nanochat.tokenizer.tokenizer import Tokenizer
from nanochat.train.loop import fit
from nanochat.train.loss import bits_per_byte
from tests.fakes import random_gpt, tiny_config
from tests.train.makers import Counting, stage_of

STATUS = Path("/proc/self/status")
NUM_EVALUATIONS = 200
MOST_GROWTH_BYTES = 4 * 2**20  # one evaluation's logits alone are 64 KiB: a leak would be 12 MiB


def resident_bytes() -> int:
    match = re.search(r"VmRSS:\s+(\d+) kB", STATUS.read_text())
    assert match
    return int(match[1]) * 1024


@pytest.mark.skipif(not STATUS.exists(), reason="reads Linux's /proc")
@pytest.mark.req("FR-020", "EC-6")
def test_two_hundred_evaluations_and_generations(tiny_tokenizer: Tokenizer) -> None:
    vocab_size = tiny_tokenizer.vocab_size
    config = tiny_config(2, vocab_size=vocab_size)
    model = random_gpt(config)
    engine = Engine(model, tiny_tokenizer)
    tokens = torch.arange(4 * 33).reshape(4, 33) % vocab_size
    batch = Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    request = Request(
        request_id="r",
        prompt_tokens=tuple(range(5)),
        sampling=SamplingParams(max_tokens=8, temperature=0.0),
    )
    sizes: list[int] = []

    def validate() -> float:
        engine.generate([request])
        sizes.append(resident_bytes())
        return bits_per_byte(model, [batch], [1] * vocab_size)

    stage = stage_of(
        num_steps=NUM_EVALUATIONS, eval_every=1, validate=validate, stream=Counting(), save_every=50
    )
    fit(stage)
    assert len(sizes) == NUM_EVALUATIONS
    settled = max(sizes[20:40])  # caches of every kind are filled by then
    assert max(sizes[-20:]) - settled <= MOST_GROWTH_BYTES

"""A few steps on made-up tokens -> how fast this machine trains a model.   in: a model config
out: tokens/s
who calls: cli/demo.py (which fits a run into minutes)

Read next: plan.py.
"""

import time

import torch

from nanochat.batches.batch import Batch
from nanochat.common.device import best_device, compute_dtype, keep_freed_memory
from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.model.init import initialize
from nanochat.train.loss import loss_sum
from nanochat.train.optim import RECIPES, Optimizer, Rates

__all__ = ["tokens_per_s"]

NUM_STEPS = 8


def tokens_per_s(config: GPTConfig, batch_tokens: int, device_rows: int) -> float:
    """Trained tokens per second, an optimizer step for every `batch_tokens` included.

    The shortest of NUM_STEPS, uncompiled: whatever else the machine does only takes longer.  Some
    two seconds for the demo's model on two cores.
    """
    keep_freed_memory()
    device = best_device()
    with torch.device(device):
        model = GPT(config)
    initialize(model)
    optimizer = Optimizer(model, RECIPES["v5"], compute_dtype=compute_dtype(device))
    tokens = torch.randint(config.vocab_size, (device_rows, config.context_len + 1), device=device)
    batch = Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    compute_s, update_s = [], []
    for _ in range(NUM_STEPS + 1):
        start_s = time.perf_counter()
        loss = loss_sum(model, batch) / batch.targets_BT.numel()
        loss.backward()  # type: ignore[no-untyped-call]
        float(loss.detach())
        middle_s = time.perf_counter()
        optimizer.step(Rates())
        float(optimizer.masters()["embedding.weight"][0, 0])
        compute_s.append(middle_s - start_s)
        update_s.append(time.perf_counter() - middle_s)
    num_parts = max(1, batch_tokens // (device_rows * config.context_len))
    step_s = num_parts * min(compute_s[1:]) + min(update_s[1:])
    return num_parts * device_rows * config.context_len / step_s

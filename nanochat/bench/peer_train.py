"""What runs inside karpathy/nanochat's process.   in: a setting as JSON   out: losses and seconds
as JSON
who calls: train.py, with the user's own checkout on PYTHONPATH

Imports nothing of ours, and of theirs only the model and its optimizer; learning rates are those
of its
scripts/base_train.py at 92d63d4.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

__all__ = ["main"]


def main(setting: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Losses and seconds of each step; the first run also writes the weights that all start
    from."""
    from nanochat.gpt import GPT, GPTConfig  # type: ignore[attr-defined, import-not-found, import-untyped, unused-ignore]

    torch.manual_seed(setting["seed"])
    model = GPT(GPTConfig(**setting["config"]))
    model.init_weights()
    weights = Path(setting["weights"])
    if weights.exists():
        first = torch.load(weights, weights_only=True)
        model.load_state_dict(
            {name: value.to(model.state_dict()[name].dtype) for name, value in first.items()}
        )
    else:
        torch.save(model.state_dict(), weights)
    scale = setting["batch_scale"]
    optimizer = model.setup_optimizer(
        unembedding_lr=0.008 * scale,
        embedding_lr=0.3 * scale,
        scalar_lr=0.5 * scale,
        matrix_lr=0.02 * scale,
    )
    compiled = torch.compile(model, dynamic=False)
    losses, seconds = [], []
    for batch in torch.load(setting["tokens"], weights_only=True):
        start_s = time.perf_counter()
        loss = compiled(batch[:, :-1].contiguous(), batch[:, 1:].contiguous())
        loss.backward()
        optimizer.step()
        model.zero_grad(set_to_none=True)
        losses.append(loss.item())
        seconds.append(time.perf_counter() - start_s)
    return losses, seconds


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))

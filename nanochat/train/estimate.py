"""A plan -> what it will take.   in: GPTConfig, tokens, a machine's speed   out: bytes, lines
who calls: stages.py (--dry-run), plan.py   (pure, no torch)

Read next: plan.py.
"""

from nanochat.model.config import GPTConfig
from nanochat.model.cost import count_parameters
from nanochat.train.display import format_duration

__all__ = ["activation_bytes_per_token", "estimate_lines", "state_bytes"]

# What every rank has of each weight: its gradient, 4, and a bfloat16 copy, 2.
COPY_BYTES_PER_WEIGHT = 6
# What its owner has besides: the master, 4, and moments, at most 8.
OWNER_BYTES_PER_WEIGHT = 12
USUAL_MFU = 0.5  # measured: 0.4 to 0.7 on two CPU cores; the reference's on H100 is 0.5


def activation_bytes_per_token(config: GPTConfig, *, recomputes: bool = False) -> int:
    """Memory that one token holds until the backward pass: about 34 widths of two bytes a layer,
    and 6 bytes for each of its logits.

    Where blocks are computed again, 34 widths of one layer, and of each the stream before and after
    its mix, and its value embedding.
    """
    widths = 3 * config.num_layers + 34 if recomputes else 34 * config.num_layers
    return widths * config.model_dim * 2 + config.padded_vocab_size * 6


def state_bytes(config: GPTConfig, num_ranks: int = 1, *, is_sharded: bool = False) -> int:
    """Weights, gradients and moments on each of so many ranks.

    Where the model is sharded no rank has anything whole but the tables at both ends and two
    blocks.
    """
    count = count_parameters(config)
    if not is_sharded:
        return (
            count.total * COPY_BYTES_PER_WEIGHT + count.total * OWNER_BYTES_PER_WEIGHT // num_ranks
        )
    whole = count.embedding + count.head + 2 * count.matrices // config.num_layers
    share = count.total * (OWNER_BYTES_PER_WEIGHT + 4) // num_ranks
    return share + whole * COPY_BYTES_PER_WEIGHT


def estimate_lines(
    config: GPTConfig,
    *,
    flops_per_token: int,
    num_tokens: int,
    device_tokens: int,
    flops_per_s: float,
    num_ranks: int = 1,
    is_sharded: bool = False,
    recomputes: bool = False,
) -> list[tuple[str, str, str]]:
    """Name, value and reason of memory and time, as Plan.lines gives them.

    `device_tokens` are computed at once, `num_tokens` in all; `flops_per_s` is what the device
    reaches in large products; there are `num_ranks` of it.
    """
    per_token = activation_bytes_per_token(config, recomputes=recomputes)
    memory = state_bytes(config, num_ranks, is_sharded=is_sharded) + device_tokens * per_token
    seconds = num_tokens * flops_per_token / (num_ranks * flops_per_s * USUAL_MFU)
    return [
        ("parameters", f"{count_parameters(config).total:,}", ""),
        ("memory", f"{memory / 2**30:.1f} GiB", "weights, moments and activations; estimated"),
        (
            "time",
            format_duration(seconds),
            f"half of the {flops_per_s / 1e12:.2f} TFLOP/s this device reaches in products; "
            "estimated",
        ),
    ]

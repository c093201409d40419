"""A plan -> what it will take.   in: GPTConfig, tokens, a machine's speed   out: bytes, lines
who calls: stages.py (--dry-run), plan.py   (pure, no torch)

Read next: plan.py.
"""

from nanochat.model.config import GPTConfig
from nanochat.model.cost import count_parameters
from nanochat.train.display import format_duration

__all__ = ["activation_bytes_per_token", "estimate_lines", "state_bytes"]

# Masters 4, gradients 4, moments at most 8, a bfloat16 copy 2.
STATE_BYTES_PER_WEIGHT = 18
USUAL_MFU = 0.5  # measured: 0.4 to 0.7 on two CPU cores; the reference's on H100 is 0.5


def activation_bytes_per_token(config: GPTConfig) -> int:
    """Memory that one token holds until the backward pass: about 34 widths of two bytes a layer,
    and 6 bytes for each of its logits."""
    return config.num_layers * config.model_dim * 34 * 2 + config.padded_vocab_size * 6


def state_bytes(config: GPTConfig) -> int:
    """Weights, gradients and moments."""
    return count_parameters(config).total * STATE_BYTES_PER_WEIGHT


def estimate_lines(
    config: GPTConfig,
    *,
    flops_per_token: int,
    num_tokens: int,
    device_tokens: int,
    flops_per_s: float,
) -> list[tuple[str, str, str]]:
    """Name, value and reason of memory and time, as Plan.lines gives them.

    `device_tokens` are computed at once, `num_tokens` in all; `flops_per_s` is what the device
    reaches in large products.
    """
    memory = state_bytes(config) + device_tokens * activation_bytes_per_token(config)
    seconds = num_tokens * flops_per_token / (flops_per_s * USUAL_MFU)
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

"""What a model costs.   in: GPTConfig   out: parameters, FLOPs, bytes   who calls: train/plan.py,
bench, engine, doctor

Pure arithmetic: nothing is built.
Source: karpathy/nanochat nanochat/gpt.py at 92d63d4 (estimate_flops, num_matmul_params,
        estimate_decode_flops,
estimate_prefill_flops, kv_bytes_per_token, kv_read_bytes); Chowdhery et al., arXiv:2204.02311
(attention).
Read next: train/plan.py.
"""

from dataclasses import dataclass

from nanochat.model.config import GPTConfig

__all__ = [
    "ParameterCount",
    "count_parameters",
    "decode_flops",
    "kv_bytes_per_token",
    "kv_read_bytes",
    "matmul_parameters",
    "prefill_flops",
    "train_flops_per_token",
    "train_flops_per_token_causal",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterCount:
    """Weights by role.  Padding rows of the token tables count: they are stored and multiplied."""

    embedding: int
    value_embeddings: int
    head: int
    matrices: int
    """All matrices inside blocks, the value gates included."""
    scalars: int
    """Lambdas, and the smear gate."""

    @property
    def total(self) -> int:
        """All weights."""
        return self.embedding + self.value_embeddings + self.head + self.matrices + self.scalars

    @property
    def scaling(self) -> int:
        """Matrices and head: what the ratio of tokens to parameters is taken over."""
        return self.matrices + self.head


def count_parameters(config: GPTConfig) -> ParameterCount:
    """Weights by role."""
    rows, width, num_layers = config.padded_vocab_size, config.model_dim, config.num_layers
    heads_width, kv_width = (
        config.num_heads * config.head_dim,
        config.num_kv_heads * config.head_dim,
    )
    tables = sum(config.has_value_embedding(layer) for layer in range(num_layers))
    gate = (
        config.value_embedding.gate_channels * config.num_kv_heads if config.value_embedding else 0
    )
    smear = 0 if config.smear_channels is None else config.smear_channels + 1
    return ParameterCount(
        embedding=rows * width,
        value_embeddings=tables * rows * kv_width,
        head=rows * width,
        matrices=num_layers * (2 * heads_width * width + 2 * kv_width * width + 8 * width * width)
        + tables * gate,
        scalars=2 * num_layers * config.residual_lambdas + smear + config.backout,
    )


def matmul_parameters(config: GPTConfig) -> int:
    """Weights that each token is multiplied with: all matrices, the head and the gates; no tables,
    no lambdas."""
    count = count_parameters(config)
    return count.matrices + count.head + (config.smear_channels or 0)


def train_flops_per_token(config: GPTConfig) -> int:
    """FLOPs to train on one token, forward and backward, as karpathy/nanochat counts them for its
    MFU.

    Attention is counted as if every query saw its whole window: see train_flops_per_token_causal.
    """
    attention = sum(
        _head_flops(config, 12) * min(_window(config, layer), config.context_len)
        for layer in range(config.num_layers)
    )
    return 6 * matmul_parameters(config) + attention


def train_flops_per_token_causal(config: GPTConfig) -> float:
    """The same with attention counted over the keys that a causal query really sees, on average
    over a row."""
    context_len = config.context_len
    attention = sum(
        _head_flops(config, 12) * _pairs(context_len, _window(config, layer)) / context_len
        for layer in range(config.num_layers)
    )
    return 6 * matmul_parameters(config) + attention


def decode_flops(config: GPTConfig, num_context_tokens: int) -> int:
    """FLOPs to generate one token after `num_context_tokens`."""
    attention = sum(
        _head_flops(config, 4) * min(num_context_tokens, _window(config, layer))
        for layer in range(config.num_layers)
    )
    return 2 * matmul_parameters(config) + attention


def prefill_flops(config: GPTConfig, num_tokens: int) -> int:
    """FLOPs to read a prompt of `num_tokens`."""
    attention = sum(
        _head_flops(config, 4) * _pairs(num_tokens, _window(config, layer))
        for layer in range(config.num_layers)
    )
    return 2 * matmul_parameters(config) * num_tokens + attention


def kv_bytes_per_token(config: GPTConfig, itemsize_bytes: int) -> int:
    """Bytes to keep one token's keys and values."""
    return config.num_layers * 2 * config.num_kv_heads * config.head_dim * itemsize_bytes


def kv_read_bytes(config: GPTConfig, num_context_tokens: int, itemsize_bytes: int) -> int:
    """Bytes of cache one decode step reads for one row."""
    per_token = 2 * config.num_kv_heads * config.head_dim * itemsize_bytes
    return sum(
        per_token * min(num_context_tokens, _window(config, layer))
        for layer in range(config.num_layers)
    )


def _head_flops(config: GPTConfig, factor: int) -> int:
    return factor * config.num_heads * config.head_dim


def _window(config: GPTConfig, layer: int) -> int:
    window = config.windows[layer]
    return config.context_len if window is None else window


def _pairs(num_tokens: int, window: int) -> int:
    """Query-key pairs of a causal text: a ramp up to the window, then flat."""
    window = min(window, num_tokens)
    return window * (window + 1) // 2 + (num_tokens - window) * window

"""Costs are those of karpathy/nanochat at 92d63d4, figures taken from its own functions."""

import dataclasses

import pytest

from nanochat.model.config import Generation, GPTConfig
from nanochat.model.cost import (
    ParameterCount,
    count_parameters,
    decode_flops,
    kv_bytes_per_token,
    kv_read_bytes,
    matmul_parameters,
    prefill_flops,
    train_flops_per_token,
    train_flops_per_token_causal,
)
from nanochat.model.gpt import GPT
from tests.fakes import tiny_config

# depth 4, width 64, 4 query and 2 key/value heads, 512 entries, context 256
TINY = dataclasses.replace(
    GPTConfig.from_depth(4, vocab_size=512, context_len=256, head_dim=16, aspect_ratio=16),
    num_kv_heads=2,
)
D12 = GPTConfig.from_depth(12, vocab_size=32_768)
D20 = GPTConfig.from_depth(20, vocab_size=32_768)


def test_weights_by_role() -> None:
    assert count_parameters(TINY) == ParameterCount(
        embedding=32_768, value_embeddings=32_768, head=32_768, matrices=180_272, scalars=34
    )
    count = count_parameters(D12)
    assert (count.total, count.scaling) == (286_261_730, 110_100_912)
    assert count_parameters(D20).total == 896_533_746
    assert [matmul_parameters(c) for c in (TINY, D12, D20)] == [213_064, 110_100_936, 435_160_264]


@pytest.mark.parametrize("generation", ["v1", "v2", "v3", "v4", "v5"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_counts_are_those_of_the_built_model(depth: int, generation: Generation) -> None:
    config = tiny_config(depth, generation, num_kv_heads=1, vocab_padding=16)
    weights = dict(GPT(config).named_parameters())
    assert count_parameters(config).total == sum(weight.numel() for weight in weights.values())
    in_products = ("query", "key", "value", "output", "gate", "expand", "contract", "head")
    assert matmul_parameters(config) == sum(
        weight.numel()
        for name, weight in weights.items()
        if name.split(".")[-2:-1] and name.split(".")[-2].endswith(in_products)
    )


def test_training() -> None:
    assert train_flops_per_token(TINY) == 1_769_904
    assert train_flops_per_token(D12) == 759_696_048
    assert train_flops_per_token(D20) == 2_886_212_784


def test_training_counted_over_the_keys_really_seen() -> None:
    """Without a window a query sees (T + 1) / 2 keys on average, not T."""
    full = dataclasses.replace(TINY, windows=(256, None, 256, None))
    attention = 12 * 4 * 4 * 16  # layers, heads, width of a head
    assert train_flops_per_token(full) - 6 * 213_064 == attention * 256
    assert train_flops_per_token_causal(full) - 6 * 213_064 == attention * 257 / 2
    # three windows of 128: a ramp of 128 queries, then 128 queries of 128 keys
    seen = (3 * (128 * 129 / 2 + 128 * 128) + 256 * 257 / 2) / 256
    assert train_flops_per_token_causal(TINY) == 6 * 213_064 + attention / 4 * seen


@pytest.mark.parametrize(
    ("config", "tokens", "decode", "prefill"),
    [
        (TINY, 1, 427_152, 427_152),
        (TINY, 100, 528_528, 47_784_000),
        (TINY, 1000, 589_968, 575_369_856),
        (D12, 100, 223_888_272, 22_206_350_400),
        (D12, 1000, 243_573_648, 235_353_455_232),
        (D12, 2048, 253_232_016, 495_684_452_352),
        (D20, 2048, 962_070_928, 1_906_613_714_944),
    ],
)
def test_inference(config: GPTConfig, tokens: int, decode: int, prefill: int) -> None:
    assert decode_flops(config, tokens) == decode
    assert prefill_flops(config, tokens) == prefill


def test_cache() -> None:
    assert kv_bytes_per_token(TINY, 4) == 1024
    assert [kv_read_bytes(TINY, n, 4) for n in (1, 100, 1000)] == [1024, 102_400, 163_840]
    assert kv_bytes_per_token(D12, 4) == 73_728
    assert [kv_read_bytes(D12, n, 4) for n in (1, 1000)] == [73_728, 46_743_552]
    assert kv_bytes_per_token(D12, 2) == 73_728 // 2

"""The dial, the five presets, and what is refused."""

import dataclasses
import json
from typing import Any, get_args

import pytest

from nanochat.common.errors import ConfigError
from nanochat.model.config import (
    GENERATIONS,
    Generation,
    GPTConfig,
    ValueEmbedding,
    windows_from_pattern,
)


def test_one_dial() -> None:
    config = GPTConfig.from_depth(12, vocab_size=32_768)
    assert (config.num_layers, config.model_dim, config.num_heads) == (12, 768, 6)
    assert (config.num_kv_heads, config.head_dim, config.context_len) == (6, 128, 2048)
    assert config.windows == ((512,) * 3 + (2048,)) * 3
    assert config == GPTConfig.from_depth(12, vocab_size=32_768, generation="v5")
    # 5 * 64 = 320 is rounded up to whole heads
    odd = GPTConfig.from_depth(5, vocab_size=100)
    assert (odd.model_dim, odd.num_heads, odd.padded_vocab_size) == (384, 3, 128)
    assert GPTConfig.from_depth(5, vocab_size=100, aspect_ratio=8, head_dim=8).model_dim == 40


@pytest.mark.parametrize(
    ("generation", "short"), [("v2", 1024), ("v3", 1024), ("v4", 768), ("v5", 512)]
)
def test_windows_of_the_generations(generation: Generation, short: int) -> None:
    windows = windows_from_pattern("SSSL", 6, 2048, generation)
    assert windows == (short, short, short, 2048, short, 2048)  # the last is always long
    assert windows_from_pattern("l", 3, 2048, generation) == (2048,) * 3
    assert windows_from_pattern("sL", 3, 2048, generation) == (short, 2048, 2048)
    assert windows_from_pattern("S", 1, 2048, generation) == (2048,)


def test_short_windows_of_short_contexts() -> None:
    """V4 and V5 round up to 128 tokens, V2 and V3 take the half."""
    short = {name: windows_from_pattern("SL", 2, 250, name)[0] for name in ("v2", "v3", "v4", "v5")}
    assert short == {"v2": 125, "v3": 125, "v4": 128, "v5": 128}
    assert windows_from_pattern("SSSL", 4, 250, "v1") == (None,) * 4


@pytest.mark.parametrize("pattern", ["", "SX", "S L"])
def test_another_letter_is_refused(pattern: str) -> None:
    with pytest.raises(ConfigError, match="expected letters S"):
        windows_from_pattern(pattern, 4, 256)


@pytest.mark.req("FR-070")
def test_generations_are_presets_of_one_config() -> None:
    assert set(GENERATIONS) == set(get_args(Generation))
    presets = {
        name: GPTConfig.from_depth(4, vocab_size=512, generation=name) for name in GENERATIONS
    }
    facts = {
        name: (
            config.rope_base,
            config.rope_dtype,
            config.qk_scale,
            config.residual_lambdas,
            config.value_embedding and dataclasses.astuple(config.value_embedding),
            config.smear_channels,
            config.backout,
        )
        for name, config in presets.items()
    }
    assert facts == {
        "v1": (10_000.0, "bfloat16", 1.0, False, None, None, False),
        "v2": (10_000.0, "bfloat16", 1.0, True, None, None, False),
        "v3": (10_000.0, "bfloat16", 1.0, True, (32, 2.0), None, False),
        "v4": (100_000.0, "compute", 1.15, True, (12, 3.0), None, False),
        "v5": (100_000.0, "compute", 1.2, True, (12, 3.0), 24, True),
    }


@pytest.mark.parametrize(("depth", "layers"), [(1, [0]), (2, [1]), (5, [0, 2, 4]), (6, [1, 3, 5])])
def test_every_second_layer_has_values_the_last_always(depth: int, layers: list[int]) -> None:
    config = GPTConfig.from_depth(depth, vocab_size=100)
    assert [n for n in range(depth) if config.has_value_embedding(n)] == layers
    assert config.backout_layer == depth // 2
    without = dataclasses.replace(config, value_embedding=None)
    assert not any(without.has_value_embedding(n) for n in range(depth))


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.req("FR-045")
def test_a_config_survives_json(generation: Generation) -> None:
    config = GPTConfig.from_depth(4, vocab_size=512, generation=generation)
    assert GPTConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_a_config_half_understood_is_an_error() -> None:
    raw = GPTConfig.from_depth(4, vocab_size=512).to_json()
    del raw["smear_channels"]
    with pytest.raises(ConfigError, match=r"unknown keys \['smeer'\].*\['smear_channels'\]"):
        GPTConfig.from_json(raw | {"smeer": 24})
    raw = GPTConfig.from_depth(4, vocab_size=512).to_json()
    with pytest.raises(ConfigError, match="value_embedding"):
        GPTConfig.from_json(raw | {"value_embedding": {"channels": 12}})
    with pytest.raises(ConfigError, match="windows"):
        GPTConfig.from_json(raw | {"windows": 5})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 0, "head_dim": -1}, "num_layers is 0.*head_dim is -1, expected at least 1"),
        ({"num_kv_heads": 4}, "num_heads 6 is not a multiple of num_kv_heads 4"),
        ({"head_dim": 127}, "head_dim is 127, expected an even number"),
        ({"windows": (None,)}, "1 windows for 12 layers"),
        ({"windows": (-1,) * 12}, "window of layer 0 is -1, expected tokens or none"),
        ({"value_embedding": ValueEmbedding(0, 1.0)}, "gate_channels is 0"),
        ({"value_embedding": ValueEmbedding(769, 1.0)}, "gate_channels is 769, .*model_dim 768"),
        ({"smear_channels": 769}, "smear_channels is 769, expected 1 to 768"),
        ({"smear_channels": 0}, "smear_channels is 0, expected 1 to 768"),
        ({"logit_softcap": 0.0}, "logit_softcap is 0.0"),
        ({"rope_base": 1.0}, "rope_base is 1.0"),
        ({"rope_dtype": "float16"}, "rope_dtype is 'float16', expected bfloat16 or compute"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0"),
        ({"qk_scale": float("nan")}, "qk_scale is nan, expected more than 0.0"),
        ({"num_layers": "12"}, "num_layers is '12', expected at least 1"),
        ({"num_heads": 6.0}, "num_heads is 6.0"),
        ({"rope_base": True}, "rope_base is True"),
        ({"backout": 1}, "backout is 1, expected true or false"),
        ({"windows": (1.5, *(None,) * 11)}, "window of layer 0 is 1.5"),
        ({"value_embedding": ValueEmbedding(12, float("inf"))}, "gate_scale is inf"),
    ],
)
@pytest.mark.req("FR-001", "FR-005")
def test_what_cannot_be_built_is_refused(changes: dict[str, Any], message: str) -> None:
    config = GPTConfig.from_depth(12, vocab_size=32_768)
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(config, **changes)


def test_all_problems_are_told_at_once() -> None:
    config = GPTConfig.from_depth(12, vocab_size=32_768)
    with pytest.raises(ConfigError, match=r"num_kv_heads 4.*1 windows.*smear_channels is 0"):
        dataclasses.replace(config, num_kv_heads=4, windows=(None,), smear_channels=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 0}, "depth is 0, expected at least 1"),
        ({"depth": 2, "head_dim": 0}, "head_dim is 0"),
        ({"depth": 2, "aspect_ratio": -1}, "aspect_ratio -1"),
        ({"depth": 2, "generation": "v6"}, "generation is 'v6', expected one of v1, v2, v3"),
    ],
)
def test_the_dial_has_a_lower_end(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GPTConfig.from_depth(vocab_size=100, **arguments)

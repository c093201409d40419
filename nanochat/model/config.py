"""The dial and every choice behind it.   in: depth, generation   out: GPTConfig   who calls: all
that build a model

karpathy/nanochat changed its mathematics five times without recording it in its checkpoints.  Here
each
choice is a field, and the five generations are five presets of one config.
Source: karpathy/nanochat nanochat/gpt.py at 3a5e0bc (V1), fbc1484 (V2), 2f09686 (V3), 6ed7d1d
        (V4), 92d63d4 (V5).
Read next: gpt.py (what the fields do), cost.py (what they cost).
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from nanochat.common.errors import ConfigError

__all__ = ["GENERATIONS", "GPTConfig", "Generation", "ValueEmbedding", "windows_from_pattern"]

Generation = Literal["v1", "v2", "v3", "v4", "v5"]
RopeDtype = Literal["bfloat16", "compute"]

FLOAT32_EPS = 1.1920928955078125e-07  # RMSNorm's default epsilon in PyTorch, made explicit
COUNTS = (
    "num_layers",
    "model_dim",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "vocab_size",
    "context_len",
    "vocab_padding",
)
SHORT_WINDOW_TILE = 128  # short windows of V4 and V5 are rounded up to this many tokens


@dataclass(frozen=True, slots=True)
class ValueEmbedding:
    """A table of values by token, added on every second layer through a gate of `scale` *
    sigmoid."""

    gate_channels: int
    gate_scale: float


@dataclass(frozen=True, kw_only=True, slots=True)
class GPTConfig:
    """Every choice that changes what the model computes.

    Raises: ConfigError listing all problems at once.
    """

    num_layers: int
    model_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    context_len: int
    windows: tuple[int | None, ...]
    """Per layer: how many tokens to the left of itself a token attends to. None: all of them."""
    vocab_padding: int = 64
    """Rows of the token tables are rounded up to a multiple of this; the logits are cut back."""
    rope_base: float = 100_000.0
    rope_dtype: RopeDtype = "compute"
    """What cosines and sines are rounded to: bfloat16 always (V1-V3), or the compute type."""
    logit_softcap: float = 15.0
    qk_scale: float = 1.2
    residual_lambdas: bool = True
    """Learned weights of the stream and of its first value, before each block."""
    value_embedding: ValueEmbedding | None = ValueEmbedding(gate_channels=12, gate_scale=3.0)
    smear_channels: int | None = 24
    """Channels that gate how much of the previous token's embedding is mixed in. None: no smear."""
    backout: bool = True
    """Subtract a learned share of the middle layer's stream before the last norm."""
    norm_eps: float = FLOAT32_EPS

    def __post_init__(self) -> None:
        problems = _problems(self)
        if problems:
            raise ConfigError("model config: " + "; ".join(problems))

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the token tables."""
        return _round_up(self.vocab_size, self.vocab_padding)

    @property
    def backout_layer(self) -> int:
        """The block whose output is subtracted: index num_layers // 2."""
        return self.num_layers // 2

    def has_value_embedding(self, layer: int) -> bool:
        """Whether this layer has a value table: every second one, the last always."""
        return self.value_embedding is not None and layer % 2 == (self.num_layers - 1) % 2

    @classmethod
    def from_depth(
        cls,
        depth: int,
        *,
        vocab_size: int,
        context_len: int = 2048,
        head_dim: int = 128,
        aspect_ratio: int = 64,
        window_pattern: str | None = None,
        generation: Generation = "v5",
    ) -> "GPTConfig":
        """The one dial: `depth` decides width and heads; the generation decides the mathematics.

        Width is depth * aspect_ratio rounded up to a multiple of head_dim.
        Example: GPTConfig.from_depth(12, vocab_size=32768).model_dim == 768
        Raises:  ConfigError if depth < 1 or the generation or pattern is unknown.
        Source:  karpathy/nanochat scripts/base_train.py at 92d63d4.
        """
        if depth < 1:
            raise ConfigError(f"depth is {depth}, expected at least 1: it is the number of layers")
        if head_dim < 1 or aspect_ratio < 1:
            raise ConfigError(
                f"head_dim is {head_dim}, aspect_ratio {aspect_ratio}: expected at least 1"
            )
        if generation not in get_args(Generation):
            raise ConfigError(
                f"generation is {generation!r}, expected one of {', '.join(GENERATIONS)}"
            )
        model_dim = _round_up(depth * aspect_ratio, head_dim)
        num_heads = model_dim // head_dim
        pattern = (
            window_pattern
            if window_pattern is not None
            else ("L" if generation == "v1" else "SSSL")
        )
        return cls(
            num_layers=depth,
            model_dim=model_dim,
            num_heads=num_heads,
            num_kv_heads=num_heads,
            head_dim=head_dim,
            vocab_size=vocab_size,
            context_len=context_len,
            windows=windows_from_pattern(pattern, depth, context_len, generation),
            **GENERATIONS[generation],
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values for config.json."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "GPTConfig":
        """The config written by `to_json`.

        Raises: ConfigError naming every missing or unknown key: a config half understood is an
                error.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if set(raw) != known:
            unknown, missing = sorted(set(raw) - known), sorted(known - set(raw))
            raise ConfigError(f"model config: unknown keys {unknown}, missing keys {missing}")
        values = dict(raw)
        try:
            values["windows"] = tuple(values["windows"])
            if values["value_embedding"] is not None:
                values["value_embedding"] = ValueEmbedding(**values["value_embedding"])
        except TypeError as error:
            raise ConfigError(
                f"model config: windows or value_embedding is malformed ({error})"
            ) from error
        return cls(**values)


GENERATIONS: dict[Generation, dict[str, Any]] = {
    "v1": dict(
        rope_base=10_000.0,
        rope_dtype="bfloat16",
        qk_scale=1.0,
        residual_lambdas=False,
        value_embedding=None,
        smear_channels=None,
        backout=False,
    ),
    "v2": dict(
        rope_base=10_000.0,
        rope_dtype="bfloat16",
        qk_scale=1.0,
        value_embedding=None,
        smear_channels=None,
        backout=False,
    ),
    "v3": dict(
        rope_base=10_000.0,
        rope_dtype="bfloat16",
        qk_scale=1.0,
        value_embedding=ValueEmbedding(gate_channels=32, gate_scale=2.0),
        smear_channels=None,
        backout=False,
    ),
    "v4": dict(qk_scale=1.15, smear_channels=None, backout=False),
    "v5": dict(),
}


def windows_from_pattern(
    pattern: str, num_layers: int, context_len: int, generation: Generation = "v5"
) -> tuple[int | None, ...]:
    """Left windows per layer from a tiled pattern of S (short) and L (long); the last layer is
    always long.

    Units:  tokens to the left of the query, so a window of N sees N + 1 keys.
    Raises: ConfigError for an empty pattern or another letter.
    Source: karpathy/nanochat GPT._compute_window_sizes at each generation's commit; V1 had no
            windows at all.
    """
    if not pattern or set(pattern.upper()) - {"S", "L"}:
        raise ConfigError(
            f"window pattern is {pattern!r}, expected letters S (short) and L (long), such as SSSL"
        )
    if generation == "v1":
        return (None,) * num_layers
    short = {
        "v2": context_len // 2,
        "v3": context_len // 2,
        "v4": _round_up(-(-context_len // 3), SHORT_WINDOW_TILE),
        "v5": _round_up(-(-context_len // 4), SHORT_WINDOW_TILE),
    }[generation]
    letters = [pattern.upper()[layer % len(pattern)] for layer in range(num_layers)]
    return tuple(short if letter == "S" else context_len for letter in letters[:-1]) + (
        context_len,
    )


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _problems(config: GPTConfig) -> list[str]:
    """What is wrong; a config may come from a file of anybody's, so types are looked at too."""
    problems = [
        f"{name} is {value!r}, expected at least 1"
        for name in COUNTS
        if not _is_count(value := getattr(config, name))
    ]
    problems += [
        f"{name} is {value!r}, expected more than {above}"
        for name, above in (
            ("rope_base", 1.0),
            ("logit_softcap", 0.0),
            ("qk_scale", 0.0),
            ("norm_eps", 0.0),
        )
        if not _is_number(value := getattr(config, name)) or not above < value < math.inf
    ]
    problems += [
        f"{name} is {value!r}, expected true or false"
        for name in ("residual_lambdas", "backout")
        if not isinstance(value := getattr(config, name), bool)
    ]
    if config.rope_dtype not in get_args(RopeDtype):
        problems.append(f"rope_dtype is {config.rope_dtype!r}, expected bfloat16 or compute")
    return problems or _contradictions(config)


def _contradictions(config: GPTConfig) -> list[str]:
    """What does not fit together, where every number is one."""
    problems = []
    if config.num_heads % config.num_kv_heads:
        problems.append(
            f"num_heads {config.num_heads} is not a multiple of num_kv_heads {config.num_kv_heads}"
        )
    if config.head_dim % 2:
        problems.append(
            f"head_dim is {config.head_dim}, expected an even number: rotary pairs need it"
        )
    if len(config.windows) != config.num_layers:
        problems.append(f"{len(config.windows)} windows for {config.num_layers} layers")
    problems += [
        f"the window of layer {layer} is {window!r}, expected tokens or none"
        for layer, window in enumerate(config.windows)
        if window is not None and not (type(window) is int and window >= 0)
    ]
    gate = config.value_embedding
    if gate is not None and not _is_share(gate.gate_channels, config.model_dim):
        problems.append(
            f"gate_channels is {gate.gate_channels!r}, expected 1 to model_dim {config.model_dim}"
        )
    if gate is not None and not (_is_number(gate.gate_scale) and math.isfinite(gate.gate_scale)):
        problems.append(f"gate_scale is {gate.gate_scale!r}, expected a number")
    smear = config.smear_channels
    if smear is not None and not _is_share(smear, config.model_dim):
        problems.append(f"smear_channels is {smear!r}, expected 1 to {config.model_dim}")
    return problems


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 1


def _is_share(value: object, model_dim: int) -> bool:
    return type(value) is int and 1 <= value <= model_dim


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

"""A matrix -> ways to multiply by it.   in: weight_CR   out: Multiply, Linear
who calls: choice.py, weights.py

PyTorch has many operators that multiply by one matrix, and no one of them is fastest for every
shape, number of rows and processor: these are the candidates, and choice.py decides.

    float32    F.linear, or packed by oneDNN
    bfloat16   F.linear, or packed by oneDNN: products of bfloat16, sums in float32
    int8       a scale for every output channel and for every row; sums of integers are exact, so a
               row's result does not depend on its neighbours at all
    int4       groups of 32 weights with a scale and a zero each; for many rows at once the same
               weights as bfloat16, because the 4-bit product takes rows one after another
Read next: choice.py (which one is taken), weights.py (which matrices there are), forward.py.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "BUCKETS",
    "CANDIDATES",
    "Candidate",
    "Linear",
    "Multiply",
    "Role",
    "WeightFormat",
    "bucket_of",
    "dequantized",
    "plain",
]

WeightFormat = Literal["float32", "bfloat16", "int8", "int4"]
Role = Literal["plain", "expand", "contract"]
"""expand: what is negative in the product becomes 0.  contract: no input is negative."""
Multiply = Callable[[Tensor], Tensor]
"""x_NR -> x @ weight.T, in float32 or bfloat16."""

BUCKETS = (1, 4, 16, 64, 256)
"""Most rows of each bucket; the last also takes what is above it."""
GROUP = 32  # weights that share a scale in int4; 64: 3% faster, 0.11% of bpb lost, not 0.06%
TINY = 1e-30  # a row of zeros has this scale and stays zero
# Largest error of a product, relative to what is typical, against the weights as stored.
TOLERANCES: dict[WeightFormat, float] = {
    "float32": 1e-4,
    "bfloat16": 0.03,
    "int8": 0.06,
    "int4": 0.03,
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """One operator: how it wants the weights, and how it multiplies."""

    name: str
    build: Callable[[Tensor, Role], Multiply]
    """From weight_CR in float32."""
    most_rows: int | None = None
    """None: any number."""
    is_usable: Callable[[frozenset[str]], bool] = lambda flags: True
    """Given what the processor can do."""


class Linear:
    """One matrix, packed: a way to multiply for every bucket of rows."""

    def __init__(self, shape: tuple[int, int], by_bucket: tuple[Multiply, ...]) -> None:
        self.shape, self.by_bucket = shape, by_bucket

    def __call__(self, x_NR: Tensor) -> Tensor:
        """Shapes: x_NR -> (N, C), in float32 or bfloat16."""
        return self.by_bucket[bucket_of(x_NR.size(0))](x_NR)


def bucket_of(num_rows: int) -> int:
    """The index of the bucket that takes so many rows."""
    return next((index for index, most in enumerate(BUCKETS) if num_rows <= most), len(BUCKETS) - 1)


# ---------------------------------------------------------------------------------- operators


def plain(weight: Tensor, role: Role, dtype: torch.dtype) -> Multiply:
    """F.linear in `dtype`, on any device: what everything falls back to."""
    weight_CR = weight.to(dtype)

    def multiply(x_NR: Tensor) -> Tensor:
        y_NC = F.linear(x_NR.to(dtype), weight_CR)
        return y_NC.relu_() if role == "expand" else y_NC

    return multiply


def _packed(weight: Tensor, role: Role, dtype: torch.dtype) -> Multiply:
    """oneDNN's own layout: in bfloat16 1.6 times as fast as F.linear for one row and for 16."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype).contiguous())
    product = torch.ops.mkldnn._linear_pointwise.default
    after = "relu" if role == "expand" else "none"

    def multiply(x_NR: Tensor) -> Tensor:
        return product(x_NR.to(dtype), packed, None, after, [], "")

    return multiply


def _int8_rows(weight: Tensor, role: Role) -> Multiply:
    """Whole numbers times whole numbers (VNNI, AMX); both scales are multiplied afterwards."""
    whole_CR, scale_C = _int8_channels(weight)
    packed = torch.ops.onednn.qlinear_prepack(whole_CR, None)
    zeros_C = torch.zeros(scale_C.numel(), dtype=torch.int32)
    product = torch.ops.onednn.qlinear_pointwise.default
    after = "relu" if role == "expand" else "none"
    is_positive = role == "contract"
    levels, zero = (255, 0) if is_positive else (127, 128)
    top_level, offset = torch.tensor(float(levels)), torch.tensor(zero + 0.5)
    channels_C = scale_C / levels

    def multiply(x_NR: Tensor) -> Tensor:
        x_NR = x_NR.float()
        top_N1 = (x_NR if is_positive else x_NR.abs()).amax(-1, True).clamp_min_(TINY)
        # What is added makes the cut to an integer a rounding: floor(x + 0.5).
        whole_NR = torch.addcmul(offset, x_NR, top_level / top_N1).to(torch.uint8)
        y_NC = product(
            whole_NR, 1.0, zero, packed, channels_C, zeros_C, None, 1.0, 0, torch.float32,
            after, [], "",
        )  # fmt: skip
        return y_NC.mul_(top_N1)

    return multiply


def _int8_one_row(weight: Tensor, role: Role) -> Multiply:
    """The same, and the row is quantized within the operator: for one row alone, since it takes one
    scale for all that it is given.  A third of the overhead of the one above."""
    whole_CR, scale_C = _int8_channels(weight)
    zeros_C = torch.zeros(scale_C.numel(), dtype=torch.long)
    with warnings.catch_warnings():
        # PyTorch means to remove these tensors one day; then this candidate is left out.
        warnings.simplefilter("ignore", UserWarning)
        quantized_CR = torch._make_per_channel_quantized_tensor(
            whole_CR, scale_C.double(), zeros_C, 0
        )
        packed = torch.ops.quantized.linear_prepack(quantized_CR, None)
    operators = torch.ops.quantized
    product = (
        operators.linear_relu_dynamic if role == "expand" else operators.linear_dynamic
    ).default

    def multiply(x_NR: Tensor) -> Tensor:
        assert x_NR.size(0) == 1, f"{x_NR.size(0)} rows share no scale"
        return product(x_NR.float(), packed, False)

    return multiply


def _int8_weights(weight: Tensor, role: Role) -> Multiply:
    """Weights in int8 and nothing else: small matrices, processors without products of integers."""
    whole_CR, scale_C = _int8_channels(weight)
    scale_C = scale_C.bfloat16()

    def multiply(x_NR: Tensor) -> Tensor:
        y_NC = torch._weight_int8pack_mm(x_NR.bfloat16(), whole_CR, scale_C)
        return y_NC.relu_() if role == "expand" else y_NC

    return multiply


def _int4_groups(weight: Tensor, role: Role) -> Multiply:
    """Two weights a byte; inputs in bfloat16, sums in float32."""
    whole_CR, scales_GC2 = _int4_groups_of(weight)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(whole_CR, 1)
    product = torch.ops.aten._weight_int4pack_mm_for_cpu.default

    def multiply(x_NR: Tensor) -> Tensor:
        y_NC = product(x_NR.bfloat16(), packed, GROUP, scales_GC2)
        return y_NC.relu_() if role == "expand" else y_NC

    return multiply


# ---------------------------------------------------------------------------------- quantizing


def dequantized(weight: Tensor, format: WeightFormat) -> Tensor:
    """The weights that a format really multiplies by, in float32.   Shapes: (C, R) -> (C, R)."""
    if format == "int8":
        whole_CR, scale_C = _int8_channels(weight)
        return whole_CR.float() * scale_C[:, None]
    if format == "int4":
        if weight.size(1) % GROUP:
            return weight.bfloat16().float()  # no whole groups: such a matrix stays as it is
        whole_CR, scales_GC2 = _int4_groups_of(weight)
        scale_CG, zero_CG = scales_GC2.float().permute(2, 1, 0)
        groups = whole_CR.view(*scale_CG.shape, GROUP) - 8
        return (groups * scale_CG[..., None] + zero_CG[..., None]).view_as(weight)
    return weight.to(getattr(torch, format)).float()


def _int8_channels(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers from -127 to 127 and a scale for each row of the matrix."""
    scale_C = weight.abs().amax(1).clamp_min(TINY) / 127
    return (weight / scale_C[:, None]).round().to(torch.int8), scale_C


def _int4_groups_of(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers from 0 to 15, and for each group (scale, value of 8) in bfloat16."""
    groups_CGR = weight.unflatten(1, (-1, GROUP))
    low, high = groups_CGR.amin(-1), groups_CGR.amax(-1)
    scale = ((high - low) / 15).clamp_min(TINY).bfloat16().float()
    middle = (low + 8 * scale).bfloat16().float()
    whole = ((groups_CGR - middle[..., None]) / scale[..., None] + 8).round().clamp(0, 15)
    scales_GC2 = torch.stack((scale.T, middle.T), dim=-1).bfloat16().contiguous()
    return whole.to(torch.int32).flatten(1), scales_GC2


def _has_integer_products(flags: frozenset[str]) -> bool:
    return bool(flags & {"avx512_vnni", "avx_vnni", "amx_int8"})


def _int4_as_bfloat16(weight: Tensor, role: Role) -> Multiply:
    return _packed(dequantized(weight, "int4"), role, torch.bfloat16)


CANDIDATES: dict[WeightFormat, tuple[Candidate, ...]] = {
    "float32": (
        Candidate("F.linear", lambda weight, role: plain(weight, role, torch.float32)),
        Candidate("onednn packed", lambda weight, role: _packed(weight, role, torch.float32)),
    ),
    "bfloat16": (
        Candidate("onednn packed", lambda weight, role: _packed(weight, role, torch.bfloat16)),
        Candidate("F.linear", lambda weight, role: plain(weight, role, torch.bfloat16)),
    ),
    "int8": (
        Candidate("int8 by row", _int8_rows, is_usable=_has_integer_products),
        Candidate("int8 one row", _int8_one_row, most_rows=1, is_usable=_has_integer_products),
        Candidate("int8 weights", _int8_weights),
    ),
    "int4": (
        Candidate("int4 groups", _int4_groups),
        Candidate("int4 as bfloat16", _int4_as_bfloat16),
    ),
}

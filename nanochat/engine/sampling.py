"""Logits -> the next token.   in: logits_BV, SamplingParams and a step per row
out: tokens_B, logprobs_B   who calls: runner.py

Pure: a token is a function of its row's logits, its parameters and (seed, step), whoever shares
the batch.  The chance comes from a hash of (seed, step): there is no generator to keep or restore.
Order of the filters: temperature, then top-k, then top-p, as karpathy/nanochat and vLLM have them.
Read next: request.py (the parameters), tests/engine/test_sampling.py.
"""

import hashlib
import struct
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nanochat.engine.request import SamplingParams

__all__ = ["Sampled", "choose", "sample", "uniform"]

# A nucleus (top-p) is looked for among this many of the likeliest before the whole vocabulary is
# sorted: 0.06 ms against 1.8 ms for 32,768 tokens on one core.
NUCLEUS_CANDIDATES = 1024

GREEDY_TEMPERATURE = 1e-5  # below this the division would overflow before it mattered


class Sampled(NamedTuple):
    """A token for each row, and the logarithm of its probability under the model itself."""

    tokens_B: Tensor
    logprobs_B: Tensor


def sample(logits_BV: Tensor, params: Sequence[SamplingParams], steps: Sequence[int]) -> Sampled:
    """One token a row.  `steps` counts the tokens each row has been given so far.

    Shapes: logits_BV -> tokens_B int64, logprobs_B float32: of the distribution before temperature
            and filters.
    """
    tokens_B = torch.stack(
        [
            choose(logits_V, param, uniform(param.seed, step))
            for logits_V, param, step in zip(logits_BV, params, steps, strict=True)
        ]
    )
    logprobs_BV = logits_BV.log_softmax(dim=-1)
    return Sampled(tokens_B, logprobs_BV.gather(1, tokens_B[:, None]).squeeze(1))


def uniform(seed: int, step: int) -> float:
    """A number in [0, 1) that (seed, step) decides, on every machine alike."""
    digest = hashlib.blake2b(struct.pack("<QQ", seed, step), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 40) * 2.0**-24  # exact in float32


def choose(logits_V: Tensor, params: SamplingParams, chance: float) -> Tensor:
    """The token at which the cumulated probabilities pass `chance`; the likeliest if greedy.

    Shapes: logits_V -> a scalar, int64.
    """
    if params.temperature < GREEDY_TEMPERATURE or params.top_k == 1:
        return logits_V.argmax()
    if params.top_k is not None and params.top_k < logits_V.size(0):
        kept, tokens = logits_V.topk(params.top_k)
        weights = _nucleus((kept / params.temperature).softmax(-1), params.top_p)
        return tokens[_pick(weights, chance)]
    weights_V = (logits_V / params.temperature).softmax(-1)
    if params.top_p == 1.0:
        return _pick(weights_V, chance)
    ordered, tokens = weights_V.topk(min(NUCLEUS_CANDIDATES, weights_V.size(0)))
    if float(ordered.sum()) < params.top_p:
        ordered, tokens = weights_V.sort(descending=True)
    return tokens[_pick(_nucleus(ordered, params.top_p), chance)]


def _nucleus(ordered: Tensor, top_p: float) -> Tensor:
    """Probabilities in falling order, cut to the fewest that add up to top_p; never to none.

    Source: Holtzman et al., arXiv:1904.09751.
    """
    if top_p == 1.0:
        return ordered
    mass_before = ordered.cumsum(-1) - ordered
    is_kept = mass_before < top_p
    is_kept[0] = True
    return ordered * is_kept


def _pick(weights: Tensor, chance: float) -> Tensor:
    """The first index whose cumulated weight exceeds `chance` of the total: inversion."""
    cumulated = weights.cumsum(-1)
    total = cumulated[-1:]
    index = torch.searchsorted(cumulated, total * chance, right=True)
    # Rounding may put `total * chance` at the total itself: then the last one with any weight.
    last = torch.searchsorted(cumulated, total)
    return torch.minimum(index, last).clamp_max(weights.size(0) - 1).squeeze(0)  # NaN: any index

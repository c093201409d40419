"""The rules of sampling, one after the other, in float64, sorting everything.  Slow and plain."""

import math
from collections.abc import Collection, Sequence

import torch

from nanochat.engine.request import SamplingParams


def adjusted(
    logits: torch.Tensor,
    params: SamplingParams,
    prompt: Sequence[int] = (),
    answer: Sequence[int] = (),
    forbidden: Collection[int] = (),
) -> list[float]:
    """The logits after penalties, biases and what is forbidden."""
    changed = logits.double().tolist()
    for token in {*prompt, *answer}:
        z = changed[token]
        z = z / params.repetition_penalty if z > 0 else z * params.repetition_penalty
        count = list(answer).count(token)
        changed[token] = (
            z - params.frequency_penalty * count - params.presence_penalty * (count > 0)
        )
    for token, bias in params.logit_bias.items():
        changed[token] += bias
    return [-math.inf if token in forbidden else z for token, z in enumerate(changed)]


def distribution(changed: list[float], params: SamplingParams) -> list[float]:
    """How likely each token is to be chosen."""
    order = sorted(range(len(changed)), key=lambda token: -changed[token])
    if params.temperature < 1e-5:
        return [float(token == order[0]) for token in range(len(changed))]
    top = changed[order[0]]
    weights = [math.exp((z - top) / params.temperature) for z in changed]
    for token in order[params.top_k :] if params.top_k is not None else ():
        weights[token] = 0.0
    total = sum(weights)
    kept, mass = set(), 0.0
    for token in order:
        if not kept or mass < params.top_p * total or params.top_p >= 1:
            kept.add(token)
            mass += weights[token]
    least = min(weights[token] for token in kept)
    weights = [w if w >= least and w >= params.min_p * weights[order[0]] else 0.0 for w in weights]
    total = sum(weights)
    return [w / total for w in weights]


def chosen(probabilities: list[float], chance: float) -> set[int]:
    """The token at this chance, in the order of ids; with those rounding might make of it."""
    found, mass = set(), 0.0
    for token, probability in enumerate(probabilities):
        if probability and mass - 2e-5 <= chance <= mass + probability + 2e-5:
            found.add(token)
        mass += probability
    return found

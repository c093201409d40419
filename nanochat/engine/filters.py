"""The likeliest of many, without sorting them.   in: rows of logits or weights   out: tokens
who calls: sampling.py

    largest        the k largest of a row: they lie in the k groups with the largest maxima
    keep_nucleus   the fewest tokens that hold a share of all: weights counted by their size
    pick           a token by its share: first the group of tokens, then the token in it
Each row's result is a function of that row alone, whatever else is in the batch.
Read next: sampling.py (the rules in their order), tests/engine/test_filters.py.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "MAX_CHANCE",
    "keep_largest",
    "keep_nucleus",
    "largest",
    "least_needed",
    "most_likely",
    "pick",
]

GROUP = 64  # logits a group: 512 groups of 32,768 logits
FINE_GROUP = 8  # groups among what the first leave: 64 * 64 logits, then 64 * 8
PICK_GROUP = 128

# Most of a sum that a choice may aim at: in float32 this times the sum is less than the sum.
MAX_CHANCE = 1 - 2.0**-22

FIRST_CANDIDATES = 256  # a nucleus is looked for among these first: 0.1 ms, and counting 0.4

# A nucleus' border is looked for among BINS sizes of weights, then within the one it lies in, and
# within that again: from e**-(1/8) down to e**-(1/524288), which is float32's own step.
BINS = 256
FIRST_BIN = 1 / 8
NUM_LEVELS = 3


def most_likely(logits_BV: Tensor) -> Tensor:
    """The token of the largest logit, the first of equals.  16 us where argmax takes 48."""
    groups_BGR = _grouped(logits_BV, GROUP)
    group_B1 = groups_BGR.amax(dim=-1).argmax(dim=-1, keepdim=True)
    inner_B1 = _members(groups_BGR, group_B1).argmax(dim=-1, keepdim=True)
    return _limited(group_B1 * GROUP + inner_B1, logits_BV).squeeze(1)


def largest(logits_BV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row in falling order, and their tokens; all of them where V <= k.

    Shapes: logits_BV -> values_BC, tokens_BC.
    """
    values, chosen = logits_BV, []
    for size in (GROUP, FINE_GROUP):
        if values.size(1) >= 2 * k * size:  # else there is little to leave out
            groups_BGR = _grouped(values, size)
            groups = groups_BGR.amax(dim=-1).topk(k, sorted=False).indices
            values = _members(groups_BGR, groups)
            chosen.append((size, groups))
    values_BC, tokens_BC = values.topk(min(k, values.size(1)))
    for size, groups in reversed(chosen):  # places among the members -> places before
        tokens_BC = groups.gather(1, tokens_BC // size) * size + tokens_BC % size
    return values_BC, _limited(tokens_BC, logits_BV)


def keep_largest(logits_V: Tensor, k: int) -> None:
    """Forbid all but the k largest and their equals, in place."""
    least = logits_V.topk(k, sorted=False).values.amin()
    logits_V.masked_fill_(logits_V < least, -torch.inf)


def keep_nucleus(weights_BV: Tensor, scaled_BV: Tensor, top_p_B1: Tensor) -> Tensor:
    """The weights, 0 but for the fewest largest that hold top_p of all, and their equals.

    scaled_BV are their logarithms, up to a constant for each row; the weights' sums are 1.
    Source: Holtzman et al., arXiv:1904.09751.
    """
    if weights_BV.is_cuda:  # the device may not be asked whether the first would do
        return weights_BV * (weights_BV >= _least_by_counting(weights_BV, scaled_BV, top_p_B1))
    values_BC, _ = largest(weights_BV, FIRST_CANDIDATES)
    least_B1 = least_needed(values_BC, top_p_B1)
    if len(rows := (values_BC.sum(dim=-1) < top_p_B1[:, 0]).nonzero()[:, 0]):
        least_B1[rows] = _least_by_counting(weights_BV[rows], scaled_BV[rows], top_p_B1[rows])
    return weights_BV * (weights_BV >= least_B1)


def least_needed(weights_BC: Tensor, top_p_B1: Tensor) -> Tensor:
    """The least of the fewest that add up to top_p, a column; the weights are in falling order."""
    mass_before_BC = weights_BC.cumsum(dim=-1) - weights_BC
    is_needed_BC = (mass_before_BC < top_p_B1) | (top_p_B1 >= 1.0)
    return weights_BC.masked_fill(~is_needed_BC, torch.inf).amin(dim=-1, keepdim=True)


def _least_by_counting(weights_BV: Tensor, scaled_BV: Tensor, top_p_B1: Tensor) -> Tensor:
    below_BV = scaled_BV.amax(dim=-1, keepdim=True) - scaled_BV
    below_BV.nan_to_num_(nan=torch.inf, posinf=torch.inf)  # broken rows must not break out
    start_B1, width = torch.zeros_like(top_p_B1), FIRST_BIN
    for _ in range(NUM_LEVELS):
        # Bin 0: before the start, and needed; the last: behind the end.
        place_BV = (below_BV - (start_B1 - width)).mul_(1 / width).clamp_(0, BINS + 1).long()
        mass_BC = weights_BV.new_zeros(len(weights_BV), BINS + 2)
        cumulated_BC = mass_BC.scatter_add_(1, place_BV, weights_BV).cumsum(dim=-1)
        border_B1 = torch.searchsorted(cumulated_BC, top_p_B1 * cumulated_BC[:, -1:])
        border_B1.clamp_(1, BINS + 1)
        start_B1 = start_B1 + (border_B1 - 1) * width
        width /= BINS
    return weights_BV.masked_fill(place_BV > border_B1, torch.inf).amin(dim=-1, keepdim=True)


def pick(weights_BC: Tensor, chance_B1: Tensor) -> Tensor:
    """The first of each row at which the cumulated weights exceed `chance` of their sum.

    Shapes: weights_BC, chance_B1 in [0, MAX_CHANCE] -> places_B; never one of weight 0, and any if
            all are NaN.
    """
    if weights_BC.size(1) <= 2 * PICK_GROUP:
        cumulated_BC = weights_BC.cumsum(dim=-1)
        return _first_beyond(cumulated_BC, cumulated_BC[:, -1:] * chance_B1).squeeze(1)
    groups_BGR = _grouped(weights_BC, PICK_GROUP, padding=0.0)
    sums_BG = groups_BGR.sum(dim=-1)
    cumulated_BG = sums_BG.cumsum(dim=-1)
    target_B1 = cumulated_BG[:, -1:] * chance_B1
    group_B1 = _first_beyond(cumulated_BG, target_B1)
    rest_B1 = target_B1 - cumulated_BG.gather(1, group_B1) + sums_BG.gather(1, group_B1)
    within_BR = _members(groups_BGR, group_B1).cumsum(dim=-1)
    # Rounding may put the rest beyond its group.
    rest_B1 = torch.minimum(rest_B1, within_BR[:, -1:] * MAX_CHANCE)
    place_B1 = group_B1 * PICK_GROUP + _first_beyond(within_BR, rest_B1)
    return _limited(place_B1, weights_BC).squeeze(1)


def _first_beyond(cumulated_BC: Tensor, target_B1: Tensor) -> Tensor:
    """The first place where more than the target is cumulated, a column."""
    place_B1 = torch.searchsorted(cumulated_BC, target_B1, right=True)
    return place_B1.clamp_max_(cumulated_BC.size(1) - 1)


def _grouped(values_BV: Tensor, size: int, padding: float = -torch.inf) -> Tensor:
    """Neighbours in groups; a view where the groups come out even."""
    if rest := values_BV.size(1) % size:
        values_BV = F.pad(values_BV, (0, size - rest), value=padding)
    return values_BV.view(values_BV.size(0), -1, size)


def _members(groups_BGR: Tensor, chosen_BN: Tensor) -> Tensor:
    """The members of the chosen groups of each row, one after the other."""
    if len(groups_BGR) == 1:  # twice as fast
        return groups_BGR[0].index_select(0, chosen_BN[0]).view(1, -1)
    rows_B1 = torch.arange(len(groups_BGR), device=groups_BGR.device)[:, None]
    return groups_BGR[rows_B1, chosen_BN].flatten(1)


def _limited(places: Tensor, values_BV: Tensor) -> Tensor:
    """Places within the row: padding, never larger than a logit, is chosen only where all are
    -inf."""
    if values_BV.size(1) % PICK_GROUP == 0:  # a multiple of every size: there was no padding
        return places
    return places.clamp_max(values_BV.size(1) - 1)

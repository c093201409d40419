"""Logits -> the next tokens.   in: logits_BV, a Chooser per row   out: Sampled   who calls: engine

A token is a function of its row's logits, its parameters, what the row has said, and (seed, step),
whoever shares the batch; the chance comes from a hash, so there is no generator to keep.
    penalties, logit_bias, what is forbidden -> temperature -> top_k -> top_p -> min_p -> choice
Nothing is sorted but candidates, and they are few; a nucleus of all the vocabulary is found by
counting.  No value travels to the host: a step never waits for a device.
Read next: filters.py (how candidates are found), request.py (the parameters), tests/twins.
"""

import hashlib
import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nanochat.common.transfer import send
from nanochat.engine.filters import (
    MAX_CHANCE,
    keep_largest,
    keep_nucleus,
    largest,
    least_needed,
    most_likely,
    pick,
)
from nanochat.engine.request import SamplingParams

__all__ = ["Chooser", "Sampled", "sample", "uniform"]

GREEDY_TEMPERATURE = 1e-5  # below this the division would overflow before it mattered

# As many candidates are looked for as the smallest of these that holds top_k: a row's candidates
# must not depend on the top_k of its neighbours.
CANDIDATES = (64, 256, 1024)
ALL, GREEDY = 0, 1  # further ways of choosing: among all tokens, and the likeliest


class Sampled(NamedTuple):
    """A token for each row, and the logarithm of its probability under the model itself: before
    penalties, temperature and filters.  Not finite where the row's logits are not."""

    tokens_B: Tensor
    logprobs_B: Tensor
    top_tokens_BC: Tensor | None = None
    """The likeliest tokens in falling order, as many as any row asks for; None if none does."""
    top_logprobs_BC: Tensor | None = None


def uniform(seed: int, step: int) -> float:
    """A number in [0, 1) that (seed, step) decides, on every machine alike."""
    digest = hashlib.blake2b(struct.pack("<QQ", seed, step), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 40) * 2.0**-24  # exact in float32


class Chooser:
    """What decides a row's next token beside its logits: parameters, seed, and what was said.

    `sample` counts the answers to one prompt: the first chooses as if it were alone, the others
    each have a seed of their own.  Ids must lie in the vocabulary (Request.check_vocabulary).
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_tokens: Sequence[int] = (),
        *,
        vocab_size: int,
        sample: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.params = params
        self.step = 0
        """Tokens the row has been given so far."""
        self._seed = _seed_of(params.seed, sample)
        self.way = _way(params, vocab_size)
        """ALL, GREEDY, or how many candidates."""
        self._history: _History | None = None
        if params.has_penalties:
            self._history = _History(params, prompt_tokens, vocab_size, device)
        self._biased_N = self._bias_N = torch.empty(0)
        if params.logit_bias:
            self._biased_N = torch.tensor(list(params.logit_bias), device=device)
            self._bias_N = torch.tensor(
                list(params.logit_bias.values()), device=device, dtype=torch.float32
            )

    @property
    def is_plain(self) -> bool:
        """Whether it takes the logits as they are."""
        return self._history is None and not self.params.logit_bias

    @property
    def chance(self) -> float:
        """What decides this step's choice."""
        return uniform(self._seed, self.step)

    def add(self, token: int | Tensor) -> None:
        """The row has been given this token, which may still be on the device."""
        self.step += 1
        if self._history is not None:
            self._history.add(token)

    def adjust(self, logits_V: Tensor) -> None:
        """Penalties and biases, in place."""
        if self._history is not None:
            self._history.apply(logits_V)
        if self.params.logit_bias:
            logits_V.index_add_(0, self._biased_N, self._bias_N)


def sample(
    logits_BV: Tensor, choosers: Sequence[Chooser], forbidden: Mapping[int, Tensor] | None = None
) -> Sampled:
    """One token a row.  `forbidden` holds, for rows that have one, True for each impossible token.

    Shapes: logits_BV float32 -> tokens_B int64, logprobs_B float32.
    """
    adjusted_BV = logits_BV
    if forbidden or not all(chooser.is_plain for chooser in choosers):
        adjusted_BV = _adjusted(logits_BV, choosers, forbidden or {})
    tokens_B = _choose(adjusted_BV, choosers)
    logprobs_BV = logits_BV.log_softmax(dim=-1)
    num_top = max(chooser.params.logprobs or 0 for chooser in choosers)
    if not num_top:
        return Sampled(tokens_B, logprobs_BV.gather(1, tokens_B[:, None]).squeeze(1))
    _, top_tokens_BC = largest(logits_BV, CANDIDATES[0])
    top_tokens_BC = top_tokens_BC[:, :num_top]
    logprobs_BN = logprobs_BV.gather(1, torch.cat([tokens_B[:, None], top_tokens_BC], dim=1))
    return Sampled(tokens_B, logprobs_BN[:, 0], top_tokens_BC, logprobs_BN[:, 1:])


def _seed_of(seed: int, sample: int) -> int:
    if sample == 0:
        return seed
    digest = hashlib.blake2b(struct.pack("<QQ", seed, sample), digest_size=8, person=b"sample")
    return int.from_bytes(digest.digest(), "little")


def _way(params: SamplingParams, vocab_size: int) -> int:
    if params.temperature < GREEDY_TEMPERATURE or params.top_k == 1:
        return GREEDY
    if params.top_k is None or params.top_k >= vocab_size:
        return ALL
    return next((number for number in CANDIDATES if number >= params.top_k), ALL)


def _adjusted(
    logits_BV: Tensor, choosers: Sequence[Chooser], forbidden: Mapping[int, Tensor]
) -> Tensor:
    adjusted_BV = logits_BV.clone()
    for row, chooser in enumerate(choosers):
        if not chooser.is_plain:
            chooser.adjust(adjusted_BV[row])
    for row, forbidden_V in forbidden.items():
        mask_V = forbidden_V.to(adjusted_BV.device, non_blocking=True)
        adjusted_BV[row].masked_fill_(mask_V, -torch.inf)
    return adjusted_BV


def _choose(logits_BV: Tensor, choosers: Sequence[Chooser]) -> Tensor:
    """A token a row: rows that are chosen for in one way are chosen for together."""
    ways = {chooser.way for chooser in choosers}
    if len(ways) == 1:
        return _choose_alike(logits_BV, choosers)
    tokens_B = torch.empty(len(choosers), dtype=torch.int64, device=logits_BV.device)
    for way in ways:
        rows = [row for row, chooser in enumerate(choosers) if chooser.way == way]
        rows_N = send(rows, logits_BV.device)
        tokens_B[rows_N] = _choose_alike(logits_BV[rows_N], [choosers[row] for row in rows])
    return tokens_B


def _choose_alike(logits_BV: Tensor, choosers: Sequence[Chooser]) -> Tensor:
    way = choosers[0].way
    if way == GREEDY:
        return most_likely(logits_BV)
    all_params = [chooser.params for chooser in choosers]
    temperature_B1, chance_B1 = _columns(
        logits_BV.device,
        [params.temperature for params in all_params],
        [min(chooser.chance, MAX_CHANCE) for chooser in choosers],
    )
    if way == ALL:
        weights_BV = _weights_of_all(logits_BV / temperature_B1, all_params)
        return pick(weights_BV, chance_B1)
    values_BC, tokens_BC = largest(logits_BV, way)
    weights_BC = _weights_of_candidates(values_BC / temperature_B1, all_params)
    # In the order of their ids: which of equals topk names first is nobody's promise.
    tokens_BC, order_BC = tokens_BC.sort(dim=-1)
    return tokens_BC.gather(1, pick(weights_BC.gather(1, order_BC), chance_B1)[:, None]).squeeze(1)


def _weights_of_candidates(scaled_BC: Tensor, all_params: Sequence[SamplingParams]) -> Tensor:
    """Probabilities of candidates in falling order, 0 for those that may not be chosen."""
    top_k = [params.top_k or 0 for params in all_params]
    if min(top_k) < scaled_BC.size(1):
        [top_k_B1] = _columns(scaled_BC.device, top_k)
        places_C = torch.arange(scaled_BC.size(1), device=scaled_BC.device)
        scaled_BC = scaled_BC.masked_fill(places_C >= top_k_B1, -torch.inf)
    weights_BC = scaled_BC.softmax(dim=-1)
    top_p = [params.top_p for params in all_params]
    if min(top_p) < 1.0:
        [top_p_B1] = _columns(scaled_BC.device, top_p)
        # Who is as likely as the last that is needed stays too.
        weights_BC = weights_BC * (weights_BC >= least_needed(weights_BC, top_p_B1))
    return _at_least_min_p(weights_BC, all_params)


def _weights_of_all(scaled_BV: Tensor, all_params: Sequence[SamplingParams]) -> Tensor:
    """Probabilities of all tokens, 0 for those that may not be chosen."""
    for row, params in enumerate(all_params):
        if params.top_k is not None and params.top_k < scaled_BV.size(1):
            keep_largest(scaled_BV[row], params.top_k)
    weights_BV = scaled_BV.softmax(dim=-1)
    rows = [row for row, params in enumerate(all_params) if params.top_p < 1.0]
    if rows:
        [top_p_N1] = _columns(scaled_BV.device, [all_params[row].top_p for row in rows])
        rows_N = send(rows, scaled_BV.device)
        weights_BV[rows_N] = keep_nucleus(weights_BV[rows_N], scaled_BV[rows_N], top_p_N1)
    return _at_least_min_p(weights_BV, all_params)


def _at_least_min_p(weights_BC: Tensor, all_params: Sequence[SamplingParams]) -> Tensor:
    min_p = [params.min_p for params in all_params]
    if not any(min_p):
        return weights_BC
    [min_p_B1] = _columns(weights_BC.device, min_p)
    return weights_BC * (weights_BC >= min_p_B1 * weights_BC.amax(dim=-1, keepdim=True))


def _columns(device: torch.device, *numbers: Sequence[float]) -> list[Tensor]:
    """A column per list of numbers, sent to the device together."""
    table = torch.tensor(numbers, dtype=torch.float32)[..., None]
    return list(table.to(device, non_blocking=True).unbind())


class _History:
    """What a row has said, on the device: counted by token, and one after the other."""

    def __init__(
        self,
        params: SamplingParams,
        prompt_tokens: Sequence[int],
        vocab_size: int,
        device: torch.device | str,
    ) -> None:
        self.params = params
        said = list(dict.fromkeys(prompt_tokens))
        self.num_said = len(said)
        self.said_N = torch.tensor(said, dtype=torch.int64, device=device)
        self.counts_V = torch.zeros(vocab_size, device=device)  # in the answer alone

    def add(self, token: int | Tensor) -> None:
        """Note a token of the answer."""
        if self.num_said == len(self.said_N):
            self.said_N = torch.cat([self.said_N, self.said_N.new_zeros(self.num_said + 64)])
        self.said_N[self.num_said] = token
        here = slice(self.num_said, self.num_said + 1)
        self.counts_V.index_add_(0, self.said_N[here], self.counts_V.new_ones(1))
        self.num_said += 1

    def apply(self, logits_V: Tensor) -> None:
        """Change what was said, in place; a token said twice is written twice, with one value."""
        said_N = self.said_N[: self.num_said]
        values_N, counts_N = logits_V[said_N], self.counts_V[said_N]
        factor, params = self.params.repetition_penalty, self.params
        values_N = torch.where(values_N > 0, values_N / factor, values_N * factor)
        values_N -= params.frequency_penalty * counts_N + params.presence_penalty * (counts_N > 0)
        logits_V[said_N] = values_N

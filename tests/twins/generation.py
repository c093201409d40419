"""Generation without a cache: everything is computed again for every token.  Slow and plain."""

from collections.abc import Callable, Sequence

import torch

from nanochat.engine.request import TokenEvent
from nanochat.model.gpt import GPT
from tests.conftest import LOGITS_ATOL

# Below twice the tolerance of a logit two correct programs may choose differently.
MARGIN = 2 * LOGITS_ATOL


@torch.inference_mode()
def logits_of(model: GPT, tokens: Sequence[int]) -> torch.Tensor:
    """The logits after each token."""
    return model(torch.tensor([list(tokens)]))[0]


def assert_greedy(model: GPT, prompt: Sequence[int], generated: Sequence[int]) -> None:
    """Each token is the likeliest after those before it, or so close that rounding decides."""
    logits = logits_of(model, [*prompt, *generated])
    for place, token in enumerate(generated, start=len(prompt) - 1):
        best = logits[place].max()
        assert best - logits[place, token] <= MARGIN, f"token {place - len(prompt) + 1}: {token}"


def assert_logprobs(model: GPT, prompt: Sequence[int], events: Sequence[TokenEvent]) -> None:
    """Each token of one answer is as likely as the model says."""
    tokens = [event.token for event in events]
    logprobs = logits_of(model, [*prompt, *tokens]).log_softmax(-1)
    for place, event in enumerate(events, start=len(prompt) - 1):
        away = abs(float(logprobs[place, event.token]) - event.logprob)
        assert away <= LOGITS_ATOL, f"token {place - len(prompt) + 1}: {away}"


def assert_follows(
    logits_of: Callable[[Sequence[int]], torch.Tensor],
    prompt: Sequence[int],
    events: Sequence[TokenEvent],
    tolerance: float,
) -> None:
    """Each token of a greedy answer is the likeliest, and as likely as it is told to be, to a share
    of the spread of these logits."""
    tokens = [event.token for event in events]
    logits = logits_of([*prompt, *tokens]).float()
    logprobs, most = logits.log_softmax(-1), tolerance * float(logits.std())
    for place, event in enumerate(events, start=len(prompt) - 1):
        short = float(logits[place].max() - logits[place, event.token])
        away = abs(float(logprobs[place, event.token]) - event.logprob)
        assert max(short, away) <= most, f"token {place - len(prompt) + 1}: {short}, {away}, {most}"

"""Generation without a cache: everything is computed again for every token.  Slow and plain."""

from collections.abc import Sequence

import torch

from nanochat.model.gpt import GPT

MARGIN = (
    2e-4  # twice the tolerance of a logit: below it, two correct programs may choose differently
)


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

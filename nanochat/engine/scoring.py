"""How likely texts are.   in: a text, a place in it   out: Likelihood   who calls: engine.py, evals

Read next: engine.py (score), steps.py (where it is measured).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from nanochat.engine.request import PromptLogprob
from nanochat.engine.sequence import Sequence

__all__ = ["Likelihood", "Scoring", "likelihood_of"]


class Likelihood(NamedTuple):
    """How likely the last tokens of a text are, each after all before it."""

    logprobs: list[float]
    is_greedy: list[bool]
    """Whether each was the likeliest."""


@dataclass(eq=False, slots=True)
class Scoring:
    """A text whose likelihood is asked for."""

    sequence: Sequence
    done: Callable[[Likelihood | Exception], None]


def likelihood_of(known: list[PromptLogprob]) -> Likelihood:
    """Of the tokens that were asked about; the first entry is the text's own first token."""
    scored = known[1:]
    return Likelihood(
        [each.logprob or 0.0 for each in scored],
        [each.token == each.top_logprobs[0][0] for each in scored],
    )

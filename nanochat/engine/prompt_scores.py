"""How likely the tokens of prompts were.   in: a step's figures   out: a whole prompt's
who calls: engine.py

A prompt is read in pieces, and once more from the start when it has had to give way; its figures
are kept until all of them are known.
Read next: steps.py (where they are measured), scoring.py (texts that are scored and not answered).
"""

from torch import Tensor

from nanochat.engine.request import PromptLogprob
from nanochat.engine.sequence import Sequence
from nanochat.engine.steps import Scored

__all__ = ["PromptScores"]


class PromptScores:
    """The figures of every prompt that is being read."""

    def __init__(self) -> None:
        self._known: dict[Sequence, list[PromptLogprob]] = {}

    def note(self, scored: Scored, place: int, num_top: int) -> None:
        """Keep what a step has brought of one prompt, which is scored from `place` on."""
        sequence = scored.sequence
        known = self._known.setdefault(sequence, [PromptLogprob(sequence.tokens[0], None)])
        # What was read again after giving way is known already.
        num_known = max(0, place + len(known) - 1 - scored.first)
        logprobs = scored.logprobs_N.tolist()[num_known:]
        start = scored.first + num_known
        tokens = sequence.tokens[start : start + len(logprobs)]
        tops = _tops(scored.top_tokens_NC[num_known:], scored.top_logprobs_NC[num_known:])
        known += [
            PromptLogprob(token, logprob, top[:num_top])
            for token, logprob, top in zip(tokens, logprobs, tops, strict=True)
        ]

    def take(self, sequence: Sequence) -> list[PromptLogprob]:
        """All that is known of a prompt, which is forgotten; nothing where it is not scored."""
        return self._known.pop(sequence, [])


def _tops(tokens_NC: Tensor, logprobs_NC: Tensor) -> list[tuple[tuple[int, float], ...]]:
    pairs = zip(tokens_NC.tolist(), logprobs_NC.tolist(), strict=True)
    return [tuple(zip(*pair, strict=True)) for pair in pairs]

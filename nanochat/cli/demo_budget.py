"""Minutes -> steps.   in: minutes, shares, a measured speed   out: how many steps a stage may take
who calls: cli/demo_story.py

What a stage took is measured, and the next one is planned from what is left and from the speed that
training really had: a machine that slows down gets a shorter training, not a longer wait.
Read next: demo_story.py.
"""

from collections.abc import Mapping

__all__ = ["Budget"]

LEAST_OF_PLANNED = 0.5


class Budget:
    """Training time that is left, and how fast the machine is."""

    def __init__(self, seconds: float, shares: Mapping[str, float], tokens_per_s: float) -> None:
        self.tokens_per_s = tokens_per_s
        self._left_s = seconds
        self._shares = dict(shares)
        total = sum(shares.values())
        self._planned_s = {stage: seconds * share / total for stage, share in shares.items()}

    def num_steps(self, stage: str, tokens_per_step: float) -> int:
        """Steps that fit into the stage's share of what is left, at least one.

        However little is left, a stage has half the time that was meant for it: a model that was
        never fine-tuned answers nothing.
        """
        seconds = self._left_s * self._shares[stage] / sum(self._shares.values())
        seconds = max(seconds, LEAST_OF_PLANNED * self._planned_s[stage])
        return max(1, int(seconds * self.tokens_per_s / tokens_per_step))

    def spent(self, stage: str, seconds: float, num_tokens: float) -> None:
        """The stage is over: it took so long for so many computed tokens."""
        del self._shares[stage]
        self._left_s = max(0.0, self._left_s - seconds)
        if seconds > 0:
            self.tokens_per_s = num_tokens / seconds

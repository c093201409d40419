"""Minutes -> steps.   in: seconds, shares, a measured speed   out: how many steps a stage may take
who calls: cli/demo_story.py

The clock is looked at before every stage, and the next one is planned from what is left and from
the speed that training really had: a machine that slows down gets a shorter training, not a longer
wait.
Read next: demo_story.py.
"""

import time
from collections.abc import Callable, Mapping

__all__ = ["Budget"]

LEAST_OF_PLANNED = 0.5
# Of the whole time, what a stage takes beside its steps: validation, saving, the examination after
# it, and after the last one the report.
BESIDE_TRAINING = {"pretrain": 0.01, "midtrain": 0.04, "sft": 0.05}


class Budget:
    """Time until everything should be over, and how fast the machine trains."""

    def __init__(
        self,
        seconds: float,
        shares: Mapping[str, float],
        tokens_per_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tokens_per_s = tokens_per_s
        self._clock, self._seconds, self._end_s = clock, seconds, clock() + seconds
        self._shares = dict(shares)
        training_s, total = seconds * (1 - self._beside()), sum(shares.values())
        self._planned_s = {stage: training_s * share / total for stage, share in shares.items()}

    def num_steps(self, stage: str, tokens_per_step: float) -> int:
        """Steps that fit into the stage's share of what is left, at least one.

        However little is left, a stage has half the time that was meant for it: a model that was
        never fine-tuned answers nothing.
        """
        left_s = self._end_s - self._clock() - self._seconds * self._beside()
        seconds = left_s * self._shares[stage] / sum(self._shares.values())
        seconds = max(seconds, LEAST_OF_PLANNED * self._planned_s[stage])
        return max(1, int(seconds * self.tokens_per_s / tokens_per_step))

    def spent(self, stage: str, seconds: float, num_tokens: float) -> None:
        """The stage is over: its steps took so long for so many computed tokens."""
        del self._shares[stage]
        if seconds > 0:
            self.tokens_per_s = num_tokens / seconds

    def _beside(self) -> float:
        """The share of the whole time that the stages still to come take beside their steps."""
        return sum(BESIDE_TRAINING[stage] for stage in self._shares)

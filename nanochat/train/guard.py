"""A run's losses -> is it still healthy?   in: a loss, was its update applied   out: Verdict
who calls: loop.py

Pure: nothing is changed here, and every rank that sees the same numbers says the same.
Read next: loop.py (what each verdict leads to).
"""

import math
import statistics
from collections import deque
from typing import Literal

__all__ = ["Guard", "Verdict"]

Verdict = Literal["healthy", "spike", "discarded", "stuck"]

WINDOW = 100  # losses that a new one is compared with
FEWEST = 20  # before so many, nothing is called a spike
SIGMAS = 6.0


class Guard:
    """Watches the losses of one run.

    healthy    nothing to say
    spike      more than SIGMAS standard deviations above the mean of the last WINDOW losses
    discarded  loss or gradient was no finite number, and the update was thrown away
    stuck      the same, `max_skips` times in a row, `streak` of an earlier part of the run included
    """

    def __init__(self, max_skips: int, streak: int = 0) -> None:
        assert max_skips > 0, f"max_skips is {max_skips}"
        self._max_skips = max_skips
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._num_discarded_in_a_row = streak

    def see(self, loss: float, *, is_good: bool) -> Verdict:
        """What the newest loss means."""
        if not is_good:
            self._num_discarded_in_a_row += 1
            return "stuck" if self._num_discarded_in_a_row >= self._max_skips else "discarded"
        self._num_discarded_in_a_row = 0
        is_spike = self.sigmas(loss) > SIGMAS
        self._recent.append(loss)
        return "spike" if is_spike else "healthy"

    def sigmas(self, loss: float) -> float:
        """Standard deviations of the recent losses that this one lies above their mean; 0 while
        there are too few."""
        if len(self._recent) < FEWEST:
            return 0.0
        deviation = statistics.pstdev(self._recent)
        above = loss - statistics.fmean(self._recent)
        return above / deviation if deviation > 0 else math.inf if above > 0 else 0.0

    def forget(self) -> None:
        """Training went back: what was seen says nothing about what comes."""
        self._recent.clear()
        self._num_discarded_in_a_row = 0

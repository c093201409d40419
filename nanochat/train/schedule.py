"""How rates move over a run.   in: a step   out: a multiplier   who calls: loop.py   (pure, no
torch)

Source: karpathy/nanochat scripts/base_train.py and scripts/chat_sft.py at 92d63d4.
Read next: plan.py.
"""

import math
from dataclasses import dataclass

__all__ = ["Schedule"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """Warm-up, constant, linear decay; Muon's momentum and decay beside them.

    Units: steps, counted from 0; fractions of the run's `num_steps`.
    """

    num_steps: int
    warmup_steps: int = 40
    decay_fraction: float = 0.65
    """The last share of the run, over which the rate falls linearly."""
    final_lr: float = 0.05
    """Multiplier at the end of the decay."""
    peak_lr: float = 1.0
    """Multiplier between warm-up and decay."""
    momentum_warmup_steps: int = 400
    momentum: tuple[float, float, float] = (0.85, 0.97, 0.90)
    """Muon's at the start, after its warm-up, and at the end of the run."""
    weight_decay: float = 0.0
    """Muon's at the start; falls to zero over the run as half a cosine."""

    @property
    def decay_steps(self) -> int:
        """Steps over which the rate falls."""
        return round(self.decay_fraction * self.num_steps)

    def lr_at(self, step: int) -> float:
        """The multiplier of all learning rates."""
        if step < self.warmup_steps:
            return self.peak_lr * (step + 1) / self.warmup_steps
        if step <= self.num_steps - self.decay_steps or self.decay_steps == 0:
            return self.peak_lr
        left = (self.num_steps - step) / self.decay_steps
        return self.peak_lr * (left + (1 - left) * self.final_lr)

    def momentum_at(self, step: int) -> float:
        """Muon's momentum."""
        start, peak, end = self.momentum
        if step < self.momentum_warmup_steps:
            share = step / self.momentum_warmup_steps
            return (1 - share) * start + share * peak
        decay_start = self.num_steps - self.decay_steps
        if step < decay_start or self.decay_steps == 0:
            return peak
        share = (step - decay_start) / self.decay_steps
        return (1 - share) * peak + share * end

    def weight_decay_at(self, step: int) -> float:
        """Muon's weight decay."""
        return self.weight_decay * 0.5 * (1 + math.cos(math.pi * step / max(1, self.num_steps)))

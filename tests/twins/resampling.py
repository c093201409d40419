"""Slow truth for evals/intervals.py: every value drawn by itself, every coin tossed by itself."""

import itertools
import random
from collections.abc import Sequence

__all__ = ["composite_resamples", "exact_bootstrap", "sign_test"]


def composite_resamples(
    tasks: Sequence[tuple[Sequence[float], float]], num_resamples: int, seed: int
) -> list[float]:
    """Mean centred accuracies of (scores, baseline) tasks, each question drawn alone; sorted."""
    rng = random.Random(seed)
    values = []
    for _ in range(num_resamples):
        total = 0.0
        for scores, baseline in tasks:
            drawn = [scores[rng.randrange(len(scores))] for _ in scores]
            total += (sum(drawn) / len(drawn) - baseline) / (1 - baseline)
        values.append(total / len(tasks))
    return sorted(values)


def exact_bootstrap(scores: Sequence[float]) -> list[float]:
    """The mean of every one of the n^n ways to draw n of n scores, sorted."""
    return sorted(
        sum(drawn) / len(scores) for drawn in itertools.product(scores, repeat=len(scores))
    )


def sign_test(only_first: int, only_second: int) -> float:
    """The share of all ways n coins can fall that are at least as lopsided as this."""
    tosses = only_first + only_second
    lopsided = abs(only_first - only_second)
    ways = list(itertools.product((0, 1), repeat=tosses))
    return sum(abs(tosses - 2 * sum(way)) >= lopsided for way in ways) / len(ways)

"""Slow truth for evals/intervals.py: each value drawn, coin tossed and sign tried by itself."""

import itertools
import random
from collections.abc import Sequence

__all__ = ["composite_resamples", "exact_bootstrap", "flip_test", "sign_test"]


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


def flip_test(weighted: Sequence[float]) -> float:
    """The share of all signs of these gains whose sum is at least as far from 0 as theirs."""
    reach = abs(sum(weighted)) - 1e-9
    ways = list(itertools.product((-1, 1), repeat=len(weighted)))
    far = [abs(sum(s * gain for s, gain in zip(way, weighted, strict=True))) for way in ways]
    return sum(each >= reach for each in far) / len(ways)

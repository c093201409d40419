"""Intervals and p-values: known by hand, equal to brute force, honest about how often they miss."""

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common.errors import EvalError
from nanochat.evals import intervals
from nanochat.evals.intervals import (
    Interval,
    PairedTest,
    ScoredTask,
    bootstrap_composite,
    bootstrap_mean,
    holm,
    mcnemar,
    paired_bootstrap,
    paired_ratio,
    wilson,
)
from tests.twins.resampling import composite_resamples, exact_bootstrap, flip_test, sign_test

pytestmark = pytest.mark.req("FR-043", "US-4")


@pytest.mark.parametrize(
    ("correct", "count", "low", "high"),
    [
        # By hand, z = 1.959964: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)
        (7, 10, 0.396778, 0.892209),
        (0, 10, 0.0, 0.277533),
        (10, 10, 0.722467, 1.0),
        (50, 100, 0.403832, 0.596168),
        (1, 1, 0.206549, 1.0),
    ],
)
def test_wilson_by_hand(correct: int, count: int, low: float, high: float) -> None:
    assert wilson(correct, count) == pytest.approx((low, high), abs=1e-6)


@given(count=st.integers(1, 3000), data=st.data())
def test_wilson_holds_its_share_and_solves_its_equation(count: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, count))
    low, high = wilson(correct, count)
    share = correct / count
    assert 0 <= low <= share <= high <= 1 and low < high
    mirrored = wilson(count - correct, count)
    assert (1 - high, 1 - low) == pytest.approx(mirrored, abs=1e-12)
    for end in (low, high):  # the ends are the shares from which this one is z deviations away
        if 0 < end < 1:
            assert abs(share - end) == pytest.approx(
                1.959963985 * math.sqrt(end * (1 - end) / count), rel=1e-6
            )


def test_wilson_covers_what_it_promises() -> None:
    """The probability that it covers, exactly, over the binomial: 95% on average."""
    count = 40
    covered = []
    for share in np.linspace(0.05, 0.95, 19):
        probabilities = [
            math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(count + 1)
        ]
        covered.append(
            sum(p for k, p in enumerate(probabilities) if _holds(wilson(k, count), share))
        )
    assert sum(covered) / len(covered) == pytest.approx(0.95, abs=0.01)
    assert min(covered) > 0.9


def _holds(interval: Interval, value: float) -> bool:
    return interval.low <= value <= interval.high


def test_a_bootstrap_is_what_all_ways_to_draw_give() -> None:
    scores = [0.0, 0.25, 1.0, 1.0, 0.5]
    every = exact_bootstrap(scores)  # 3,125 ways
    expected = np.percentile(every, [2.5, 97.5])
    found = bootstrap_mean(scores, num_resamples=40_000, seed=3)
    assert found == pytest.approx(expected, abs=0.051)  # means lie 0.05 apart
    half = bootstrap_mean(scores, 0.5, num_resamples=40_000)
    assert half == pytest.approx(np.percentile(every, [25, 75]), abs=0.051)


def test_verdicts_agree_with_the_normal_distribution_and_with_wilson() -> None:
    verdicts = [1.0] * 600 + [0.0] * 400
    low, high = bootstrap_mean(verdicts)
    reach = 1.96 * math.sqrt(0.6 * 0.4 / 1000)
    assert (low, high) == pytest.approx((0.6 - reach, 0.6 + reach), abs=0.002)
    assert (low, high) == pytest.approx(wilson(600, 1000), abs=0.002)


def test_a_composite_agrees_with_its_twin() -> None:
    rng = random.Random(1)
    tasks = [
        ([float(rng.random() < share) for _ in range(count)], baseline)
        for share, count, baseline in ((0.4, 60, 0.25), (0.1, 30, 0.0), (0.7, 45, 0.62))
    ]
    slow = composite_resamples(tasks, 4000, seed=5)
    ours = bootstrap_composite([ScoredTask(*task) for task in tasks])
    width = slow[3900] - slow[100]
    assert ours == pytest.approx((slow[100], slow[3900]), abs=0.05 * width)
    assert bootstrap_composite([ScoredTask(*task) for task in tasks]) == ours
    assert bootstrap_composite([ScoredTask(*task) for task in tasks], seed=1) != ours


def test_a_composite_of_one_is_a_mean() -> None:
    scores = [1.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    assert ScoredTask(scores).centered == pytest.approx(4 / 6)
    assert ScoredTask(scores, 0.5).centered == pytest.approx(1 / 3)
    assert bootstrap_composite([ScoredTask(scores)]) == bootstrap_mean(scores)


def test_memory_stays_small_where_every_score_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = [index / 500 for index in range(500)]
    whole = bootstrap_mean(scores, num_resamples=300)
    monkeypatch.setattr(intervals, "CHUNK_CELLS", 500 * 7)
    assert bootstrap_mean(scores, num_resamples=300) == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 0, 2 / 32),
        (0, 6, 2 / 64),
        (1, 8, 2 * (1 + 9) / 512),
        (3, 3, 1.0),
    ],
)
def test_mcnemar_by_hand(first: int, second: int, p: float) -> None:
    assert mcnemar(first, second) == p == mcnemar(second, first)


@given(first=st.integers(0, 7), second=st.integers(0, 7))
def test_mcnemar_counts_coins(first: int, second: int) -> None:
    assert mcnemar(first, second) == pytest.approx(sign_test(first, second), abs=1e-15)


def test_mcnemar_of_many() -> None:
    z = (5200 - 4800 - 1) / math.sqrt(10_000)  # with continuity correction
    assert mcnemar(4800, 5200) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.01)
    assert mcnemar(0, 14_042) == 0.0  # below the smallest float


def test_a_paired_test_finds_what_is_there_and_no_more() -> None:
    rng = random.Random(2)
    hard = [rng.random() for _ in range(400)]  # what is hard is hard for both
    first = [float(rng.random() > difficulty) for difficulty in hard]
    better = [1.0 if verdict or rng.random() < 0.1 else 0.0 for verdict in first]
    test = paired_bootstrap([ScoredTask(first, 0.25)], [ScoredTask(better, 0.25)])
    assert test.difference == pytest.approx((sum(better) - sum(first)) / 400 / 0.75)
    assert 0 < test.interval.low < test.difference < test.interval.high
    assert test.p_value < 0.001
    back = paired_bootstrap([ScoredTask(better, 0.25)], [ScoredTask(first, 0.25)])
    assert back.difference == -test.difference and back.p_value < 0.001
    same = paired_bootstrap([ScoredTask(first)], [ScoredTask(first)])
    assert same == PairedTest(0.0, Interval(0.0, 0.0), 1.0)


def test_a_paired_test_of_one_task_agrees_with_mcnemar() -> None:
    first = [1.0] * 100 + [0.0] * 100
    second = [1.0] * 88 + [0.0] * 12 + [1.0] * 24 + [0.0] * 76
    p_value = paired_bootstrap([ScoredTask(first)], [ScoredTask(second)]).p_value
    assert p_value == pytest.approx(mcnemar(12, 24), abs=0.02)


def test_bits_over_bytes() -> None:
    sizes = [float(100 + index) for index in range(50)]
    first = [size * (1.0 + 0.01 * (index % 7)) for index, size in enumerate(sizes)]
    second = [bits * 0.98 + (index % 3) for index, bits in enumerate(first)]
    test = paired_ratio(first, second, sizes)
    assert test.difference == pytest.approx((sum(second) - sum(first)) / sum(sizes))
    assert test.interval.low < test.difference < test.interval.high < 0
    assert test.p_value < 0.01
    equal = [1.0] * 4
    ratio = paired_ratio([1.0, 0.0, 1.0, 0.0], equal, [2.0] * 4)
    assert ratio.difference == 0.25
    assert ratio.interval == pytest.approx([end / 2 for end in bootstrap_mean([0, 1, 0, 1])])


def test_where_nothing_differs_few_tests_say_so() -> None:
    """600 pairs of equally good models on two tasks: 3% to 4% below 0.05, as sums are whole."""
    rng = random.Random(4)
    below = 0
    for trial in range(600):
        pair = [
            [ScoredTask([float(rng.random() < 0.5) for _ in range(80)], 0.25) for _ in range(2)]
            for _ in range(2)
        ]
        below += paired_bootstrap(*pair, num_resamples=500, seed=trial).p_value < 0.05
    assert 6 <= below <= 45  # 21 expected; chance leaves this range once in ten thousand


def test_few_questions_show_nothing_however_little_a_resample_varies() -> None:
    """The bootstrap alone gave p = 0.0001 for all of these."""
    for count in range(1, 6):
        first, second = [ScoredTask([0.5] * count)], [ScoredTask([0.375] * count)]
        assert paired_bootstrap(first, second).p_value == 2 / 2**count > 0.05
    six = paired_bootstrap([ScoredTask([0.5] * 6)], [ScoredTask([0.375] * 6)])
    assert six.p_value == 2 / 2**6 and six.interval == (-0.125, -0.125)
    one_question_each = [ScoredTask([1.0], 0.25) for _ in range(22)]
    one_differs = [ScoredTask([0.0], 0.25), *one_question_each[1:]]
    core = paired_bootstrap(one_question_each, one_differs)
    assert core.p_value == 1.0 and core.difference == pytest.approx(-1 / 0.75 / 22)
    document = paired_ratio([100.0], [100.00002], [100.0])
    assert document.p_value == 1.0 and document.difference == pytest.approx(2e-7)


@pytest.mark.parametrize("count", [2, 3, 5, 10, 20])
def test_equally_good_models_of_few_questions_and_scores_between(count: int) -> None:
    """Of 200 pairs the bootstrap alone told apart 40%, 22%, 14% and 9% at 2, 3, 5 and 10."""
    rng = random.Random(count)
    below = 0
    for trial in range(200):
        pair = [[ScoredTask([rng.randrange(9) / 8 for _ in range(count)])] for _ in range(2)]
        below += paired_bootstrap(*pair, num_resamples=500, seed=trial).p_value <= 0.05
    assert below <= 20  # 10 expected; chance goes beyond once in a thousand


@given(data=st.data())
def test_signs_are_flipped_as_the_composite_weighs_them(data: st.DataObject) -> None:
    shares = st.sampled_from([0.0, 0.125, 0.5, 1.0])
    shapes = data.draw(
        st.lists(st.tuples(st.integers(1, 4), st.sampled_from([0, 0.25])), max_size=2)
    )
    first, second, weighted = [], [], []
    for count, baseline in [(2, 0.5), *shapes]:
        scores = [data.draw(st.lists(shares, min_size=count, max_size=count)) for _ in range(2)]
        first.append(ScoredTask(scores[0], baseline))
        second.append(ScoredTask(scores[1], baseline))
        weighted += [(b - a) / count / (1 - baseline) for a, b in zip(*scores, strict=True)]
    found = paired_bootstrap(first, second, num_resamples=200)
    assert found.p_value >= flip_test(weighted) - 1e-12
    if found.p_value <= 0.05:
        assert not found.interval.low <= 0 <= found.interval.high


def test_of_many_questions_some_signs_are_drawn() -> None:
    gains = [0.1 * (index - 4) for index in range(16)]  # 65,536 ways
    test = paired_bootstrap([ScoredTask([0.0] * 16)], [ScoredTask(gains)])
    assert test.p_value == pytest.approx(flip_test(gains), abs=0.006)
    sizes = [100.0] * 2000
    bits = [100.0 + index % 7 for index in range(2000)]
    less = paired_ratio(bits, [each - 1 + index % 2 for index, each in enumerate(bits)], sizes)
    assert less.difference == pytest.approx(-0.005) and less.p_value < 0.001


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


@given(values=st.lists(st.floats(0, 1), max_size=8))
def test_holm_never_makes_anything_surer(values: list[float]) -> None:
    corrected = holm(values)
    assert all(after >= before for before, after in zip(values, corrected, strict=True))
    assert all(after <= 1 for after in corrected)
    order = sorted(range(len(values)), key=values.__getitem__)
    assert [corrected[i] for i in order] == sorted(corrected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wilson(3, 2), "3 right of 2"),
        (lambda: wilson(0, 0), "at least one question"),
        (lambda: wilson(1, 2, 1.0), "confidence is 1.0"),
        (lambda: bootstrap_mean([]), "0 scores"),
        (lambda: bootstrap_mean([math.nan]), "only finite numbers"),
        (lambda: bootstrap_composite([]), "no tasks"),
        (lambda: mcnemar(-1, 0), "none below 0"),
        (lambda: paired_bootstrap([ScoredTask([1.0])], []), "1 tasks against 0"),
        (
            lambda: paired_bootstrap([ScoredTask([1.0])], [ScoredTask([1.0, 0.0])]),
            "1 questions and baseline 0.0 against 2",
        ),
        (lambda: paired_ratio([1.0], [1.0], []), "1 and 1 sums over 0 sizes"),
    ],
)
def test_what_cannot_be_computed_is_refused(call: "object", message: str) -> None:
    with pytest.raises(EvalError, match=message):
        call()  # type: ignore[operator]

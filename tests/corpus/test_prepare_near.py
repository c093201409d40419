"""Signatures estimate Jaccard's measure; bands find what is alike; groups keep the first."""

import random
import tracemalloc

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.corpus.prepare.duplicates import alike_pairs, equal_pairs, joined
from nanochat.corpus.prepare.near import (
    NUM_BINS,
    SHINGLE_WORDS,
    agreement,
    band_keys,
    band_rows,
    signatures_of,
)
from nanochat.corpus.prepare.words import words_of

pytestmark = pytest.mark.req("FR-032")


def signatures(texts: list[str]) -> npt.NDArray[np.uint16]:
    return signatures_of(words_of([text.encode() for text in texts]))[0]


def jaccard(first: str, second: str) -> float:
    """The truth, slowly."""
    sets = []
    for text in (first, second):
        words = text.split()
        size = min(SHINGLE_WORDS, len(words))
        sets.append({tuple(words[i : i + size]) for i in range(len(words) - size + 1)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def changed(text: str, share: float, dice: random.Random) -> str:
    words = text.split()
    for place in dice.sample(range(len(words)), round(share * len(words))):
        words[place] = f"new{dice.randrange(10**6)}"
    return " ".join(words)


def written(num_words: int, dice: random.Random) -> str:
    return " ".join(f"w{dice.randrange(5000)}" for _ in range(num_words))


@pytest.mark.parametrize("num_words", [40, 100, 400, 3000])
def test_the_estimate_is_near_the_truth(num_words: int) -> None:
    dice = random.Random(num_words)
    firsts = [written(num_words, dice) for _ in range(60)]
    seconds = [changed(text, dice.choice([0.0, 0.01, 0.03, 0.1]), dice) for text in firsts]
    truth = np.array([jaccard(*pair) for pair in zip(firsts, seconds, strict=True)])
    estimate = agreement(signatures(firsts), signatures(seconds))
    # Bins that took another's value say the same again: a short text's estimate is that of fewer.
    filled = NUM_BINS * (1 - np.exp(-num_words / NUM_BINS))
    deviation = np.sqrt(truth * (1 - truth) / filled)
    assert (np.abs(estimate - truth) <= 4.5 * deviation + 1e-9).all()
    assert abs(float((estimate - truth).mean())) < 0.02  # and not to one side


def test_texts_of_few_words() -> None:
    texts = [
        "",
        "!",
        "one",
        "One.",
        "one two three four",
        "one two three FOUR",
        "four three two one",
    ]
    found, has_words = signatures_of(words_of([text.encode() for text in texts]))
    assert has_words.tolist() == [False, False, True, True, True, True, True]
    alike = agreement(found[[2, 4, 4, 2]], found[[3, 5, 6, 4]])
    assert alike.tolist()[:2] == [1.0, 1.0]
    assert alike[2] < 0.2 and alike[3] < 0.2


def test_a_text_has_the_signature_it_has_alone() -> None:
    dice = random.Random(5)
    texts = [written(dice.randrange(1, 300), dice) for _ in range(30)]
    alone = np.concatenate([signatures([text]) for text in texts])
    assert (signatures(texts) == alone).all()


def test_bands_find_nearly_all_pairs_at_the_threshold() -> None:
    assert band_rows(0.8) == 6  # 21 bands
    assert band_rows(1.0) == 16
    assert band_rows(0.3) == 2
    dice = np.random.default_rng(1)
    num_pairs, threshold = 4000, 0.8
    first = dice.integers(0, 1 << 16, (num_pairs, NUM_BINS)).astype(np.uint16)
    second = first.copy()
    differs = dice.random((num_pairs, NUM_BINS)) > threshold
    second[differs] = dice.integers(0, 1 << 16, int(differs.sum())).astype(np.uint16)
    rows = band_rows(threshold)
    is_found = (band_keys(first, rows) == band_keys(second, rows)).any(axis=0)
    assert band_keys(first, rows).shape == (NUM_BINS // rows, num_pairs)
    assert is_found.mean() > 0.99
    strangers = band_keys(first, rows) == np.roll(band_keys(first, rows), 1, axis=1)
    assert not strangers.any()


def test_equal_hashes_go_with_the_first_that_has_them() -> None:
    hashes = np.array([[1, 1], [2, 2], [1, 1], [1, 2], [1, 1], [2, 2]], np.uint64)
    numbers = np.array([10, 20, 30, 40, 50, 60])
    assert sorted(map(tuple, equal_pairs(hashes, numbers).tolist())) == [
        (30, 10),
        (50, 10),
        (60, 20),
    ]
    assert equal_pairs(hashes[:0], numbers[:0]).shape == (0, 2)


def test_only_what_is_alike_enough_is_a_pair() -> None:
    dice = random.Random(3)
    text = written(300, dice)
    texts = [text, changed(text, 0.01, dice), written(300, dice), changed(text, 0.3, dice)]
    found = signatures(texts)
    keys = np.zeros(4, np.uint64)  # as if all of them had met in a band
    pairs, alike = alike_pairs(keys, np.arange(4), lambda numbers: found[numbers], 0.8)
    assert pairs.tolist() == [[1, 0]]
    assert alike.tolist() == agreement(found[[1]], found[[0]]).tolist()
    none, _ = alike_pairs(keys[:0], np.arange(0), lambda numbers: found[numbers], 0.8)
    assert none.shape == (0, 2)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=40), st.randoms())
def test_groups_are_what_pairs_join(pairs: list[tuple[int, int]], dice: random.Random) -> None:
    truth = list(range(31))
    for one, other in pairs:
        low, high = sorted((truth[one], truth[other]))
        truth = [low if each == high else each for each in truth]
    dice.shuffle(pairs)
    cut = dice.randrange(len(pairs) + 1)
    first = np.arange(31)
    for some in (pairs[:cut], pairs[cut:]):  # band after band
        joined(first, np.array(some, np.int64).reshape(-1, 2))
    assert first.tolist() == truth


def test_a_long_row_of_likenesses_is_one_group() -> None:
    numbers = np.random.default_rng(0).permutation(5000)
    first = np.arange(5000)
    joined(first, np.stack([numbers[1:], numbers[:-1]], axis=1))
    assert not first.any()


def test_memory_is_as_stated() -> None:
    num_texts = 200_000
    dice = np.random.default_rng(0)
    hashes = dice.integers(0, 1 << 63, (num_texts, 2)).astype(np.uint64)
    numbers = np.arange(num_texts)
    peaks = []
    for work in (
        lambda: equal_pairs(hashes, numbers),
        lambda: alike_pairs(hashes[:, 0], numbers, lambda _: pytest.fail("nothing is alike"), 0.8),
    ):
        tracemalloc.start()
        work()
        peaks.append(tracemalloc.get_traced_memory()[1] / num_texts)
        tracemalloc.stop()
    assert peaks[0] <= 50 and peaks[1] <= 42, f"{peaks} bytes a text"

"""Words as numbers: what is one word, what is the same word, runs of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.corpus.prepare.words import Words, mixed, words_of

pytestmark = pytest.mark.req("FR-032")


def words(*texts: str) -> Words:
    return words_of([text.encode() for text in texts])


def hashes(text: str) -> list[int]:
    return words(text).hashes.tolist()


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("Hello, World!", "hello world"),
        ("don\u2019t \u201cstop\u201d", "don't stop"),
        ("20\u00b0 \u00abwarm\u00bb \u2192 caf\u00e9", "20 warm caf\u00e9"),
        ("so\u2014on\u2026 and-on", "so on and on"),
        ("one\n\n\ttwo  three", "one two three"),
        ("(2+2)=4", "2 2 4"),
    ],
)
def test_case_and_punctuation_do_not_matter(text: str, same: str) -> None:
    assert hashes(text) == hashes(same)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        (" .,;! ", 0),
        ("word", 1),
        ("\u00fcber stra\u00dfe", 2),
        ("\u4e2d\u6587\u53e5\u5b50", 4),
        ("\ud55c\uad6d\uc5b4 word \u4e2d", 5),
        ("ab\u4e2dcd \u6587", 4),  # ab, the character, what follows it, the other character
    ],
)
def test_how_many_words(text: str, count: int) -> None:
    assert len(hashes(text)) == count


def test_every_letter_of_a_word_counts() -> None:
    # Of 8 bytes, 16, and so on up to 64: read eight at a time.
    for length in (1, 7, 8, 9, 15, 16, 17, 40, 63, 64):
        word = "a" * length
        changed = {hashes(word[:i] + "b" + word[i + 1 :])[0] for i in range(length)}
        assert len(changed | set(hashes(word))) == length + 1
    assert hashes("a" * 70) != hashes("a" * 71)
    assert hashes("a" * 64 + "x") == hashes("a" * 64 + "y")  # the bound that is stated


def test_texts_keep_their_words_apart() -> None:
    both = words("one two", "", "three", ".")
    assert both.starts.tolist() == [0, 2, 2, 3]
    assert both.ends.tolist() == [2, 2, 3, 3]
    assert both.num_texts == 4
    assert both.hashes.tolist() == hashes("one two") + hashes("three")
    assert both.rows(2).tolist() == [0, -1, -1]
    assert both.rows(1).tolist() == [0, 0, 2]


@given(st.lists(st.sampled_from(["a", "b", "c", "longer"]), max_size=12), st.integers(1, 13))
def test_runs_are_equal_where_their_words_are(some: list[str], size: int) -> None:
    found = words(" ".join(some)).runs(size).tolist()
    assert len(found) == max(len(some) - size + 1, 0)
    truth = [tuple(some[start : start + size]) for start in range(len(found))]
    assert len(set(zip(found, truth, strict=True))) == len(set(truth)) == len(set(found))


def test_the_order_of_words_decides_a_run() -> None:
    import itertools

    orders = [" ".join(order) for order in itertools.permutations("abcdefg", 5)]
    found = [words(order).runs(5).tolist()[0] for order in orders]
    assert len(set(found)) == len(orders)


def test_bits_are_scattered() -> None:
    values = mixed(np.arange(4096, dtype=np.uint64))
    bits = np.unpackbits(values.view(np.uint8)).reshape(4096, 64)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.05

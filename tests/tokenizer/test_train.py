"""train.py: rustbpe learns what the definition says, and a size that cannot be had is refused."""

import threading
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nanochat.common.errors import ConfigError, DataError, TokenizerError
from nanochat.tokenizer.tokenizer import (
    GPT4_SPLIT_PATTERN,
    MAX_VOCAB_SIZE,
    SPLIT_PATTERN,
    Tokenizer,
)
from nanochat.tokenizer.train import MIN_VOCAB_SIZE, train_tokenizer
from tests.twins import bpe

STORY = (
    "The cat sat on the mat. The bat, it's said, ate 1234 figs;\n\nthe cat's hat was flat!\n" * 3
)
# Few letters: many ties, many overlaps ("aaaa"), which is where implementations differ.
TEXTS = st.lists(st.text(st.sampled_from("aaab .\n1\u00e9"), max_size=40), min_size=1, max_size=6)


def ranks_of(tokenizer: Tokenizer) -> list[bytes]:
    return [tokenizer.decode_bytes([token]) for token in range(tokenizer.vocab_size - 9)]


@pytest.mark.req("FR-026", "FR-030")
@given(texts=TEXTS)
@example(texts=["aaaaaaaa aaa aa"])
@example(texts=["abababab", "babababa"])
def test_merges_equal_the_twin(texts: list[str]) -> None:
    if not any(texts):
        return
    expected = bpe.train(texts, num_ranks=300, pattern=SPLIT_PATTERN)
    tokenizer = train_tokenizer(iter(texts), vocab_size=len(expected) + 9)
    assert ranks_of(tokenizer) == expected
    for text in texts:
        assert tokenizer.encode(text) == bpe.encode(text, expected, SPLIT_PATTERN)


@pytest.mark.req("FR-026", "FR-030")
@pytest.mark.parametrize("vocab_size", [265, 266, 280, 305])
def test_a_story_equals_the_twin_at_any_size(vocab_size: int) -> None:
    tokenizer = train_tokenizer([STORY], vocab_size)
    assert tokenizer.vocab_size == vocab_size
    assert tokenizer.bos == vocab_size - 9
    assert ranks_of(tokenizer) == bpe.train([STORY], vocab_size - 9, SPLIT_PATTERN)


@pytest.mark.req("FR-026")
def test_the_pattern_decides() -> None:
    numbers = "12345 " * 50
    two = train_tokenizer([numbers], 267)
    three = train_tokenizer([numbers], 268, pattern=GPT4_SPLIT_PATTERN)
    assert ranks_of(two)[256:] == [b"12", b"34"]
    assert ranks_of(three)[256:] == [b"12", b"45", b"123"]


@pytest.mark.req("EC-7", "FR-030")
@given(texts=TEXTS.filter(any))
def test_too_large_a_vocabulary_names_the_largest(texts: list[str]) -> None:
    largest = len(bpe.train(texts, 10**6, SPLIT_PATTERN)) + 9
    with pytest.raises(TokenizerError, match=f"vocab_size is {largest + 1}, .* at most {largest}:"):
        train_tokenizer(texts, largest + 1)
    assert train_tokenizer(texts, largest).vocab_size == largest


@pytest.mark.req("FR-030", "EC-7")
@pytest.mark.parametrize(
    ("vocab_size", "max_chars", "doc_cap", "message"),
    [
        (264, 1, 1, "^vocab_size is 264, expected 265 to 1048576$"),
        (0, 1, 1, "vocab_size is 0"),
        (10**12, 1, 1, "vocab_size is 1000000000000, expected 265 to 1048576"),
        (265, 0, 1, "^max_chars is 0, expected 1 to 2147483647$"),
        (265, 2**31, 1, "max_chars is 2147483648"),
        (265, 1, 0, "^doc_cap is 0, expected 1 to 100000$"),
        (265, 1, 10**6, "doc_cap is 1000000"),
        (1, 0, 0, "vocab_size is 1, .*; max_chars is 0, .*; doc_cap is 0, "),
    ],
)
def test_settings_out_of_range(vocab_size: int, max_chars: int, doc_cap: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train_tokenizer(["a"], vocab_size, max_chars=max_chars, doc_cap=doc_cap)
    assert (MIN_VOCAB_SIZE, MAX_VOCAB_SIZE) == (265, 2**20)


@pytest.mark.req("FR-026")
@pytest.mark.parametrize("texts", [[], [""], ["", "", ""]])
def test_an_empty_corpus_is_refused(texts: list[str]) -> None:
    with pytest.raises(DataError, match=f"corpus is empty .{len(texts)} documents"):
        train_tokenizer(texts, 265)


@pytest.mark.req("FR-026")
def test_documents_are_capped() -> None:
    capped = train_tokenizer(["ab" * 100 + "xy" * 1000], 270, doc_cap=200)
    assert capped == train_tokenizer(["ab" * 100], 270)


@pytest.mark.req("FR-026", "FR-035")
def test_reading_stops_after_the_text_that_exceeds_max_chars() -> None:
    taken = []

    def texts() -> Iterator[str]:
        for index in range(100):
            taken.append(index)
            yield "abcd " * 2

    tokenizer = train_tokenizer(texts(), 266, max_chars=30)
    assert taken == [0, 1, 2, 3], "30 characters are not more than 30; 40 are"
    assert tokenizer == train_tokenizer(["abcd " * 2] * 4, 266)


@pytest.mark.req("FR-026", "FR-035")
def test_texts_are_streamed_not_kept() -> None:
    alive = 0
    most = 0
    lock = threading.Lock()

    class Text(str):
        def __getitem__(self, key: object) -> str:  # the cap copies; the original can go
            return str(self)

        def __del__(self) -> None:
            nonlocal alive
            with lock:
                alive -= 1

    def texts() -> Iterator[str]:
        nonlocal alive, most
        for index in range(20_000):
            with lock:
                alive += 1
                most = max(most, alive)
            yield Text(f"number {index % 10} ")

    train_tokenizer(texts(), 270)
    assert most <= 2


@pytest.mark.req("FR-026")
def test_surrogates_and_long_whitespace_are_harmless() -> None:
    texts = ["\ud800" * 100_000, " " * 2_000_000, "\n" * 2_000_000]
    tokenizer = train_tokenizer(texts, 280, doc_cap=100_000)
    assert {"\ufffd".encode(), b" " * 4, b"\n" * 4} < set(ranks_of(tokenizer))


@pytest.mark.req("FR-026")
def test_what_the_reader_raises_comes_through() -> None:
    def texts() -> Iterator[str]:
        yield "some text"
        raise DataError("corpus.txt, line 2: broken")

    with pytest.raises(DataError, match="line 2: broken"):
        train_tokenizer(texts(), 265)

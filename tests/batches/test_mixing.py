"""Streams by weight: the shares are those that were asked for, and nothing else decides a row."""

from collections import Counter

import pytest
import torch

from nanochat.batches import mixing
from nanochat.batches.mixing import Ingredient, MixedStream
from nanochat.batches.stream import PackedStream
from nanochat.common.errors import ConfigError
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.batches.conftest import DocumentStore

pytestmark = pytest.mark.req("FR-033", "FR-036")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixing, "BLOCK_ROWS", 512)


@pytest.fixture
def streams(document_store: DocumentStore) -> list[PackedStream]:
    """Of a few documents of a's, of b's, of c's."""
    return [
        PackedStream(document_store([letter * (5 + index) for index in range(40)]), 24, seed=1)
        for letter in "abc"
    ]


def mixed(streams: list[PackedStream], weights: list[float], seed: int = 1) -> MixedStream:
    return MixedStream(
        [
            Ingredient(name=name, stream=stream, weight=weight)
            for name, stream, weight in zip("abc", streams, weights, strict=False)
        ],
        seed=seed,
    )


def letter_of(row: list[int]) -> str:
    (letter,) = {chr(token) for token in row if token < 256}
    return letter


def test_the_shares_are_those_of_the_weights(streams: list[PackedStream]) -> None:
    stream = mixed(streams, [5, 2, 1])
    rows = Counter(
        letter_of(row) for index in range(8) for row in stream.batch(index, 64).inputs_BT.tolist()
    )
    assert rows.total() == mixing.BLOCK_ROWS
    assert rows == {"a": 320, "b": 128, "c": 64}
    for index in range(8, 20):  # and they are mixed in every batch
        assert set(map(letter_of, stream.batch(index, 64).inputs_BT.tolist())) == set("abc")


def test_every_source_is_read_in_its_own_order(streams: list[PackedStream]) -> None:
    stream, places = mixed(streams, [5, 2, 1]), [0, 0, 0]
    for index in range(20):
        for row in stream.batch(index, 64).inputs_BT:
            owner = "abc".index(letter_of(row.tolist()))
            alone = streams[owner].batch(places[owner], 1).inputs_BT[0]
            assert torch.equal(row, alone)
            places[owner] += 1
    assert all(streams[owner].num_rows_per_epoch < places[owner] for owner in range(3))


@pytest.mark.req("FR-016")
def test_a_batch_depends_on_nothing_but_its_number(streams: list[PackedStream]) -> None:
    batches = [mixed(streams, [5, 2, 1]).batch(index, 48) for index in (0, 9, 10, 11, 30)]
    stream = mixed(streams, [5, 2, 1])
    for index, batch in reversed([*zip((0, 9, 10, 11, 30), batches, strict=True)]):
        assert torch.equal(stream.batch(index, 48).targets_BT, batch.targets_BT)
        for rank in range(3):
            part = stream.batch(index, 48, rank, 3)
            assert torch.equal(part.inputs_BT, batch.inputs_BT[rank::3])


def test_tokens_are_told_by_source(streams: list[PackedStream]) -> None:
    stream = mixed(streams, [5, 2, 1])
    for index in (0, 3, 27):
        rows = Counter(map(letter_of, stream.batch(index, 40).inputs_BT.tolist()))
        told = stream.tokens_by_source(index, 40)
        assert told == {name: 24 * rows[name] for name in "abc"}


def test_fingerprint_says_what_decides_the_batches(streams: list[PackedStream]) -> None:
    told = {
        mixed(streams, [5, 2, 1]).fingerprint,
        mixed(streams, [5, 2, 2]).fingerprint,
        mixed(streams, [5, 2, 1], seed=2).fingerprint,
        mixed(streams[::-1], [5, 2, 1]).fingerprint,
        mixed(streams[:2], [5, 2]).fingerprint,
    }
    assert len(told) == 5
    assert mixed(streams, [5.0, 2.0, 1.0]).fingerprint == mixed(streams, [5, 2, 1]).fingerprint


def test_what_cannot_be_mixed_is_refused(
    streams: list[PackedStream], document_store: DocumentStore, byte_tokenizer: Tokenizer
) -> None:
    with pytest.raises(ConfigError, match="weight is 0"):
        Ingredient(name="a", stream=streams[0], weight=0)
    with pytest.raises(ConfigError, match="a: its weight gives it not one row in 512"):
        mixed(streams, [1e-6, 1, 1])
    other = PackedStream(document_store(["d"]), 25)
    with pytest.raises(ConfigError, match=r"rows of \[24, 25\]"):
        mixed([streams[0], other], [1, 1])
    same = Ingredient(name="a", stream=streams[0])
    with pytest.raises(ConfigError, match="each with another name"):
        MixedStream([same, same])
    with pytest.raises(ConfigError, match="at least one"):
        MixedStream([])
    assert streams[0].context_len == 24 and streams[0].bos == byte_tokenizer.bos

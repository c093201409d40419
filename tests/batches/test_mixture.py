"""Mixtures: every source as often as its epochs say, in one order."""

from collections import Counter

import numpy as np
import pytest

from nanochat.batches.mixture import Mixture, Source
from nanochat.batches.sources import mixed
from nanochat.batches.stream import ConversationStream
from nanochat.common.errors import ConfigError, DataError
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.batches.conftest import ConversationStore, DocumentStore, asked

pytestmark = pytest.mark.req("FR-022", "FR-033")


def numbered(store_of: ConversationStore, letter: str, count: int, epochs: float) -> Source:
    chats = [asked(f"{letter}{index}?", "y" * (index + 1)) for index in range(count)]
    return Source(name=letter, store=store_of(chats), epochs=epochs)


def questions_of(mixture: Mixture, tokenizer: Tokenizer) -> list[str]:
    lengths = mixture.lengths(np.arange(mixture.num_documents))
    texts = [tokenizer.decode(mixture.tokens(i, 0, int(n))) for i, n in enumerate(lengths)]
    return [text.split("<|user_start|>")[1].split("?")[0] for text in texts]


def test_epochs_are_repetitions_and_parts(
    conversation_store: ConversationStore, byte_tokenizer: Tokenizer
) -> None:
    mixture = Mixture(
        [
            numbered(conversation_store, "a", 4, 1),
            numbered(conversation_store, "b", 3, 2),
            numbered(conversation_store, "c", 8, 0.25),
            numbered(conversation_store, "d", 4, 1.5),
        ]
    )
    questions = questions_of(mixture, byte_tokenizer)
    assert len(questions) == mixture.num_documents == 4 + 6 + 2 + 6
    assert Counter(questions) == Counter(
        "a0 a1 a2 a3 b0 b1 b2 b0 b1 b2 c0 c4 d0 d1 d2 d3 d0 d2".split()
    )
    counted = mixture.tokens_by_source(np.array([0, 3, 4, 9, 10, 17]), np.full(6, 5))
    assert counted == {"a": 10, "b": 10, "c": 5, "d": 5}


def test_it_reads_like_its_sources(
    conversation_store: ConversationStore, byte_tokenizer: Tokenizer
) -> None:
    source = numbered(conversation_store, "a", 4, 1)
    mixture = Mixture([numbered(conversation_store, "b", 3, 2), source])
    assert mixture.bos == byte_tokenizer.bos
    assert mixture.num_tokens == mixture.lengths(np.arange(mixture.num_documents)).sum()
    for index in range(4):
        length = int(source.store.lengths(np.array([index]))[0])
        assert int(mixture.lengths(np.array([6 + index]))[0]) == length
        ours, theirs = mixture.mask(6 + index, 1, length), source.store.mask(index, 1, length)
        assert ours is not None and theirs is not None and ours.tolist() == theirs.tolist()


def test_a_stream_gives_each_its_share(
    conversation_store: ConversationStore, byte_tokenizer: Tokenizer
) -> None:
    mixture = Mixture(
        [numbered(conversation_store, "a", 4, 2), numbered(conversation_store, "b", 6, 0.5)]
    )
    stream = ConversationStream(mixture, 64, layout="padded", num_epochs=1)
    batch = stream.batch(0, stream.num_rows_per_epoch)
    text = "".join(byte_tokenizer.decode(row) for row in batch.inputs_BT.tolist())
    assert [text.count(f"a{index}?") for index in range(4)] == [2] * 4
    assert [text.count(f"b{index}?") for index in range(6)] == [1, 0] * 3


def test_shares_are_of_tokens(conversation_store: ConversationStore) -> None:
    sources = [numbered(conversation_store, "a", 4, 2.5), numbered(conversation_store, "b", 6, 1)]
    mixture = Mixture(sources)
    shares = mixture.shares()
    lengths = mixture.lengths(np.arange(mixture.num_documents))
    assert [share.num_tokens for share in shares] == [lengths[:10].sum(), lengths[10:].sum()]
    assert [(share.name, share.num_documents) for share in shares] == [("a", 10), ("b", 6)]
    assert sum(share.fraction for share in shares) == pytest.approx(1)


def test_fingerprint_says_what_is_mixed(conversation_store: ConversationStore) -> None:
    a, b = numbered(conversation_store, "a", 4, 1), numbered(conversation_store, "b", 3, 1)
    more = Source(name="b", store=b.store, epochs=2)
    renamed = Source(name="other", store=b.store)
    prints = [Mixture(sources).fingerprint for sources in ([a, b], [b, a], [a, more], [a])]
    assert len(set(prints)) == 4
    assert Mixture([a, renamed]).fingerprint == prints[0]


def test_a_stream_says_what_its_batches_are_from(
    conversation_store: ConversationStore, byte_tokenizer: Tokenizer
) -> None:
    mixture = Mixture(
        [numbered(conversation_store, "a", 40, 3), numbered(conversation_store, "b", 60, 0.5)]
    )
    for layout in ("packed", "padded"):
        stream = ConversationStream(mixture, 80, layout=layout, num_epochs=1)
        told_of = [stream.tokens_by_source(index, 7) for index in range(stream.num_batches(7))]
        for index, told in enumerate(told_of[:-1]):
            rows = [stream.row(row) for row in range(7 * index, 7 * index + 7)]
            assert sum(told.values()) == sum(row.num_tokens for row in rows if row is not None)
        lengths = mixture.lengths(np.arange(mixture.num_documents))
        assert sum(told["b"] for told in told_of) == np.minimum(lengths[120:], 81).sum()
        assert told_of[0].keys() == {"a", "b"}
        assert stream.tokens_by_source(len(told_of), 7) == {"a": 0, "b": 0}
    plain = ConversationStream(numbered(conversation_store, "a", 3, 1).store, 80)
    assert plain.tokens_by_source(0, 2) == {}


def test_text_is_mixed_beside_each_source(
    conversation_store: ConversationStore, document_store: DocumentStore
) -> None:
    chats = Mixture([numbered(conversation_store, name, 9, 2) for name in "ab"])
    text = document_store(["z" * 40] * 200)
    both = mixed(chats, text, 0.25)
    assert isinstance(both, Mixture)
    assert [share.name for share in both.shares()] == ["a", "b", "text"]
    assert both.shares()[2].fraction == pytest.approx(0.25, abs=0.02)
    assert str(both.shares()[0]).startswith("a: 18 (2 times all there are), ")
    assert mixed(chats, text, 0) is chats


def test_what_cannot_be_mixed_is_refused(
    conversation_store: ConversationStore, document_store: DocumentStore
) -> None:
    with pytest.raises(ConfigError, match="no sources"):
        Mixture([])
    source = numbered(conversation_store, "a", 2, 1)
    with pytest.raises(ConfigError, match="a occurs twice in the mixture"):
        Mixture([source, source])
    for epochs in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match="a: epochs is"):
            Source(name="a", store=source.store, epochs=epochs)
    store = document_store(["x"])
    object.__setattr__(store, "tokenizer_hash", "another")
    with pytest.raises(DataError, match="a and b were made by different tokenizers"):
        Mixture([source, Source(name="b", store=store)])


def test_a_small_part_of_a_small_source_is_one_document(
    conversation_store: ConversationStore,
) -> None:
    assert numbered(conversation_store, "a", 3, 0.01).num_documents == 1

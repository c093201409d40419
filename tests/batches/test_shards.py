"""A prepared directory reads like one store, and says what is wrong with it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from nanochat.batches import shards as shards_module
from nanochat.batches.mixture import Mixture, Source
from nanochat.batches.shards import (
    PREPARED_FORMAT,
    PreparedStore,
    Shard,
    TokenizerFacts,
    fingerprint_of,
    is_prepared,
    part_index,
    shard_directory,
)
from nanochat.batches.store import TokenStore, token_dtype
from nanochat.batches.store_writer import tokenize_corpus, write_tokens
from nanochat.batches.stream import PackedStream
from nanochat.common.errors import DataError
from nanochat.corpus.documents import Document
from nanochat.tokenizer.tokenizer import Tokenizer

pytestmark = pytest.mark.req("FR-033", "FR-034", "FR-035")

TEXTS = [f"document {number} " + "x" * (number * 7 % 40) for number in range(50)]


@pytest.fixture
def facts(byte_tokenizer: Tokenizer) -> TokenizerFacts:
    return TokenizerFacts(
        vocab_size=byte_tokenizer.vocab_size,
        bos=byte_tokenizer.bos,
        content_hash=byte_tokenizer.content_hash,
    )


@pytest.fixture
def directory(byte_tokenizer: Tokenizer, facts: TokenizerFacts, tmp_path: Path) -> Path:
    """The texts in five shards."""
    target = tmp_path / "prepared"
    shards = []
    for number in range(5):
        some = TEXTS[number * 10 : number * 10 + 10]
        documents = [Document(text, "test", index) for index, text in enumerate(some)]
        place = shard_directory(target, "train", number)
        shards.append(Shard.of(tokenize_corpus(documents, byte_tokenizer, place)))
    index = {
        "format": PREPARED_FORMAT,
        "tokenizer": {
            "vocab_size": facts.vocab_size,
            "bos": facts.bos,
            "content_hash": facts.content_hash,
        },
        "parts": {"train": part_index(shards, facts.content_hash)},
    }
    (target / "index.json").write_text(json.dumps(index))
    return target


@pytest.fixture
def whole(byte_tokenizer: Tokenizer, tmp_path: Path) -> TokenStore:
    """The texts in one store."""
    documents = [Document(text, "test", index) for index, text in enumerate(TEXTS)]
    return tokenize_corpus(documents, byte_tokenizer, tmp_path / "whole")


@pytest.mark.parametrize("num_open", [1, 200])
def test_shards_read_like_one_store(
    num_open: int, directory: Path, whole: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards_module, "NUM_OPEN", num_open)
    store = PreparedStore.open(directory)
    assert (store.num_documents, store.num_tokens) == (whole.num_documents, whole.num_tokens)
    assert (store.bos, store.tokenizer_hash) == (whole.bos, whole.tokenizer_hash)
    assert store.num_characters == whole.num_characters
    assert len(store.shards) == 5
    order = np.random.default_rng(0).permutation(50)
    assert store.lengths(order).tolist() == whole.lengths(order).tolist()
    for document in order.tolist():
        assert store.tokens(document, 1, 8).tolist() == whole.tokens(document, 1, 8).tolist()
    assert store.mask(3, 0, 2) is None
    store.verify()


def test_batches_are_those_of_one_store(directory: Path, whole: TokenStore) -> None:
    ours = PackedStream(PreparedStore.open(directory), 32, seed=4)
    theirs = PackedStream(whole, 32, seed=4)
    for number in range(6):
        assert (
            ours.batch(number, 4).inputs_BT.tolist() == theirs.batch(number, 4).inputs_BT.tolist()
        )


def test_prepared_text_can_be_mixed(directory: Path, whole: TokenStore) -> None:
    store = PreparedStore.open(directory)
    mixture = Mixture([Source(name="prepared", store=store), Source(name="raw", store=whole)])
    assert mixture.num_tokens == 2 * whole.num_tokens
    assert mixture.tokens(7, 0, 5).tolist() == mixture.tokens(57, 0, 5).tolist()


def test_the_fingerprint_is_of_shards_their_order_and_the_tokenizer(directory: Path) -> None:
    store = PreparedStore.open(directory)
    shards = list(store.shards)
    assert store.fingerprint == fingerprint_of(shards, store.tokenizer_hash)
    assert store.fingerprint != fingerprint_of(shards[::-1], store.tokenizer_hash)
    assert store.fingerprint != fingerprint_of(shards, "another")


def test_what_is_wrong_is_told(directory: Path, byte_tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="was prepared with tokenizer .* but this one is another"):
        PreparedStore.open(directory, "train", "another")
    PreparedStore.open(directory, "train", byte_tokenizer.content_hash)
    index = json.loads((directory / "index.json").read_text())
    index["parts"]["train"]["shards"].reverse()
    (directory / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match="its fingerprint does not fit"):
        PreparedStore.open(directory)
    (directory / "index.json").write_text('{"format": "another"}')
    assert not is_prepared(directory)
    with pytest.raises(DataError, match="no prepared corpus, or not complete"):
        PreparedStore.open(directory)


def test_a_damaged_shard_is_found(directory: Path, tmp_path: Path) -> None:
    store = PreparedStore.open(directory)
    path = shard_directory(directory, "train", 2) / "tokens.bin"
    data = bytearray(path.read_bytes())
    data[11] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"00002/tokens\.bin has changed"):
        store.verify()
    shutil.rmtree(shard_directory(directory, "train", 3))
    shutil.copytree(shard_directory(directory, "train", 4), shard_directory(directory, "train", 3))
    with pytest.raises(DataError, match="is not the shard that was written there"):
        PreparedStore.open(directory).tokens(35, 0, 1)


def test_tokens_become_a_store(facts: TokenizerFacts, tmp_path: Path) -> None:
    chunks = [
        (np.array([256, 1, 2, 256, 3], np.uint16), np.array([3, 2])),
        (np.array([256, 4, 5, 6], np.uint16), np.array([4])),
    ]
    store = write_tokens(chunks, facts, tmp_path / "store", num_characters=6)
    assert store.lengths(np.arange(3)).tolist() == [3, 2, 4]
    assert store.tokens(2, 0, 4).tolist() == [256, 4, 5, 6]
    assert (store.num_tokens, store.num_trained_tokens, store.num_characters) == (9, 6, 6)
    store.verify()
    with pytest.raises(DataError, match="exists already"):
        write_tokens(chunks, facts, tmp_path / "store", num_characters=6)
    assert token_dtype(65_537) == np.uint32

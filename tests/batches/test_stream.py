"""Streams: the n-th batch is a pure function of (seed, tokens, n), whoever asks and whenever."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanochat.batches import rows as rows_module
from nanochat.batches import stream as stream_module
from nanochat.batches.batch import IGNORE, Batch
from nanochat.batches.rows import PackingReport, Rows
from nanochat.batches.store import TokenStore
from nanochat.batches.store_writer import tokenize_corpus
from nanochat.batches.stream import ConversationStream, PackedStream, validation_batches
from nanochat.common.errors import ConfigError, DataError
from nanochat.corpus.documents import Document
from nanochat.tokenizer.chat import render_training
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.batches.conftest import ConversationStore, DocumentStore, asked

pytestmark = pytest.mark.req("FR-033")

# Every text is different and none is a part of another, so that what is in a row can be told.
TEXTS = [f"<{index}>" + chr(97 + index % 26) * (index * 7 % 50) for index in range(60)]
CHATS = [asked(f"{index}?", "a" * (index % 9 + 1) + f"{index}!") for index in range(50)]


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several groups in an epoch of sixty documents."""
    monkeypatch.setattr(rows_module, "GROUP_DOCUMENTS", 16)


def equal(first: Batch, second: Batch) -> bool:
    return torch.equal(first.inputs_BT, second.inputs_BT) and torch.equal(
        first.targets_BT, second.targets_BT
    )


def rows_of(batch: Batch) -> list[list[int]]:
    """The rows of context_len + 1 tokens where all are trained."""
    last = batch.targets_BT[:, -1:]
    return torch.cat([batch.inputs_BT, last], dim=1).tolist()


def texts_in(rows: list[list[int]], tokenizer: Tokenizer) -> list[str]:
    """The stretches between <|bos|>s, in order."""
    stretches = []
    for row in rows:
        text = tokenizer.decode([token for token in row if token >= 0])
        stretches += text.split("<|bos|>")[1:]
    return [stretch for stretch in stretches if stretch]


# ---------------------------------------------------------------------------------------- documents


@pytest.mark.req("FR-036")
def test_a_batch_depends_on_nothing_but_its_number(document_store: DocumentStore) -> None:
    store = document_store(TEXTS)
    in_order = [PackedStream(store, 24, seed=3).batch(index, 5) for index in range(40)]
    stream = PackedStream(store, 24, seed=3)
    for index in [39, 3, 17, 0, 39, 8, 30]:
        assert equal(stream.batch(index, 5), in_order[index])
    assert not equal(in_order[0], in_order[1])
    assert not equal(in_order[0], PackedStream(store, 24, seed=4).batch(0, 5))


@pytest.mark.req("FR-036", "FR-016")
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
def test_ranks_share_the_rows_of_one_order(document_store: DocumentStore, world_size: int) -> None:
    stream = PackedStream(document_store(TEXTS), 24)
    for index in range(12):
        whole = stream.batch(index, 6)
        parts = [stream.batch(index, 6, rank, world_size) for rank in range(world_size)]
        for rank, part in enumerate(parts):
            assert torch.equal(part.inputs_BT, whole.inputs_BT[rank::world_size])
            assert torch.equal(part.targets_BT, whole.targets_BT[rank::world_size])


def test_the_size_of_batches_does_not_change_the_order_of_rows(
    document_store: DocumentStore,
) -> None:
    stream = PackedStream(document_store(TEXTS), 24)
    large = stream.batch(0, 12).inputs_BT
    small = torch.cat([stream.batch(index, 4).inputs_BT for index in range(3)])
    assert torch.equal(large, small)


def test_an_epoch_has_every_token_once(
    document_store: DocumentStore, byte_tokenizer: Tokenizer
) -> None:
    stream = PackedStream(document_store(TEXTS), 24, num_epochs=1)
    num_rows = stream.num_rows_per_epoch
    epoch = stream.batch(0, num_rows)
    assert (epoch.inputs_BT[:, 0] == byte_tokenizer.bos).all()
    stretches = texts_in(rows_of(epoch), byte_tokenizer)
    assert Counter("".join(stretches)) == Counter("".join(TEXTS))
    # A text of 24 bytes fits a row with its <|bos|>; most of those are whole.
    whole = set(stretches) & {text for text in TEXTS if len(text) <= 24}
    assert len(whole) > 20
    report = stream.report()
    assert (report.num_rows, report.cropped_tokens) == (num_rows, 0)
    assert report.placed_tokens == stream._store.num_tokens + report.added_bos_tokens
    assert report.placed_tokens + report.padded_tokens == num_rows * 25


def test_dropping_keeps_beginnings_and_counts_the_rest(
    document_store: DocumentStore, byte_tokenizer: Tokenizer
) -> None:
    store = document_store(TEXTS)
    stream = PackedStream(store, 24, remainders="drop")
    epoch = stream.batch(0, stream.num_rows_per_epoch)
    stretches = texts_in(rows_of(epoch), byte_tokenizer)
    assert all(any(text.startswith(stretch) for text in TEXTS) for stretch in stretches)
    report = stream.report()
    assert report.placed_tokens + report.cropped_tokens == store.num_tokens
    assert report.added_bos_tokens == report.skipped_tokens == 0
    assert report.cropped_documents == len(TEXTS) - sum(text in stretches for text in TEXTS)
    assert f"{report.cropped_tokens:,} tokens" in str(report)
    assert "0 tokens (0.0%) cropped" in str(PackingReport())


def test_epochs_are_shuffled_anew(document_store: DocumentStore, byte_tokenizer: Tokenizer) -> None:
    stream = PackedStream(document_store(TEXTS), 64)
    first, second = stream.num_rows_per_epoch, stream.report(1).num_rows
    rows = [stream.batch(index, 1).inputs_BT[0].tolist() for index in range(first + second)]
    assert Counter(texts_in(rows[first:], byte_tokenizer)).keys() & Counter(TEXTS).keys()
    assert rows[:first] != rows[first : 2 * first]
    assert sorted(map(tuple, rows[:first])) != sorted(map(tuple, rows[first:]))  # packed anew


@pytest.mark.req("SC-007")
def test_the_last_row_is_padded_with_nothing_to_train(
    document_store: DocumentStore, byte_tokenizer: Tokenizer
) -> None:
    batch = PackedStream(document_store(["abc"]), 8).batch(0, 2)
    bos = byte_tokenizer.bos
    assert batch.inputs_BT[0].tolist() == [bos, *b"abc", bos, bos, bos, bos]
    assert batch.targets_BT[0].tolist() == [*b"abc", IGNORE, IGNORE, IGNORE, IGNORE, IGNORE]


def test_past_the_last_epoch_rows_are_empty(document_store: DocumentStore) -> None:
    stream = PackedStream(document_store(TEXTS), 24, num_epochs=2)
    num_rows = stream.num_rows_per_epoch + stream.report(1).num_rows
    assert stream.num_batches(7) == -(-num_rows // 7)
    last = stream.batch(stream.num_batches(7) - 1, 7)
    filled = (last.targets_BT != IGNORE).any(dim=1)
    assert filled.tolist() == [True] * (num_rows % 7 or 7) + [False] * (-num_rows % 7)
    assert stream.batch(1000, 7).num_targets == 0
    endless = PackedStream(stream._store, 24)
    assert equal(stream.batch(2, 7), endless.batch(2, 7))
    assert endless.batch(1000, 7).num_targets > 0
    with pytest.raises(ConfigError, match="no end"):
        endless.num_batches(7)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 9), st.integers(0, 9))
def test_any_corpus_is_read_whole_in_any_context(
    byte_tokenizer: Tokenizer,
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    context_len: int,
    seed: int,
) -> None:
    directory = tmp_path_factory.mktemp("corpora") / "store"
    texts = [chr(1 + index) * length for index, length in enumerate(lengths)]
    documents = [Document(text, "test", index) for index, text in enumerate(texts)]
    store = tokenize_corpus(documents, byte_tokenizer, directory)
    stream = PackedStream(store, context_len, seed=seed, num_epochs=1)
    batch = stream.batch(0, stream.num_rows_per_epoch)
    told = Counter("".join(texts_in(rows_of(batch), byte_tokenizer)))
    assert told == Counter("".join(texts))
    assert batch.num_targets + stream.report().num_rows == stream.report().placed_tokens


def test_memory_is_a_few_plans(document_store: DocumentStore) -> None:
    stream = PackedStream(document_store(TEXTS * 10), 24)
    for index in range(300):
        stream.batch(index, 8)
    assert len(stream._parts) <= stream_module.NUM_CACHED_PARTS
    for rows in stream._parts.values():
        assert len(rows._groups) <= rows_module.NUM_CACHED_GROUPS
        assert len(rows._ends) <= rows._num_groups


def test_fingerprint_says_what_decides_the_batches(document_store: DocumentStore) -> None:
    store, other = document_store(TEXTS), document_store(TEXTS[1:])
    same = PackedStream(store, 24).fingerprint, PackedStream(store, 24).fingerprint
    assert same[0] == same[1]
    different = [
        PackedStream(other, 24),
        PackedStream(store, 25),
        PackedStream(store, 24, seed=1),
        PackedStream(store, 24, remainders="drop"),
        ConversationStream(store, 24),
        ConversationStream(store, 24, is_masked=False),
        ConversationStream(store, 24, layout="padded"),
        ConversationStream(store, 24, layout="padded", multiple=8),
    ]
    assert len({same[0], *(stream.fingerprint for stream in different)}) == 9
    # More epochs go on with the same batches: no reason to refuse to resume.
    assert PackedStream(store, 24, num_epochs=1).fingerprint == same[0]


def test_settings_out_of_range_are_refused(document_store: DocumentStore) -> None:
    store = document_store(TEXTS)
    with pytest.raises(ConfigError, match="context_len is 0"):
        PackedStream(store, 0)
    with pytest.raises(ConfigError, match="num_epochs is 0"):
        PackedStream(store, 8, num_epochs=0)
    with pytest.raises(ConfigError, match="multiple is 0"):
        ConversationStream(store, 8, multiple=0)
    for arguments in [(-1, 4), (0, 0), (0, 4, 2, 2), (0, 4, -1, 2)]:
        with pytest.raises(ConfigError, match="expected a number of at least 0"):
            PackedStream(store, 8).batch(*arguments)


# ------------------------------------------------------------------------------------ conversations


@pytest.mark.req("FR-022", "FR-023")
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_every_conversation_once_an_epoch_with_its_mask(
    conversation_store: ConversationStore, byte_tokenizer: Tokenizer, layout: str
) -> None:
    stream = ConversationStream(conversation_store(CHATS), 64, layout=layout, num_epochs=2)
    trained: Counter[tuple[int, ...]] = Counter()
    for index in range(stream.num_batches(8)):
        batch = stream.batch(index, 8)
        trained.update(trained_runs(batch))
    expected: Counter[tuple[int, ...]] = Counter()
    for chat in CHATS:
        tokens, mask = render_training(chat, byte_tokenizer)
        run = tuple(token for token, is_trained in zip(tokens, mask, strict=True) if is_trained)
        expected[run] += 2
    assert trained == expected


def trained_runs(batch: Batch) -> Iterator[tuple[int, ...]]:
    """Stretches of targets between IGNOREs."""
    for row in batch.targets_BT.tolist():
        run: list[int] = []
        for token in [*row, IGNORE]:
            if token != IGNORE:
                run.append(token)
            elif run:
                yield tuple(run)
                run = []


def test_unmasked_everything_but_padding_is_trained(
    conversation_store: ConversationStore, byte_tokenizer: Tokenizer
) -> None:
    store = conversation_store(CHATS)
    stream = ConversationStream(store, 64, is_masked=False, num_epochs=1)
    batch = stream.batch(0, stream.num_rows_per_epoch)
    assert batch.num_targets == store.num_tokens - stream.num_rows_per_epoch
    never = conversation_store([asked("q" * 100, "a")])
    assert ConversationStream(never, 20, is_masked=False).batch(0, 1).num_targets == 20


@pytest.mark.req("FR-023")
def test_padded_rows_are_as_wide_as_needed(
    conversation_store: ConversationStore, byte_tokenizer: Tokenizer
) -> None:
    chats = [asked("q" * length, "a") for length in (2, 40, 9, 30)]  # and 5 marks
    stream = ConversationStream(conversation_store(chats), 64, layout="padded", multiple=16)
    batch = stream.batch(0, 4)
    assert batch.inputs_BT.shape == (4, 48)  # 46 tokens, the last of which is only a target
    lengths = (batch.inputs_BT != byte_tokenizer.bos).sum(dim=1).tolist()
    assert lengths == sorted(lengths, reverse=True)
    narrow = ConversationStream(stream._store, 64, layout="padded", multiple=7).batch(0, 4)
    assert narrow.inputs_BT.shape == (4, 49)
    short = ConversationStream(stream._store, 40, layout="padded", multiple=32).batch(0, 4)
    assert short.inputs_BT.shape == (4, 40)


@pytest.mark.req("FR-036", "FR-016")
def test_padded_ranks_share_the_rows(conversation_store: ConversationStore) -> None:
    stream = ConversationStream(conversation_store(CHATS), 64, layout="padded", multiple=4)
    for index in range(8):
        whole = stream.batch(index, 6)
        for rank in range(2):
            part = stream.batch(index, 6, rank, 2)
            width = part.inputs_BT.shape[1]
            assert torch.equal(part.inputs_BT, whole.inputs_BT[rank::2, :width])
            assert torch.equal(part.targets_BT, whole.targets_BT[rank::2, :width])
            assert (whole.targets_BT[rank::2, width:] == IGNORE).all()


@pytest.mark.req("EC-4", "SC-007")
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_long_conversations_are_cut_and_those_never_trained_skipped(
    conversation_store: ConversationStore, layout: str
) -> None:
    chats = [asked("short", "yes"), asked("q" * 100, "never seen"), asked("long", "a" * 100)]
    stream = ConversationStream(conversation_store(chats), 20, layout=layout, num_epochs=1)
    report = stream.report()
    assert (report.skipped_documents, report.cropped_documents) == (1, 1)
    assert report.skipped_tokens == 100 + len("never seen") + 5
    kept = report.placed_tokens + report.cropped_tokens
    assert kept + report.skipped_tokens == stream._store.num_tokens
    batches = [stream.batch(index, 1) for index in range(stream.num_batches(1))]
    assert len(batches) == 2
    assert all(batch.num_targets for batch in batches)
    assert "1 documents skipped" in str(report)


@pytest.mark.req("SC-007")
def test_nothing_to_train_at_all_is_an_error(conversation_store: ConversationStore) -> None:
    stream = ConversationStream(conversation_store([asked("q" * 100, "a")]), 20)
    with pytest.raises(DataError, match="no conversation has a trained token within 20 tokens"):
        stream.batch(0, 4)


def test_packed_rows_hold_several(conversation_store: ConversationStore) -> None:
    stream = ConversationStream(conversation_store(CHATS), 256, num_epochs=1)
    assert stream.num_rows_per_epoch < len(CHATS) / 5
    assert stream.batch(0, 2).inputs_BT.shape == (2, 256)


# ---------------------------------------------------------------------------------------- around


def test_validation_is_always_the_same(document_store: DocumentStore) -> None:
    store = document_store(TEXTS)
    first = list(validation_batches(store, 24, 24 * 4 * 3, 4))
    again = list(validation_batches(store, 24, 24 * 4 * 3, 4))
    assert len(first) == 3
    assert all(equal(*pair) for pair in zip(first, again, strict=True))


def test_validation_ends_with_the_text(document_store: DocumentStore) -> None:
    store = document_store(TEXTS)
    everything = list(validation_batches(store, 24, 10**9, 4, remainders="reuse"))
    stream = PackedStream(store, 24, num_epochs=1)
    assert len(everything) == stream.num_batches(4)
    assert sum(batch.num_targets for batch in everything) == (
        stream.report().placed_tokens - stream.num_rows_per_epoch
    )
    dropped = list(validation_batches(store, 24, 10**9, 4))
    assert len(dropped) < len(everything)
    assert len(list(validation_batches(store, 24, 1, 4))) == 1


def test_validation_of_conversations_is_of_answers(conversation_store: ConversationStore) -> None:
    store = conversation_store(CHATS)
    batches = list(validation_batches(store, 64, 10**9, 4))
    assert sum(batch.num_targets for batch in batches) == store.num_trained_tokens


def test_one_group_of_real_size(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    """The first batch of a large store needs only its first group."""
    texts = (Document("x" * (1 + index % 50), "test", index) for index in range(3000))
    store: TokenStore = tokenize_corpus(texts, byte_tokenizer, tmp_path / "large")
    stream = PackedStream(store, 32)
    stream.batch(0, 4)
    rows = stream._parts[0]
    assert len(rows._groups) == 1
    assert rows._num_groups == round(3000 / 16)
    documents = np.concatenate([rows._group(index).documents for index in range(188)])
    assert sorted(documents) == [*range(3000)]


def test_batches_are_those_of_the_first_release(
    document_store: DocumentStore, conversation_store: ConversationStore
) -> None:
    """Runs that began with other code go on with the same batches: these hashes never change."""
    texts, chats = document_store(TEXTS), conversation_store(CHATS)
    streams: list[PackedStream | ConversationStream] = [
        PackedStream(texts, 24, seed=7),
        PackedStream(texts, 24, remainders="drop"),
        ConversationStream(chats, 40, seed=3),
        ConversationStream(chats, 40, layout="padded"),
    ]
    told = []
    for stream in streams:
        digest = hashlib.sha256(stream.fingerprint.encode())
        for index in (0, 3, 11, 40):
            for tensor in stream.batch(index, 6):
                digest.update(tensor.numpy().tobytes())
        told.append(digest.hexdigest()[:16])
    assert told == ["1d8896453442b954", "b1f78b444523ee26", "de8c21107b9a2370", "b710493f4762719f"]


def test_rows_of_one_epoch(document_store: DocumentStore) -> None:
    store = document_store(TEXTS)
    rows, stream = Rows(store, 24, "reuse", key=(5, 1)), PackedStream(store, 24, seed=5)
    first = stream.num_rows_per_epoch
    for place in range(rows.num_rows):
        found = stream.row(first + place)
        assert found is not None and found.store is store
        assert found.pieces == rows.row(place)
        assert found.num_tokens <= 25
    assert rows.row(rows.num_rows) is None
    assert rows.report().num_rows == rows.num_rows
    assert PackedStream(store, 24, num_epochs=1).row(10_000) is None

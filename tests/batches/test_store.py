"""Token stores: what goes in comes out, whole or not at all, in bounded memory."""

import errno
import json
import shutil
import threading
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from nanochat.batches import store_writer
from nanochat.batches.store import TokenStore
from nanochat.batches.store_cache import cached_store
from nanochat.batches.store_writer import tokenize_conversations, tokenize_corpus
from nanochat.common.errors import DataError
from nanochat.common.messages import Message
from nanochat.corpus.documents import Document
from nanochat.tokenizer.chat import render_training
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.batches.conftest import ConversationStore, DocumentStore, asked

TEXTS = ["hello", "x", "a longer text, with several words\n", "\u00e9\u4e2d"]


class RecordingEncoder:
    """An encoder of any vocabulary that remembers how much it was given at once."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.bos = vocab_size - 1
        self.content_hash = f"hash of {vocab_size}"
        self.chunks: list[int] = []

    def encode_all(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.uint32], list[int]]:
        self.chunks.append(sum(map(len, texts)))
        encoded = [ord(character) for text in texts for character in text]
        return np.array(encoded, np.uint32), [len(text) for text in texts]


def documents(texts: Sequence[str]) -> list[Document]:
    return [Document(text, "test", index) for index, text in enumerate(texts)]


@pytest.mark.req("FR-034")
def test_documents_come_out_as_they_went_in(
    document_store: DocumentStore, byte_tokenizer: Tokenizer
) -> None:
    store = document_store(TEXTS)
    lengths = store.lengths(np.arange(4))
    assert lengths.tolist() == [1 + len(text.encode()) for text in TEXTS]
    for index, text in enumerate(TEXTS):
        tokens = store.tokens(index, 0, int(lengths[index])).tolist()
        assert tokens == [byte_tokenizer.bos, *byte_tokenizer.encode(text)]
    assert store.tokens(0, 2, 4).tolist() == byte_tokenizer.encode("el")
    assert store.mask(0, 0, 3) is None
    assert (store.num_documents, store.num_tokens) == (4, int(lengths.sum()))
    assert store.num_characters == sum(map(len, TEXTS))
    assert store.num_trained_tokens == store.num_tokens - 4
    assert (store.bos, store.vocab_size) == (byte_tokenizer.bos, byte_tokenizer.vocab_size)
    assert store.kind == "documents"


@pytest.mark.req("FR-034")
def test_conversations_keep_their_masks(
    conversation_store: ConversationStore, byte_tokenizer: Tokenizer
) -> None:
    conversation = (*asked("Hi", "Hello"), *asked("2+2?", "4"))
    store = conversation_store([conversation, asked("Hm", "Yes")])
    rendered = render_training(conversation, byte_tokenizer)
    length = len(rendered.tokens)
    mask = store.mask(0, 0, length)
    assert store.tokens(0, 0, length).tolist() == rendered.tokens
    assert mask is not None and mask.tolist() == rendered.loss_mask
    assert store.kind == "conversations"
    assert store.num_trained_tokens == sum(rendered.loss_mask) + len("Yes") + 1


@pytest.mark.req("FR-034", "SC-007")
def test_conversation_without_a_trained_token_is_counted_not_kept(
    conversation_store: ConversationStore,
) -> None:
    store = conversation_store([(Message("user", "Anyone?"),), asked("Hi", "Hello")])
    assert store.num_documents == 1
    assert store.counts == {"conversations without a trained token skipped": 1}


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(65_536, np.uint16), (65_537, np.uint32)], ids=["uint16", "uint32"]
)
def test_token_width_follows_the_vocabulary(
    vocab_size: int, dtype: type[np.generic], tmp_path: Path
) -> None:
    store = tokenize_corpus(documents(["\uffff"]), RecordingEncoder(vocab_size), tmp_path / "s")
    tokens = store.tokens(0, 0, 2)
    assert tokens.dtype == dtype
    assert tokens.tolist() == [vocab_size - 1, 65_535]


@pytest.mark.req("EC-3")
def test_empty_documents_are_counted_and_an_empty_corpus_refused(
    document_store: DocumentStore, byte_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    assert document_store(["", "x"]).counts == {"empty documents skipped": 1}
    with pytest.raises(DataError, match="no documents to tokenize, 2 empty documents skipped"):
        document_store(["", ""])
    with pytest.raises(DataError, match="no conversations to tokenize: expected at least one"):
        tokenize_conversations([], lambda _: pytest.fail(), byte_tokenizer, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_fingerprint_says_what_the_tokens_are(
    document_store: DocumentStore, conversation_store: ConversationStore
) -> None:
    same = document_store(TEXTS), document_store(TEXTS)
    assert same[0].fingerprint == same[1].fingerprint
    others = [
        document_store(TEXTS[::-1]),
        document_store([*TEXTS, "more"]),
        document_store(["".join(TEXTS)]),
        conversation_store([asked("Hi", "Hello")]),
    ]
    assert len({store.fingerprint for store in [same[0], *others]}) == 5


@pytest.mark.req("FR-035")
def test_memory_does_not_grow_with_the_corpus(
    byte_tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_writer, "CHUNK_CHARS", 20_000)

    def peak(num_documents: int) -> int:
        def texts() -> Iterator[Document]:
            for index in range(num_documents):
                yield Document(f"{index:05d}" * 100, "test", index)

        tracemalloc.start()
        tokenize_corpus(texts(), byte_tokenizer, tmp_path / f"of_{num_documents}")
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(50)  # what is imported and made once
    assert peak(2000) < 1.1 * peak(200)


@pytest.mark.req("FR-035")
def test_text_is_encoded_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_writer, "CHUNK_CHARS", 100)
    monkeypatch.setattr(store_writer, "CHUNK_DOCUMENTS", 6)
    encoder = RecordingEncoder(300)
    seen: list[tuple[int, int]] = []
    texts = ["x" * 60] * 3 + ["y"] * 8
    tokenize_corpus(
        documents(texts), encoder, tmp_path / "s", progress=lambda *counts: seen.append(counts)
    )
    assert encoder.chunks == [120, 65, 3]
    assert seen == [(2, 122), (8, 193), (11, 199)]


def test_progress_of_conversations(
    byte_tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_writer, "CHUNK_DOCUMENTS", 2)
    seen: list[int] = []
    tokenize_conversations(
        [asked("Hi", "Hello")] * 5,
        lambda conversation: render_training(conversation, byte_tokenizer),
        byte_tokenizer,
        tmp_path / "s",
        progress=lambda num_documents, _: seen.append(num_documents),
    )
    assert seen == [2, 4]


# ---------------------------------------------------------------------------------------- on disk


def test_interrupted_writing_leaves_nothing(byte_tokenizer: Tokenizer, tmp_path: Path) -> None:
    def broken() -> Iterator[Document]:
        yield Document("x" * 5_000_000, "test", 0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenize_corpus(broken(), byte_tokenizer, tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


def test_a_taken_place_is_refused(document_store: DocumentStore, byte_tokenizer: Tokenizer) -> None:
    store = document_store(TEXTS)
    with pytest.raises(DataError, match="exists already"):
        tokenize_corpus(documents(TEXTS), byte_tokenizer, store.directory)
    assert TokenStore.open(store.directory, byte_tokenizer).fingerprint == store.fingerprint


def test_a_place_taken_meanwhile_is_refused(byte_tokenizer: Tokenizer, tmp_path: Path) -> None:
    def meanwhile() -> Iterator[Document]:
        yield Document("x", "test", 0)
        (tmp_path / "s").mkdir()
        (tmp_path / "s" / "theirs").touch()

    with pytest.raises(DataError, match="cannot be written .Directory not empty"):
        tokenize_corpus(meanwhile(), byte_tokenizer, tmp_path / "s")
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_full_disk_is_said_and_leaves_nothing(
    byte_tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(DataError, match=r"cannot be written \(No space left on device\): make"):
            tokenize_corpus(documents(TEXTS), byte_tokenizer, tmp_path / "s")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot be written \(.*directory|exists\)"):
        tokenize_corpus(documents(TEXTS), byte_tokenizer, tmp_path / "file" / "s")


def test_damage_is_refused_by_name(document_store: DocumentStore) -> None:
    directory = document_store(TEXTS).directory

    def damaged(name: str, content: bytes | None) -> Path:
        copy = directory.with_name("damaged")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(directory, copy)
        if content is None:
            (copy / name).unlink()
        else:
            (copy / name).write_bytes(content)
        return copy

    index = json.loads((directory / "index.json").read_bytes())

    def index_with(**changes: object) -> bytes:
        return json.dumps(index | changes).encode()

    tokens = (directory / "tokens.bin").read_bytes()
    offsets = np.fromfile(directory / "offsets.bin", np.int64)
    offsets[-1] += 1
    for name, content, message in [
        ("tokens.bin", tokens[:-2], r"tokens.bin has \d+ bytes, expected \d+ bytes"),
        ("tokens.bin", tokens + b"xx", "tokens.bin has"),
        ("tokens.bin", None, "tokens.bin is missing"),
        ("offsets.bin", offsets.tobytes(), "offsets.bin does not fit tokens.bin"),
        ("index.json", None, "index.json does not exist"),
        ("index.json", b"{", "index.json, line 1: not JSON"),
        ("index.json", b"[]", "format None, expected 1"),
        ("index.json", index_with(format=9), "format 9, expected 1"),
        ("index.json", index_with(num_tokens="many"), "num_tokens is 'many', expected int"),
        ("index.json", index_with(files={"../x": {}}), "files are"),
    ]:
        with pytest.raises(DataError, match=message):
            TokenStore.open(damaged(name, content))


def test_verify_sees_a_changed_byte(document_store: DocumentStore) -> None:
    store = document_store(TEXTS)
    store.verify()
    content = bytearray((store.directory / "tokens.bin").read_bytes())
    content[3] ^= 1
    (store.directory / "tokens.bin").write_bytes(content)
    with pytest.raises(DataError, match="tokens.bin has changed since it was written"):
        TokenStore.open(store.directory).verify()


def test_tokens_of_another_tokenizer_are_refused(document_store: DocumentStore) -> None:
    directory = document_store(TEXTS).directory
    with pytest.raises(DataError, match="made by tokenizer .*, but this one is hash of 300"):
        TokenStore.open(directory, RecordingEncoder(300))


# ---------------------------------------------------------------------------------------- cache


class Writer:
    """Writes a store, and counts how often."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.num_calls = 0

    def __call__(self, directory: Path) -> TokenStore:
        self.num_calls += 1
        return tokenize_corpus(documents(TEXTS), self.tokenizer, directory)


@pytest.mark.req("FR-034")
def test_the_second_time_is_a_look_up(byte_tokenizer: Tokenizer, tmp_path: Path) -> None:
    write = Writer(byte_tokenizer)
    first = cached_store(tmp_path / "cache", "corpus", byte_tokenizer, write)
    second = cached_store(tmp_path / "cache", "corpus", byte_tokenizer, write)
    assert (write.num_calls, first.directory) == (1, second.directory)
    other = cached_store(tmp_path / "cache", "another corpus", byte_tokenizer, write)
    assert (write.num_calls, other.fingerprint) == (2, first.fingerprint)
    assert other.directory != first.directory


def test_what_does_not_open_is_written_again(byte_tokenizer: Tokenizer, tmp_path: Path) -> None:
    write = Writer(byte_tokenizer)
    store = cached_store(tmp_path, "corpus", byte_tokenizer, write)
    (store.directory / "tokens.bin").write_bytes(b"")
    left_over = tmp_path / f".{store.directory.name}.abc.tmp"
    left_over.mkdir()
    left_over_file = tmp_path / f".{store.directory.name}.json.abc.tmp"
    left_over_file.touch()
    assert cached_store(tmp_path, "corpus", byte_tokenizer, write).num_documents == len(TEXTS)
    assert write.num_calls == 2
    assert not left_over.exists() and not left_over_file.exists()


def test_of_several_at_once_one_writes(byte_tokenizer: Tokenizer, tmp_path: Path) -> None:
    write = Writer(byte_tokenizer)
    found: list[TokenStore] = []

    def ask() -> None:
        found.append(cached_store(tmp_path, "corpus", byte_tokenizer, write))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert write.num_calls == 1
    assert len({store.fingerprint for store in found}) == 1 and len(found) == 4


def test_without_locks_the_first_to_finish_wins(
    byte_tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    write = Writer(byte_tokenizer)
    others_work = tmp_path / "unfinished"

    def write_late(directory: Path) -> TokenStore:
        others_work.mkdir()
        others_work.rename(directory.parent / f".{directory.name}.x.tmp")

        def meanwhile() -> Iterator[Document]:
            yield from documents(TEXTS)
            write(directory)

        return tokenize_corpus(meanwhile(), byte_tokenizer, directory)

    store = cached_store(tmp_path, "corpus", byte_tokenizer, write_late)
    assert store.num_documents == len(TEXTS)
    again = cached_store(tmp_path, "corpus", byte_tokenizer, write)
    assert (again.fingerprint, write.num_calls) == (store.fingerprint, 1)
    (store.directory / "tokens.bin").write_bytes(b"")
    cached_store(tmp_path, "corpus", byte_tokenizer, write)
    assert list(tmp_path.glob(".*.tmp"))  # another may be at work in it

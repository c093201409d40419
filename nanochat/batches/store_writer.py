"""Documents, conversations -> tokens on the disk.   in: text, a tokenizer   out: TokenStore
who calls: sources.py, chapter_writer.py, prepare_shards.py

A store is written in pieces of bounded size into a directory beside its place and renamed: it is
whole or absent.
Read next: store.py (what it is), store_cache.py (where it is kept), corpus/documents.py (the text).
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from nanochat.batches.prefetch import prefetch
from nanochat.batches.store import (
    FORMAT,
    Indices,
    Kind,
    Tokens,
    TokenStore,
    Vocabulary,
    token_dtype,
)
from nanochat.common.errors import DataError
from nanochat.common.files import write_json_atomically
from nanochat.common.messages import Conversation

__all__ = [
    "CHUNK_CHARS",
    "Encoder",
    "HasMask",
    "HasText",
    "Progress",
    "after_bos",
    "tokenize_conversations",
    "tokenize_corpus",
    "write_tokens",
]

CHUNK_CHARS = 4_000_000  # encoded at once: 16 MB of tokens at worst
CHUNK_DOCUMENTS = 4096

Progress = Callable[[int, int], None]
"""Called after every chunk with the documents and tokens written so far."""
T = TypeVar("T")


class Encoder(Vocabulary, Protocol):
    """What a store needs of a tokenizer; `nanochat.tokenizer.tokenizer.Tokenizer` is one."""

    def encode_all(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.uint32], list[int]]: ...


class HasText(Protocol):
    """A document, of which only the text matters here."""

    @property
    def text(self) -> str: ...


class HasMask(Protocol):
    """A rendered conversation."""

    @property
    def tokens(self) -> list[int]: ...
    @property
    def loss_mask(self) -> list[int]: ...


def tokenize_corpus(
    documents: Iterable[HasText],
    tokenizer: Encoder,
    directory: Path,
    *,
    progress: Progress | None = None,
) -> TokenStore:
    """Every document's tokens, <|bos|> first, in a new store at `directory`.

    Memory: three chunks of CHUNK_CHARS characters and the tokens of one, whatever the corpus.
    Raises: DataError when there is no document, or the directory is taken.
    """
    chunks = _chunks(documents, lambda document: len(document.text))
    with (
        _writing(directory, tokenizer, "documents") as writer,
        contextlib.closing(prefetch(chunks, depth=1)) as ahead,  # read while others are encoded
    ):
        for chunk in ahead:
            texts = [document.text for document in chunk]
            encoded, counts = tokenizer.encode_all(texts)
            kept = [count for count in counts if count]
            if kept:
                writer.add_all(*after_bos(encoded, kept, tokenizer.bos, writer.dtype))
            if len(kept) < len(texts):
                writer.counts["empty documents skipped"] += len(texts) - len(kept)
            writer.num_characters += sum(map(len, texts))
            if progress is not None:
                progress(writer.num_documents, writer.num_tokens)
    return TokenStore.open(directory, tokenizer)


def tokenize_conversations(
    conversations: Iterable[Conversation],
    render: Callable[[Conversation], HasMask],
    tokenizer: Encoder,
    directory: Path,
    *,
    progress: Progress | None = None,
) -> TokenStore:
    """Every conversation's tokens and mask in a new store at `directory`.

    `render` is `lambda c: render_training(c, tokenizer)`; the tokenizer itself is asked for what
    the index says. A conversation in which nothing is trained is left out and counted.
    Raises: DataError when no conversation is left, or the directory is taken.
    """
    with _writing(directory, tokenizer, "conversations") as writer:
        for number, conversation in enumerate(conversations, start=1):
            tokens, loss_mask = (rendered := render(conversation)).tokens, rendered.loss_mask
            assert len(tokens) == len(loss_mask), (
                f"{len(tokens)} tokens, {len(loss_mask)} mask entries"
            )
            if any(loss_mask[1:]):
                writer.add(tokens, loss_mask, 0)
            else:
                writer.counts["conversations without a trained token skipped"] += 1
            if progress is not None and number % CHUNK_DOCUMENTS == 0:
                progress(writer.num_documents, writer.num_tokens)
    return TokenStore.open(directory, tokenizer)


def write_tokens(
    chunks: Iterable[tuple[Tokens, Indices]],
    vocabulary: Vocabulary,
    directory: Path,
    *,
    num_characters: int,
) -> TokenStore:
    """Documents that are tokens already, in a new store at `directory`.

    A chunk is whole documents one after another, <|bos|> first in each, and their lengths.
    Raises: DataError when there is no document, or the directory is taken.
    """
    with _writing(directory, vocabulary, "documents") as writer:
        for tokens, lengths in chunks:
            writer.add_all(tokens, lengths)
        writer.num_characters = num_characters
    return TokenStore.open(directory)


def after_bos(
    encoded: npt.NDArray[np.uint32], counts: Sequence[int], bos: int, dtype: np.dtype[Any]
) -> tuple[Tokens, Indices]:
    """Documents' tokens one after another, and how many each has, with <|bos|> before each.

    Shapes: (all tokens,), one count a document -> (all tokens + documents,), (documents,).
    """
    lengths = np.array(counts, np.int64) + 1
    tokens = np.empty(len(encoded) + len(lengths), dtype)
    is_bos = np.zeros(len(tokens), bool)
    is_bos[np.cumsum(lengths) - lengths] = True
    tokens[is_bos] = bos
    tokens[~is_bos] = encoded
    return tokens, lengths


@contextlib.contextmanager
def _writing(directory: Path, tokenizer: Vocabulary, kind: Kind) -> Iterator["_Writer"]:
    """A store under construction; it is at `directory` when the block ends without an exception."""
    if directory.exists():
        raise DataError(f"{directory} exists already, expected a free place for tokens: delete it")
    temporary: Path | None = None
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        name = f".{directory.name}."
        temporary = Path(tempfile.mkdtemp(dir=directory.parent, prefix=name, suffix=".tmp"))
        writer = _Writer(temporary, tokenizer, kind)
        try:
            yield writer
        finally:
            writer.close()
        fingerprint = writer.write_index()
        temporary.chmod(0o755)  # mkdtemp makes it private
        _put_in_place(temporary, directory, fingerprint)
    except OSError as error:
        raise DataError(
            f"{directory}: cannot be written ({error.strerror or error}): make room, or choose "
            "another place with --home"
        ) from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)  # gone already where it was renamed


def _put_in_place(temporary: Path, directory: Path, fingerprint: str) -> None:
    try:
        temporary.rename(directory)
    except OSError:
        # Another process was as fast, on a file system without locks: its tokens are as good.
        with contextlib.suppress(DataError):
            if TokenStore.open(directory).fingerprint == fingerprint:
                return
        raise


class _Writer:
    """The files of a store while they grow."""

    def __init__(self, directory: Path, tokenizer: Vocabulary, kind: Kind) -> None:
        self._directory = directory
        self._tokenizer = tokenizer
        self._kind = kind
        self.dtype = token_dtype(tokenizer.vocab_size)
        self.counts: Counter[str] = Counter()
        self.num_documents = 0
        self.num_tokens = 0
        self._num_trained = 0
        self.num_characters = 0
        names = ["tokens.bin", "offsets.bin", *(["mask.bin"] if kind == "conversations" else [])]
        self._files = {name: _HashedFile(directory / name) for name in names}
        self._files["offsets.bin"].write(np.zeros(1, np.int64))

    def add(self, tokens: list[int], mask: list[int] | None, num_characters: int) -> None:
        self._files["tokens.bin"].write(np.array(tokens, self.dtype))
        if mask is not None:
            self._files["mask.bin"].write(np.array(mask, np.uint8))
        self.num_tokens += len(tokens)
        self.num_documents += 1
        self._num_trained += len(tokens) - 1 if mask is None else sum(mask)
        self.num_characters += num_characters
        self._files["offsets.bin"].write(np.array([self.num_tokens], np.int64))

    def add_all(self, tokens: Tokens, lengths: Indices) -> None:
        """Several documents, all of their tokens trained."""
        assert len(tokens) == lengths.sum(), f"{len(tokens)} tokens, lengths of {lengths.sum()}"
        self._files["tokens.bin"].write(tokens.astype(self.dtype, copy=False))
        self._files["offsets.bin"].write(self.num_tokens + np.cumsum(lengths, dtype=np.int64))
        self.num_tokens += len(tokens)
        self.num_documents += len(lengths)
        self._num_trained += len(tokens) - len(lengths)

    def close(self) -> None:
        with contextlib.ExitStack() as stack:  # all of them, also when one cannot be flushed
            for file in self._files.values():
                stack.callback(file.close)

    def write_index(self) -> str:
        """Write what the closed files hold, and return its fingerprint."""
        if not self.num_documents:
            left_out = "".join(f", {count} {reason}" for reason, count in self.counts.items())
            raise DataError(f"no {self._kind} to tokenize{left_out}: expected at least one")
        files = {name: file.entry() for name, file in self._files.items()}
        hashes = json.dumps([[name, files[name]["sha256"]] for name in sorted(files)])
        index = {
            "format": FORMAT,
            "kind": self._kind,
            "num_documents": self.num_documents,
            "num_tokens": self.num_tokens,
            "num_trained_tokens": self._num_trained,
            "num_characters": self.num_characters,
            "vocab_size": self._tokenizer.vocab_size,
            "bos": self._tokenizer.bos,
            "tokenizer_hash": self._tokenizer.content_hash,
            "fingerprint": hashlib.sha256(hashes.encode()).hexdigest(),
            "counts": dict(self.counts),
            "files": files,
        }
        write_json_atomically(self._directory / "index.json", index)
        return str(index["fingerprint"])


class _HashedFile:
    """A file whose size and SHA-256 are known when it is closed."""

    def __init__(self, path: Path) -> None:
        self._file: IO[bytes] = path.open("wb", buffering=1 << 20)
        self._digest = hashlib.sha256()
        self._num_bytes = 0

    def write(self, values: npt.NDArray[Any]) -> None:
        data = values.tobytes()
        self._file.write(data)
        self._digest.update(data)
        self._num_bytes += len(data)

    def close(self) -> None:
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())

    def entry(self) -> dict[str, Any]:
        return {"bytes": self._num_bytes, "sha256": self._digest.hexdigest()}


def _chunks(items: Iterable[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    chunk: list[T] = []
    num_characters = 0
    for item in items:
        chunk.append(item)
        num_characters += size(item)
        if num_characters >= CHUNK_CHARS or len(chunk) >= CHUNK_DOCUMENTS:
            yield chunk
            chunk, num_characters = [], 0
    if chunk:
        yield chunk

"""What the tests of batches share: a tokenizer of single bytes, and stores made with it."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from nanochat.batches.sources import Texts
from nanochat.batches.store import TokenStore
from nanochat.batches.store_writer import tokenize_conversations, tokenize_corpus
from nanochat.common.messages import Conversation, Message
from nanochat.corpus.documents import Document
from nanochat.tokenizer.chat import render_training
from nanochat.tokenizer.tokenizer import Tokenizer

DocumentStore = Callable[[Sequence[str]], TokenStore]
ConversationStore = Callable[[Sequence[Conversation]], TokenStore]


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
    """A token for every byte, and the special ones: what is in a row can be read off."""
    return Tokenizer([bytes([byte]) for byte in range(256)])


@pytest.fixture
def document_store(byte_tokenizer: Tokenizer, tmp_path: Path) -> DocumentStore:
    """Texts -> their store."""
    numbers = iter(range(1000))

    def create(texts: Sequence[str]) -> TokenStore:
        documents = [Document(text, "test", index) for index, text in enumerate(texts)]
        return tokenize_corpus(documents, byte_tokenizer, tmp_path / f"documents_{next(numbers)}")

    return create


@pytest.fixture
def conversation_store(byte_tokenizer: Tokenizer, tmp_path: Path) -> ConversationStore:
    """Conversations -> their store."""
    numbers = iter(range(1000))

    def create(conversations: Sequence[Conversation]) -> TokenStore:
        return tokenize_conversations(
            conversations,
            lambda conversation: render_training(conversation, byte_tokenizer),
            byte_tokenizer,
            tmp_path / f"conversations_{next(numbers)}",
        )

    return create


def asked(question: str, answer: str) -> Conversation:
    """A conversation of one question and one answer."""
    return (Message("user", question), Message("assistant", answer))


class Corpus(NamedTuple):
    """Files of documents of different lengths, some of them blank."""

    folder: Path
    texts: Texts
    tokenizer: Tokenizer

    def train(self) -> list[str]:
        """The documents to train on, in order."""
        return [document.text for document in self.texts.documents("train", None)]


def write_corpus(folder: Path, num_files: int = 3, num_documents: int = 100) -> None:
    """JSONL; every document is different and none is a part of another."""
    folder.mkdir()
    for file in range(num_files):
        lines = []
        for index in range(num_documents):
            lines.append(json.dumps({"text": f"<{file}.{index}>" + "xyz"[file % 3] * (index % 90)}))
            if index % 7 == file:
                lines.append(json.dumps({"text": "  "}))
        (folder / f"{file}.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture
def corpus(byte_tokenizer: Tokenizer, tmp_path: Path) -> Corpus:
    """About 15,000 characters in three files."""
    write_corpus(tmp_path / "corpus")
    texts = Texts.from_files([str(tmp_path / "corpus")])
    return Corpus(tmp_path / "corpus", texts, byte_tokenizer)

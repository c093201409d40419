"""What the tests of batches share: a tokenizer of single bytes, and stores made with it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from nanochat.batches.store import TokenStore, tokenize_conversations, tokenize_corpus
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

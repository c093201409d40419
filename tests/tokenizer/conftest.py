"""A vocabulary to test with, and the reference's figures."""

import json
from pathlib import Path
from typing import Any

import pytest

from nanochat.tokenizer.reference import load_reference_tokenizer
from nanochat.tokenizer.tokenizer import Tokenizer

GOLDEN = Path(__file__).resolve().parent.parent / "golden"


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """The 512 tokens of the parity folders."""
    return load_reference_tokenizer(GOLDEN / "tokenizer.pkl")


@pytest.fixture(scope="session")
def figures() -> dict[str, Any]:
    """Encodings, conversations, token bytes and special tokens, computed by the reference."""
    return json.loads((GOLDEN / "tokenizer_figures.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def multilingual() -> dict[str, str]:
    """A few lines in each of 54 languages, in 42 scripts."""
    return json.loads((GOLDEN / "tokenizer_multilingual.json").read_text(encoding="utf-8"))

"""The tokenizer is the reference's: ids, masks, prompts, byte lengths."""

from pathlib import Path
from typing import Any

import pytest

from nanochat.common.messages import conversation_from_json
from nanochat.tokenizer.chat import render_prompt, render_training
from nanochat.tokenizer.reference import load_reference_tokenizer
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.golden import tokenizer as golden


@pytest.mark.req("FR-027", "FR-028", "FR-031")
def test_encodings(tokenizer: Tokenizer, figures: dict[str, Any]) -> None:
    assert len(figures["encodings"]) == 10
    for case in figures["encodings"]:
        assert tokenizer.encode(case["text"]) == case["ids"], case["text"]
        assert tokenizer.decode(case["ids"]) == case["text"]


@pytest.mark.req("FR-029")
def test_conversations(tokenizer: Tokenizer, figures: dict[str, Any]) -> None:
    assert len(figures["conversations"]) == 3
    for case in figures["conversations"]:
        conversation = conversation_from_json(case["conversation"]["messages"])
        rendered = render_training(conversation, tokenizer)
        assert rendered == (case["ids"], case["mask"])
        assert render_prompt(conversation, tokenizer) == case["completion_prompt_ids"]


@pytest.mark.req("FR-029")
def test_special_tokens_and_byte_lengths(tokenizer: Tokenizer, figures: dict[str, Any]) -> None:
    assert tokenizer.special_tokens == figures["special_tokens"]
    assert list(tokenizer.token_bytes) == figures["token_bytes"]
    assert tokenizer.vocab_size == len(figures["token_bytes"])
    assert tokenizer.bos == figures["special_tokens"]["<|bos|>"]


@pytest.mark.req("FR-031")
def test_five_generations_say_what_the_golden_files_say(
    shared_dir: Path, tokenizer: Tokenizer, figures: dict[str, Any]
) -> None:
    folders = golden.generations(shared_dir)
    assert len(folders) == 5
    for folder in folders:
        assert golden.figures(folder) == figures, folder
        assert load_reference_tokenizer(folder / "base/tokenizer/tokenizer.pkl") == tokenizer


@pytest.mark.req("US-5", "FR-031")
def test_a_larger_reference_vocabulary_is_read(shared_dir: Path) -> None:
    path = shared_dir / "parity" / "core-eval" / "base" / "tokenizer" / "tokenizer.pkl"
    tokenizer = load_reference_tokenizer(path)
    assert tokenizer.vocab_size == 4096
    assert tokenizer.bos == 4087
    assert sum(tokenizer.token_bytes) > 4087

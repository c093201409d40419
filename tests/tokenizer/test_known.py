"""Encoding by arrays gives the tokens of the regular expression, whatever the text."""

import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.tokenizer import known as known_module
from nanochat.tokenizer import tokenizer as tokenizer_module
from nanochat.tokenizer.known import KnownPieces
from nanochat.tokenizer.tokenizer import GPT4_SPLIT_PATTERN, SPLIT_PATTERN, Tokenizer
from nanochat.tokenizer.train import train_tokenizer

pytestmark = pytest.mark.req("FR-034")

# Whatever the pattern distinguishes, and what lies beside it.
PARTS = [
    *"abLlVvEeRrSsDdMmTt", *"0129", *" \t\n\r\v\f", *"'''!.,-_$<|>",
    "\u00e9", "\u017f", "\u2019", "\u00b2", "\u0664", "\u216b", "\u0301", "\u200d", "\u00a0",
    "\u2003", "\u2028", "\u0085", "\u3000", "\u4e2d", "\u0434", "\u1e9e", "\U0001f600",
    "\U0001d7d8", "\U00020000", "\u0378", "\uffff", "\x00", "\x1c", "don't", "we'LL", " the",
    "  ", "\n\n", " \n ",
]  # fmt: skip
TEXT = """The quick brown fox jumps over the lazy dog. It's 1234 o'clock -- we'll see, don't you?
\tif x == 10:\n\t\treturn {"caf\u00e9": 3.14}  # r\u00e9sum\u00e9...\n\n\n"""


@pytest.fixture(scope="module", params=[SPLIT_PATTERN, GPT4_SPLIT_PATTERN], ids=["two", "three"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """With merges, so that pieces cut elsewhere would be other tokens."""
    dice = random.Random(0)
    texts = ["".join(dice.choices(PARTS, k=200)) for _ in range(200)] + [TEXT] * 20
    return train_tokenizer(texts, 900, pattern=request.param)


def check(tokenizer: Tokenizer, texts: list[str]) -> None:
    tokens, lengths = tokenizer.encode_all(texts)
    truth = [tokenizer.encode(text) for text in texts]
    assert lengths == [len(each) for each in truth]
    assert tokens.tolist() == [token for each in truth for token in each]


@settings(max_examples=400)
@given(texts=st.lists(st.lists(st.sampled_from(PARTS), max_size=30).map("".join), max_size=6))
def test_what_the_pattern_distinguishes(tokenizer: Tokenizer, texts: list[str]) -> None:
    check(tokenizer, texts)


@settings(max_examples=200)
@given(texts=st.lists(st.text(max_size=40), max_size=4))
def test_any_text(tokenizer: Tokenizer, texts: list[str]) -> None:
    check(tokenizer, texts)


def test_long_random_texts(tokenizer: Tokenizer) -> None:
    dice = random.Random(1)
    for weight in (0, 1, 5):  # ever more of what is ordinary
        parts = [*PARTS, *("abc def. Ghi's " * weight)]
        check(tokenizer, ["".join(dice.choices(parts, k=3000)) for _ in range(20)])


def test_ends_of_texts_are_ends(tokenizer: Tokenizer) -> None:
    check(
        tokenizer,
        ["", "a", "", "  ", " ", "\n", "b  ", "  c", "'", "'s", "!", "!\n", "\n!", "", ""],
    )
    check(tokenizer, [])
    check(tokenizer, [""])


def test_other_scripts_and_lone_surrogates(tokenizer: Tokenizer) -> None:
    russian = "\u0434\u0430 \u043d\u0435\u0442, " * 50
    check(tokenizer, ["plain", russian, "caf\u00e9 " * 9, "\u4e2d\u6587" * 40, "end"])
    check(tokenizer, ["one \ud800 two", "three"])


def test_every_character_of_the_first_planes(tokenizer: Tokenizer) -> None:
    codes = [code for code in range(0x20000) if not 0xD800 <= code < 0xE000]
    for start in range(0, len(codes), 512):
        some = codes[start : start + 512]
        # Ordinary letters around keep it with the arrays.
        check(tokenizer, ["".join(f"ab cd{chr(code)}ef, {chr(code)} 12" for code in some)])


def test_a_full_table_goes_on(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_module, "MOST_KNOWN", 5)
    monkeypatch.setattr(known_module, "TABLE_BITS", 3)
    known = KnownPieces(
        2 if tokenizer.pattern == SPLIT_PATTERN else 3,
        tokenizer._encode_pieces,
        tokenizer.encode_array,
        (),
    )
    for _ in range(2):
        tokens, lengths = known.encode([TEXT, TEXT * 3])
        assert tokens[: lengths[0]].tolist() == tokenizer.encode(TEXT)
        assert tokens[lengths[0] :].tolist() == tokenizer.encode(TEXT * 3)
    assert known._num_known == 5


def test_groups_do_not_change_anything(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [TEXT[start:] for start in range(0, 100, 7)]
    whole, lengths = tokenizer.encode_all(texts)
    monkeypatch.setattr(tokenizer_module, "_GROUP_CHARS", 150)
    again, same = tokenizer.encode_all(texts)
    assert lengths == same and np.array_equal(whole, again)


def test_real_text(shared_dir: Path, tiny_tokenizer: Any) -> None:
    from nanochat.corpus.documents import read_documents

    path = shared_dir / "data" / "text" / "multilingual" / "udhr.jsonl.gz"
    texts = [each.text[:2000] for each in itertools.islice(read_documents(path), 200)]
    check(tiny_tokenizer, texts)

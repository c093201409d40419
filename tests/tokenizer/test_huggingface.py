"""tokenizer/huggingface.py against Hugging Face's own library: equal ids, in both directions."""

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common.errors import TokenizerError
from nanochat.tokenizer.huggingface import (
    BREAK,
    load_hf_tokenizer,
    tokenizer_from_hf_json,
    tokenizer_to_hf_json,
)
from nanochat.tokenizer.tokenizer import GPT4_SPLIT_PATTERN, SPECIAL_TOKENS, Tokenizer
from nanochat.tokenizer.train import train_tokenizer

Change = Callable[[dict[str, Any]], object]


def theirs(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(json.dumps(tokenizer_to_hf_json(tokenizer)))


@pytest.fixture(scope="module")
def learnt(multilingual: dict[str, str]) -> Tokenizer:
    """2,000 tokens of 54 languages: most merges are of halves of characters."""
    return train_tokenizer(multilingual.values(), 2000)


@pytest.fixture
def pair(learnt: Tokenizer) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    return learnt, theirs(learnt)


@pytest.mark.req("FR-027", "FR-028", "FR-031", "SC-009")
def test_ids_are_equal_in_54_languages(
    pair: tuple[Tokenizer, tokenizers.Tokenizer],
    tokenizer: Tokenizer,
    multilingual: dict[str, str],
    figures: dict[str, Any],
) -> None:
    texts = [*multilingual.values(), "\n".join(multilingual.values())]
    texts += [case["text"] for case in figures["encodings"]]
    texts += ["", " ", "   \r\n\n \t x", "don't WE'LL \u017f'\u017f", "12345 6", "\U0001f468\u200d"]
    for ours, library in (pair, (tokenizer, theirs(tokenizer))):
        library.encode_special_tokens = True  # a text is text, even one that says <|bos|>
        for text in texts:
            ids = library.encode(text).ids
            assert ids == ours.encode(text), text
            assert library.decode(ids) == text


@given(st.text(max_size=60))
@pytest.mark.req("FR-031")
def test_ids_are_equal_whatever_the_text(
    pair: tuple[Tokenizer, tokenizers.Tokenizer], text: str
) -> None:
    ours, library = pair
    assert library.encode(text).ids == ours.encode(text)


@pytest.mark.req("FR-031")
def test_ids_are_equal_where_many_pairs_make_the_same_token() -> None:
    """Words of two letters: every token has many halves, and pieces overlap in all ways."""
    draw = random.Random(7)

    def words(count: int, longest: int) -> list[str]:
        return ["".join(draw.choices("ab", k=draw.randint(1, longest))) for _ in range(count)]

    for _ in range(5):
        ours = train_tokenizer([" ".join(words(60, 30))], 290)
        library = theirs(ours)
        for text in words(300, 40):
            assert library.encode(text).ids == ours.encode(text), text


@pytest.mark.req("FR-029")
def test_special_tokens_are_one_id_each(pair: tuple[Tokenizer, tokenizers.Tokenizer]) -> None:
    ours, library = pair
    text = "".join(f"{name}x" for name in SPECIAL_TOKENS)
    expected = [i for name in SPECIAL_TOKENS for i in (ours.special(name), *ours.encode("x"))]
    assert library.encode(text).ids == expected
    assert library.decode(expected) == "x" * len(SPECIAL_TOKENS), "they are no text"
    assert ours.encode("<|bos|>") != [ours.bos], "ours never takes text for one"


@pytest.mark.req("FR-029", "FR-062")
def test_a_break_keeps_a_name_text(pair: tuple[Tokenizer, tokenizers.Tokenizer]) -> None:
    ours, library = pair
    for name in SPECIAL_TOKENS:
        broken = name.replace("<|", f"<|{BREAK}")
        assert library.encode(f"a{broken}b{name}").ids == [
            *ours.encode(f"a{name}b"),
            ours.special(name),
        ]
    assert library.encode(BREAK[:2]).ids == ours.encode(BREAK[:2]), "only all three are taken out"


@pytest.mark.req("FR-026", "US-5")
def test_there_and_back(learnt: Tokenizer, tokenizer: Tokenizer, tmp_path: Path) -> None:
    byte_alone = [bytes([byte]) for byte in range(256)]
    unreachable = Tokenizer([*byte_alone, b"abc"], GPT4_SPLIT_PATTERN)
    for ours in (learnt, tokenizer, Tokenizer(byte_alone), unreachable):
        raw = tokenizer_to_hf_json(ours)
        assert tokenizer_from_hf_json(raw) == ours
        path = tmp_path / "tokenizer.json"
        path.write_text(json.dumps(raw))
        assert load_hf_tokenizer(path) == ours
        theirs(ours).save(str(path))  # what their library writes, it being theirs to format
        assert load_hf_tokenizer(path) == ours
    assert theirs(unreachable).encode("abc abcd").ids == unreachable.encode("abc abcd")


@pytest.mark.req("FR-048")
def test_other_ways_of_writing_it(learnt: Tokenizer) -> None:
    """Merges as strings; only one pair a token; special tokens in the vocabulary too."""
    raw = tokenizer_to_hf_json(learnt)
    merges: list[list[str]] = raw["model"]["merges"]
    raw["model"]["merges"] = [" ".join(merge) for merge in merges]
    assert tokenizer_from_hf_json(raw) == learnt
    one_each = {"".join(merge): merge for merge in reversed(merges)}
    raw["model"]["merges"] = list(reversed(one_each.values()))
    assert len(one_each) < len(merges)
    assert tokenizer_from_hf_json(raw) == learnt
    raw["normalizer"] = None
    raw["model"]["vocab"] |= learnt.special_tokens
    assert tokenizer_from_hf_json(raw) == learnt


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.clear(), r"not a tokenizer.json of Hugging Face \(KeyError"),
        (lambda raw: raw.update(model=5), r"\(TypeError"),
        (lambda raw: raw["model"].update(vocab=[]), r"\(AttributeError"),
        (lambda raw: raw["pre_tokenizer"].update(pretokenizers=[]), "not enough values"),
        (
            lambda raw: raw["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex="(a+)+b"),
            r"splits by '\(a\+\)\+b', expected",
        ),
        (
            lambda raw: raw["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed"),
            "cuts text in another way",
        ),
        (
            lambda raw: raw["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
            "cuts text in another way",
        ),
        (lambda raw: raw.update(normalizer={"type": "NFC"}), "has a normalizer, which would"),
        (lambda raw: raw["model"].update(type="Unigram"), "is a 'Unigram' of 1991 tokens"),
        (lambda raw: raw["model"].update(dropout=0.1), "its model has dropout"),
        (lambda raw: raw["model"]["vocab"].pop("a"), "does not number its 1990 tokens 0 to 1989"),
        (lambda raw: raw["model"]["vocab"].update({"\u4e00": 1991}), r"\(KeyError: '\u4e00'"),
        (lambda raw: raw["model"]["merges"].reverse(), "merges are not in the order"),
        (lambda raw: raw["model"]["merges"].append(["a", "!"]), "merges are not in the order"),
        (lambda raw: raw["model"]["merges"].append("a"), "not enough values"),
        (lambda raw: raw["model"].update(merges=[]), r"no merge makes b'.*' \(and \d+ more\)"),
        (lambda raw: raw["added_tokens"].pop(), "its added tokens are .*expected the nine"),
        (lambda raw: raw["added_tokens"][0].update(content="<s>"), "expected the nine"),
        (lambda raw: raw["added_tokens"][0].update(id=5), "expected the nine .*<|bos|> as 1991"),
    ],
)
@pytest.mark.req("EC-2", "FR-062")
def test_what_would_give_other_ids_is_refused(
    change: Change, message: str, learnt: Tokenizer, tmp_path: Path
) -> None:
    raw = copy.deepcopy(tokenizer_to_hf_json(learnt))
    change(raw)
    with pytest.raises(TokenizerError, match=message):
        tokenizer_from_hf_json(raw)
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(TokenizerError, match=rf"tokenizer\.json: .*{message}"):
        load_hf_tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.req("EC-2")
def test_files_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(TokenizerError, match=r"tokenizer\.json does not exist"):
        load_hf_tokenizer(path)
    for content, message in (("{", "not JSON"), ("[]", "not a tokenizer.json of Hugging Face")):
        path.write_text(content)
        with pytest.raises(TokenizerError, match=rf"tokenizer\.json.*{message}"):
            load_hf_tokenizer(path)
    monkeypatch.setattr("nanochat.tokenizer.huggingface.MAX_FILE_BYTES", 1)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: 2 bytes, expected at most 1"):
        load_hf_tokenizer(path)

"""tokenizer/tiktoken_file.py against tiktoken's own reader: equal ids, in both directions."""

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import tiktoken.load
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common.errors import TokenizerError
from nanochat.tokenizer.tiktoken_file import PATTERNS, load_tiktoken, save_tiktoken, sidecar_path
from nanochat.tokenizer.tokenizer import (
    GPT4_SPLIT_PATTERN,
    MAX_FILE_BYTES,
    SPECIAL_TOKENS,
    SPLIT_PATTERN,
    Tokenizer,
)
from nanochat.tokenizer.train import train_tokenizer

BYTES = [bytes([byte]) for byte in range(256)]
TEXTS = [
    "",
    " ",
    "   \r\n\n \t x",
    "don't WE'LL \u017f'\u017f",
    "12345 67 890",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1ee",
    "e\u0301\u0323 \u0928\u093f \u0e01\u0e33 \ufeff\u00a0\u3000",
    "def f(x: int) -> None:\n\treturn {'a': [1, 2_000]}  # \\n\n",
    "<|bos|> <|user_start|>",
]


@pytest.fixture(scope="module")
def learnt(multilingual: dict[str, str]) -> Tokenizer:
    """2,000 tokens of 54 languages: most merges are of halves of characters."""
    return train_tokenizer(multilingual.values(), 2000)


def theirs(path: Path, monkeypatch: pytest.MonkeyPatch) -> tiktoken.Encoding:
    """What a user of tiktoken builds of the two files."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")  # nothing outside of the test is written
    beside = json.loads(sidecar_path(path).read_text())
    return tiktoken.Encoding(
        "theirs",
        pat_str=beside["pattern"],
        mergeable_ranks=tiktoken.load.load_tiktoken_bpe(str(path)),
        special_tokens=beside["special_tokens"],
    )


@pytest.mark.req("FR-027", "FR-028", "FR-031", "SC-009")
def test_ids_are_equal_in_54_languages(
    learnt: Tokenizer,
    multilingual: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "vocabulary.tiktoken"
    save_tiktoken(learnt, path)
    assert load_tiktoken(path) == learnt
    library = theirs(path, monkeypatch)
    for text in [*multilingual.values(), "\n".join(multilingual.values()), *TEXTS]:
        ids = library.encode_ordinary(text)
        assert ids == learnt.encode(text) == load_tiktoken(path).encode(text), text
        assert library.decode(ids) == text
    for name, token_id in learnt.special_tokens.items():
        assert library.encode(name, allowed_special="all") == [token_id]


@pytest.mark.req("FR-027", "FR-031", "SC-009")
def test_ids_of_the_declaration_in_all_languages(
    shared_dir: Path, learnt: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiktoken(learnt, tmp_path / "vocabulary.tiktoken")
    library = theirs(tmp_path / "vocabulary.tiktoken", monkeypatch)
    path = shared_dir / "data" / "text" / "multilingual" / "udhr.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"][:1000] for line in lines]
    assert len(texts) > 100
    for text in texts:
        assert library.encode_ordinary(text) == learnt.encode(text)


@given(text=st.text())
@pytest.mark.req("FR-027", "FR-031")
def test_ids_are_equal_for_any_text(
    text: str, learnt: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.tiktoken"
    if not path.exists():
        save_tiktoken(learnt, path)
    assert load_tiktoken(path).encode(text) == learnt.encode(text)


@pytest.mark.req("FR-028", "FR-031")
def test_a_file_that_stands_alone_needs_its_pattern(tmp_path: Path) -> None:
    """Such as cl100k_base.tiktoken, or any that tiktoken itself writes."""
    path = tmp_path / "alone.tiktoken"
    path.write_bytes(WHOLE)
    with pytest.raises(TokenizerError, match=r"alone.tiktoken.json is not beside it: say --patte"):
        load_tiktoken(path)
    assert load_tiktoken(path, "nanochat") == Tokenizer(BYTES, SPLIT_PATTERN)
    assert load_tiktoken(path, "gpt4") == Tokenizer(BYTES, GPT4_SPLIT_PATTERN)
    with pytest.raises(TokenizerError, match="pattern is 'gpt2', expected one of nanochat, gpt4"):
        load_tiktoken(path, "gpt2")
    assert set(PATTERNS) == {"nanochat", "gpt4"}


def test_pattern_and_sidecar_have_to_agree(tmp_path: Path) -> None:
    path = tmp_path / "a.tiktoken"
    save_tiktoken(Tokenizer(BYTES, GPT4_SPLIT_PATTERN), path)
    assert load_tiktoken(path).pattern == load_tiktoken(path, "gpt4").pattern == GPT4_SPLIT_PATTERN
    with pytest.raises(TokenizerError, match=r"a.tiktoken.json beside it has another pattern than"):
        load_tiktoken(path, "nanochat")


def test_lines_in_any_order_and_blank_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.tiktoken"
    save_tiktoken(Tokenizer([*BYTES, b"ab"]), path)
    lines = path.read_bytes().splitlines()
    assert lines[97] == b"YQ== 97" and len(lines) == 257
    path.write_bytes(b"\r\n".join([b"", *reversed(lines), b"", b""]))
    assert load_tiktoken(path) == Tokenizer([*BYTES, b"ab"])


def line(token: bytes, token_id: object) -> bytes:
    return base64.b64encode(token) + f" {token_id}\n".encode()


WHOLE = b"".join(line(token, token_id) for token_id, token in enumerate(BYTES))
WRONG: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "lacks 256 of the 256 single bytes"),
    "one word": (b"YQ==\n", r"line 1 is 'YQ==', expected a token in base64, a blank and its id"),
    "three words": (b"YQ== 1 2\n", "line 1 is 'YQ== 1 2'"),
    "not base64": (WHOLE + b"!!! 256\n", "line 257 is '!!! 256'"),
    "no number": (WHOLE + b"YWI= x\n", "line 257 is 'YWI= x'"),
    "a negative number": (WHOLE + b"YWI= -1\n", "line 257 is 'YWI= -1'"),
    "a huge number": (WHOLE + b"YWI= " + b"9" * 100_000, "line 257 is 'YWI= 9+[.]{3}, expected"),
    "digits of another script": (WHOLE + "YWI= \u0662".encode(), "line 257 is "),
    "an id twice": (WHOLE + line(b"ab", 255), "line 257: id 255 is there already"),
    "a gap": (WHOLE + line(b"ab", 257), "has 257 tokens but no id 256: expected ids 0, 1, 2"),
    "a token twice": (WHOLE + line(b"a", 256), "tokens 97 and 256 are both b'a'"),
    "an empty token": (WHOLE + b" 256\n", "line 257 is "),
    "a byte too few": (WHOLE[: WHOLE.rindex(b"/w==")], "lacks 1 of the 256 single bytes"),
    "a pickle": (b"\x80\x04cos\nsystem\n.", "line 1 is "),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.req("EC-2", "FR-031")
def test_wrong_files_are_refused_with_their_name(kind: str, tmp_path: Path) -> None:
    content, message = WRONG[kind]
    path = tmp_path / "a.tiktoken"
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match=rf"^{path}: .*{message}") as caught:
        load_tiktoken(path, "nanochat")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < len(str(path)) + 250


def special(first: int) -> dict[str, Any]:
    return {name: first + place for place, name in enumerate(SPECIAL_TOKENS)}


BESIDE: dict[str, tuple[str, str]] = {
    "not JSON": ("{", "what stands beside it cannot be read: .*not JSON"),
    "a list": ("[]", "a.tiktoken.json beside it: expected pattern and special_tokens"),
    "a key too many": (
        json.dumps({"pattern": SPLIT_PATTERN, "special_tokens": special(256), "x": 1}),
        "expected pattern and special_tokens",
    ),
    "another pattern": (
        json.dumps({"pattern": "(x+)+y", "special_tokens": special(256)}),
        "the split pattern is unknown",
    ),
    "a pattern that is no text": (
        json.dumps({"pattern": ["x"], "special_tokens": special(256)}),
        "the split pattern is unknown",
    ),
    "special tokens elsewhere": (
        json.dumps({"pattern": SPLIT_PATTERN, "special_tokens": special(255)}),
        "expected the nine of karpathy/nanochat in its order, <|bos|> as 256 to",
    ),
    "other special tokens": (
        json.dumps({"pattern": SPLIT_PATTERN, "special_tokens": {"<|endoftext|>": 256}}),
        "special tokens are {'<|endoftext|>': 256}, expected the nine",
    ),
    "special tokens in a list": (
        json.dumps({"pattern": SPLIT_PATTERN, "special_tokens": list(SPECIAL_TOKENS)}),
        "expected the nine",
    ),
    "too large": (" " * 70_000, "has more than 65536 bytes"),
}


@pytest.mark.parametrize("kind", BESIDE)
@pytest.mark.req("EC-2")
def test_wrong_files_beside_it(kind: str, tmp_path: Path) -> None:
    content, message = BESIDE[kind]
    path = tmp_path / "a.tiktoken"
    save_tiktoken(Tokenizer(BYTES), path)
    sidecar_path(path).write_text(content)
    with pytest.raises(TokenizerError, match=rf"^{path}: .*{message}") as caught:
        load_tiktoken(path)
    assert "\n" not in str(caught.value)


@pytest.mark.req("EC-2")
def test_absent_and_huge_files(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"absent.tiktoken: cannot be read \(No such file"):
        load_tiktoken(tmp_path / "absent.tiktoken")
    huge = tmp_path / "huge.tiktoken"
    with huge.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(TokenizerError, match=f"has {MAX_FILE_BYTES + 1} bytes, expected at most"):
        load_tiktoken(huge)


@given(place=st.integers(0, len(WHOLE) - 1), byte=st.integers(0, 255))
@pytest.mark.req("EC-2")
def test_a_changed_byte_gives_a_vocabulary_or_a_refusal(
    place: int, byte: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("changed") / "a.tiktoken"
    path.write_bytes(WHOLE[:place] + bytes([byte]) + WHOLE[place + 1 :])
    try:
        tokenizer = load_tiktoken(path, "nanochat")
    except TokenizerError as error:
        assert str(error).startswith(f"{path}: ")
    else:
        assert tokenizer.decode(tokenizer.encode("Hello world")) == "Hello world"

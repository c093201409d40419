"""tokenizer.py: what goes in comes out, on disk and off it; text never becomes a special token."""

import base64
import gzip
import itertools
import json
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from hypothesis import example, given
from hypothesis import strategies as st

from nanochat.common.errors import TokenizerError
from nanochat.tokenizer import tokenizer as module
from nanochat.tokenizer.tokenizer import (
    GPT4_SPLIT_PATTERN,
    KNOWN_PATTERNS,
    MAX_FILE_BYTES,
    MAX_VOCAB_SIZE,
    SPECIAL_TOKENS,
    SPLIT_PATTERN,
    Tokenizer,
    replace_surrogates,
)
from tests.twins import bpe

BYTES = [bytes([byte]) for byte in range(256)]
# Every character but lone surrogates, and often the ones the split pattern looks at.
TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("ab1 '\n\r\t<|>s\u3000!"))
# Assigned in Unicode for long: the twin's tables (Python) and tiktoken's (Rust) agree on them.
OLD_TEXT = st.text(
    st.characters(max_codepoint=0x2FFF, exclude_categories=["Cs", "Cn"])
    | st.sampled_from("the and ing 's 'LL 12 \n\r\t!?"),
    max_size=60,
)


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer) -> list[bytes]:
    return [tokenizer.decode_bytes([token]) for token in range(503)]


# ------------------------------------------------------------------------------- text and tokens


@pytest.mark.req("FR-027", "FR-028", "FR-031")
@given(text=TEXT)
def test_round_trip(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert tokenizer.decode_bytes(tokens) == text.encode()
    assert sum(tokenizer.token_bytes[token] for token in tokens) == len(text.encode())


@pytest.mark.req("FR-029")
@given(text=TEXT, names=st.lists(st.sampled_from(SPECIAL_TOKENS), min_size=1))
def test_text_never_becomes_a_special_token(
    tokenizer: Tokenizer, text: str, names: list[str]
) -> None:
    text = text.join(["", *names, ""])
    tokens = tokenizer.encode(text)
    assert all(token < 503 for token in tokens)
    assert tokenizer.decode(tokens) == text
    assert tokenizer.encode_batch([text, text], num_threads=2) == [tokens, tokens]
    together, counts = tokenizer.encode_all([text, text])
    assert (together.tolist(), counts) == (tokens + tokens, [len(tokens)] * 2)


@pytest.mark.req("FR-027")
@given(text=OLD_TEXT)
@example(text="don't  WE'LL\n\n \tx  12345 !!\r\n")
def test_encoding_equals_the_twin(tokenizer: Tokenizer, vocabulary: list[bytes], text: str) -> None:
    assert tokenizer.encode(text) == bpe.encode(text, vocabulary, SPLIT_PATTERN)


@pytest.mark.req("SC-009", "US-5", "FR-031")
def test_every_script_comes_back(tokenizer: Tokenizer, multilingual: dict[str, str]) -> None:
    assert len(multilingual) > 50
    for language, text in multilingual.items():
        assert tokenizer.decode(tokenizer.encode(text)) == text, language
    family = "\U0001f469\u200d\U0001f469\u200d\U0001f467 \u0915\u094d\u0937 e\u0301 \ufeff\u202e"
    assert tokenizer.decode(tokenizer.encode(family)) == family


@pytest.mark.req("SC-009", "US-5", "FR-031")
def test_multilingual_corpora_come_back(shared_dir: Path, tokenizer: Tokenizer) -> None:
    paths = sorted((shared_dir / "data" / "text" / "multilingual").glob("*.jsonl.gz"))
    assert len(paths) >= 3
    for path in paths:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            texts = [json.loads(line)["text"] for line in lines]
        encoded = tokenizer.encode_batch(texts)
        assert [tokenizer.decode(tokens) for tokens in encoded] == texts, path


@pytest.mark.req("FR-027")
@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("a\ud800b", "a\ufffdb"),
        ("\udc00", "\ufffd"),
        ("x\ud83d", "x\ufffd"),
        ("\ud83d\ude00", "\U0001f600"),
        ("\ufeff\ud800", "\ufeff\ufffd"),
        ("\udfff\ud800 ok", "\ufffd\ufffd ok"),
    ],
)
def test_lone_surrogates_become_replacement_characters(
    tokenizer: Tokenizer, text: str, meaning: str
) -> None:
    assert replace_surrogates(text) == meaning
    assert tokenizer.decode(tokenizer.encode(text)) == meaning
    assert tokenizer.encode(text) == tokenizer.encode(meaning)


@given(text=st.text(st.characters() | st.sampled_from("\ud83d\ude00\udfff")))
def test_surrogates_anywhere_give_utf8(tokenizer: Tokenizer, text: str) -> None:
    meaning = replace_surrogates(text)
    assert meaning.encode().decode() == meaning
    assert tokenizer.encode(text) == tokenizer.encode(meaning)


@pytest.mark.req("FR-028")
def test_bytes_that_are_no_utf8_are_replaced(tokenizer: Tokenizer) -> None:
    half = list("\u00e9".encode())[:1]
    assert tokenizer.decode([*half, *b"a"]) == "\ufffda"
    assert tokenizer.decode_bytes([*half, *b"a"]) == b"\xc3a"
    assert tokenizer.decode([]) == ""
    assert tokenizer.decode([tokenizer.bos, 97]) == "<|bos|>a"


@pytest.mark.req("FR-028")
@pytest.mark.parametrize("wrong", [512, -1, 10**9, 2**40])
def test_unknown_token_is_named(tokenizer: Tokenizer, wrong: int) -> None:
    with pytest.raises(TokenizerError, match=f"^token {wrong} is outside the vocabulary of 512"):
        tokenizer.decode([97, wrong])
    with pytest.raises(TokenizerError, match=f"token {wrong} "):
        tokenizer.decode_bytes([wrong])


@pytest.mark.req("FR-029")
def test_special_names(tokenizer: Tokenizer) -> None:
    assert [tokenizer.special(name) for name in SPECIAL_TOKENS] == list(range(503, 512))
    assert tokenizer.bos == tokenizer.special("<|bos|>") == 503
    with pytest.raises(TokenizerError, match=r"'<\|pad\|>' is no special token: expected one of"):
        tokenizer.special("<|pad|>")
    tokenizer.special_tokens["<|bos|>"] = 0
    assert tokenizer.bos == 503


@pytest.mark.req("FR-027")
@pytest.mark.parametrize("num_threads", [None, 1, 3])
@pytest.mark.parametrize("num_texts", [0, 1, 2, 500])
def test_batch_is_one_by_one(tokenizer: Tokenizer, num_threads: int | None, num_texts: int) -> None:
    texts = [f"text number {index} " * (index % 7) for index in range(num_texts)]
    expected = [tokenizer.encode(text) for text in texts]
    assert tokenizer.encode_batch(texts, num_threads=num_threads) == expected


def test_threads_share_a_tokenizer(tokenizer: Tokenizer, multilingual: dict[str, str]) -> None:
    texts = list(multilingual.values()) * 5
    with ThreadPoolExecutor(8) as threads:
        decoded = threads.map(lambda text: tokenizer.decode(tokenizer.encode(text)), texts)
        assert list(decoded) == texts


# -------------------------------------------------------------------------------- very long runs


@pytest.mark.req("FR-027", "FR-031")
@pytest.mark.parametrize("unit", ["x", " ", "\n", "!", "7", "\u3000", " \t", "\u0301"])
def test_a_million_of_anything_takes_a_moment(tokenizer: Tokenizer, unit: str) -> None:
    text = "a" + unit * 1_000_001 + "b"
    start = time.perf_counter()
    tokens = tokenizer.encode(text)
    assert time.perf_counter() - start < 10, "0.1 to 0.5 s on two cores"
    assert tokenizer.decode(tokens) == text


WHITESPACE_RUN = st.text(st.sampled_from(" \t\n\r\u3000\x85"), max_size=30)
AROUND = st.text(st.sampled_from("aZ9!' \n\U0001f600\x1c"), max_size=6)


@pytest.mark.req("FR-027", "FR-031")
@given(parts=st.lists(st.tuples(AROUND, WHITESPACE_RUN), max_size=5), end=AROUND)
@example(parts=[("a", " " * 40), ("!", "\n" * 40 + " " * 40)], end="")
@example(parts=[("!", "\n" * 40 + " ")], end="x")
@example(parts=[("", "\r" + " " * 31)], end="\u00a0")
def test_long_whitespace_is_exact(
    tokenizer: Tokenizer, parts: list[tuple[str, str]], end: str
) -> None:
    text = "".join(itertools.chain.from_iterable(parts)) + end
    with pytest.MonkeyPatch.context() as patch:  # "long" is 100,000; here 10, where both ways work
        patch.setattr(module, "_LONG_RUN", 10)
        patch.setattr(module, "_STRIDE", 1)
        patch.setattr(module, "_SAMPLED_RUN", module.re.compile(module._SPACE + "{9}"))
        patch.setattr(module, "_RUN", module.re.compile(module._SPACE + "{10,}"))
        assert tokenizer.encode(text) == tiktoken_encode(tokenizer, text)


def tiktoken_encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Straight from tiktoken, nothing of ours between."""
    return tokenizer._encoding.encode_ordinary(text)


@pytest.mark.req("FR-027")
@pytest.mark.parametrize("offset", [0, 1, 9_999, 10_000])
def test_long_whitespace_is_found_wherever_it_begins(tokenizer: Tokenizer, offset: int) -> None:
    text = "x" * offset + " " * 100_000 + "y"
    assert module._SAMPLED_RUN.search(text[:: module._STRIDE])
    assert tokenizer.encode(text) == tiktoken_encode(tokenizer, text)
    surrogate = "x" * offset + " " * 100_000 + "\ud800"
    assert tokenizer.decode(tokenizer.encode(surrogate)) == surrogate[:-1] + "\ufffd"


def test_whitespace_is_what_the_pattern_takes_for_it() -> None:
    ranks = {byte: rank for rank, byte in enumerate(BYTES)}
    spaces = tiktoken.Encoding("s", pat_str=r"\s+", mergeable_ranks=ranks, special_tokens={})
    ours = module.re.compile(module._SPACE)
    for code in itertools.chain(range(0xD800), range(0xE000, 0x11000)):
        is_space = bool(spaces.encode_ordinary(chr(code)))
        assert is_space == bool(ours.match(chr(code))), hex(code)


# ----------------------------------------------------------------------------- the object, on disk


def test_equality_is_content(tokenizer: Tokenizer, vocabulary: list[bytes]) -> None:
    twin = Tokenizer(vocabulary)
    assert twin == tokenizer and hash(twin) == hash(tokenizer)
    assert twin.content_hash == tokenizer.content_hash and len(twin.content_hash) == 64
    assert Tokenizer(vocabulary[:-1]) != tokenizer
    assert Tokenizer(vocabulary, GPT4_SPLIT_PATTERN) != tokenizer
    assert tokenizer != "tokenizer"
    assert repr(tokenizer) == f"Tokenizer(vocab_size=512, content_hash={twin.content_hash[:12]})"


def test_content_hash_is_a_promise(tokenizer: Tokenizer) -> None:
    # Saved models name their tokenizer by it: it must never change for the same content.
    content = {
        "pattern": SPLIT_PATTERN,
        "special_tokens": list(SPECIAL_TOKENS),
        "tokens": [base64.b64encode(byte).decode() for byte in BYTES],
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    assert Tokenizer(BYTES).content_hash == module.hashlib.sha256(canonical.encode()).hexdigest()
    assert Tokenizer(BYTES).content_hash[:16] == "e1ce24b55a811f8d"
    assert tokenizer.content_hash[:16] == "40c2ab1fac9dcc0d"


def test_pickles_for_other_processes(tokenizer: Tokenizer) -> None:
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy == tokenizer and copy.encode("Hello world") == tokenizer.encode("Hello world")


def test_patterns(tokenizer: Tokenizer, vocabulary: list[bytes]) -> None:
    assert KNOWN_PATTERNS == (SPLIT_PATTERN, GPT4_SPLIT_PATTERN)
    assert tokenizer.pattern == SPLIT_PATTERN
    three = Tokenizer([*BYTES, b"12", b"123"], GPT4_SPLIT_PATTERN)
    two = Tokenizer([*BYTES, b"12", b"123"], SPLIT_PATTERN)
    assert three.encode("123") == [257] and two.encode("123") == [256, ord("3")]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (BYTES[:-1], "lacks 1 of the 256 single bytes .first: 255."),
        ([], "lacks 256 of the 256 single bytes"),
        ([*BYTES, b""], "token 256 is empty"),
        ([*BYTES, b"ab", b"ab"], "tokens 256 and 257 are both b'ab'"),
        ([b"x"] * MAX_VOCAB_SIZE, f"has {MAX_VOCAB_SIZE + 9} tokens, expected at most"),
    ],
)
@pytest.mark.req("EC-7")
def test_wrong_vocabularies(tokens: list[bytes], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        Tokenizer(tokens)


def test_unknown_pattern_is_refused() -> None:
    with pytest.raises(
        TokenizerError, match="pattern '.x.*' is unknown: expected that of karpathy"
    ):
        Tokenizer(BYTES, "(x+)+y")


@pytest.mark.req("FR-030", "US-5")
def test_save_and_load(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "new" / "tokenizer.json"
    tokenizer.save(path)
    loaded = Tokenizer.load(path)
    assert loaded == tokenizer and loaded.pattern == SPLIT_PATTERN
    assert loaded.encode("Hello world") == tokenizer.encode("Hello world")
    assert [entry.name for entry in path.parent.iterdir()] == ["tokenizer.json"]
    first = path.read_bytes()
    loaded.save(path)
    assert path.read_bytes() == first and first.isascii()


def saved(tokenizer: Tokenizer, path: Path) -> dict[str, Any]:
    tokenizer.save(path)
    return json.loads(path.read_text())


@pytest.mark.req("EC-2")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": "0" * 64}, "content hash is .* but the file says 000000000000.*copy it again"),
        ({"tokens": ["!"]}, "token 0 is '!', expected base64"),
        ({"tokens": ["\u00e9"]}, "token 0 is '\u00e9', expected base64"),
        ({"tokens": ["AA=="]}, "lacks 255 of the 256 single bytes"),
        ({"tokens": [0]}, '"tokens" is .0., expected a list of strings'),
        ({"tokens": "AA=="}, '"tokens" is .* expected a list of strings'),
        ({"pattern": "(x+)+y"}, "is unknown: expected that of karpathy/nanochat"),
        ({"pattern": None}, '"pattern" is None, expected a string'),
        ({"sha256": 1}, '"sha256" is 1, expected a string'),
        ({"special_tokens": ["<|bos|>"]}, "expected the nine of karpathy/nanochat"),
        ({"version": 2}, "format version 2, but this nanochat reads version 1"),
        ({"format": "gpt2"}, "not a tokenizer: expected"),
        ({"extra": 1}, "keys are .* expected"),
    ],
)
def test_changed_files_are_refused(
    tokenizer: Tokenizer, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(saved(tokenizer, path) | change))
    with pytest.raises(TokenizerError, match=f"^{path}.*{message}"):
        Tokenizer.load(path)


@pytest.mark.req("EC-2")
def test_one_changed_token_is_noticed(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    content = saved(tokenizer, path)
    content["tokens"][300], content["tokens"][301] = content["tokens"][301], content["tokens"][300]
    path.write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match="content hash is .* changed after it was saved"):
        Tokenizer.load(path)


@pytest.mark.req("EC-2")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "not a tokenizer"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[" * 100_000, "write tokenizers"),
    ],
)
def test_files_that_are_no_tokenizer(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.load(path)


@pytest.mark.req("EC-2")
def test_absent_directory_and_huge_files(tmp_path: Path) -> None:
    with pytest.raises(
        TokenizerError, match=r"absent\.json does not exist.*nanochat tokenizer train"
    ):
        Tokenizer.load(tmp_path / "absent.json")
    with pytest.raises(TokenizerError, match="is a directory"):
        Tokenizer.load(tmp_path)
    huge = tmp_path / "huge.json"
    with huge.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(TokenizerError, match=f"{MAX_FILE_BYTES + 1} bytes, expected at most"):
        Tokenizer.load(huge)

"""Tokenizer <-> tokenizer.json of Hugging Face.   in: Tokenizer, JSON   out: JSON, Tokenizer
who calls: checkpoint.huggingface, cli (`nanochat tokenizer export` and `import`)

Hugging Face writes bytes as printable characters and orders pairs to merge; tiktoken orders what a
merge gives.  So every pair whose union is a token is listed, in the order of the unions' ids.
    ids     equal on every text tried; of 1,112,064 characters tokenizers 0.23 and tiktoken 0.14
            put each in the same class, so both cut text into the same pieces
    but     Hugging Face takes "<|bos|>" in a text for the special token, ours never does.  There,
            encode_special_tokens = True (in transformers split_special_tokens=True) says so for a
            whole text; inside one, BREAK after "<|" does: special names are looked for before the
            normalizer takes it out, so that the chat template can mark what people say
Source: the byte characters are those of GPT-2 (openai/gpt-2, encoder.py, bytes_to_unicode).
Read next: tokenizer.py (our own file), tests/tokenizer/test_huggingface.py (the proof).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nanochat.common.errors import DataError, TokenizerError
from nanochat.common.files import read_json
from nanochat.tokenizer.tokenizer import (
    KNOWN_PATTERNS,
    MAX_VOCAB_SIZE,
    SPECIAL_TOKENS,
    Tokenizer,
)

__all__ = ["BREAK", "load_hf_tokenizer", "tokenizer_from_hf_json", "tokenizer_to_hf_json"]

# Noncharacters, which Unicode keeps for uses inside of programs: no text has them.
BREAK = "\ufdd0\ufdd1\ufdd2"
MAX_FILE_BYTES = 256 * 2**20  # 65,536 tokens take 8 MB with their pairs
_READERS = "expected what `nanochat export --to hf` and transformers' tiktoken converter write"


def tokenizer_to_hf_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of a tokenizer.json with which Hugging Face's tokenizers give the same ids.

    <|bos|> is not put before a text, as `Tokenizer.encode` does not.
    """
    num_tokens = tokenizer.vocab_size - len(SPECIAL_TOKENS)
    tokens = [tokenizer.decode_bytes([token_id]) for token_id in range(num_tokens)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": token_id, "content": name, "special": True} | dict.fromkeys(_FLAGS, False)
            for name, token_id in tokenizer.special_tokens.items()
        ],
        "normalizer": _NORMALIZER,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": tokenizer.pattern},
                    "behavior": "Isolated",
                    "invert": False,
                },
                _BYTE_LEVEL | {"add_prefix_space": False, "use_regex": False},
            ],
        },
        "post_processor": None,
        "decoder": _BYTE_LEVEL | {"add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,  # a piece that is a token is that token, as tiktoken does
            "vocab": {_characters(token): token_id for token_id, token in enumerate(tokens)},
            "merges": [list(map(_characters, pair)) for pair in _pairs(tokens)],
        },
    }


def tokenizer_from_hf_json(raw: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that a tokenizer.json of Hugging Face describes.

    Raises: TokenizerError for anything that would give other ids: another split pattern, other
            special tokens, a normalizer, merges out of order.
    """
    try:
        pattern, tokens = _split_pattern(raw), _tokens(raw["model"])
        _check_model(raw["model"], tokens)
        _check_special(raw["added_tokens"], len(tokens))
    except TokenizerError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TokenizerError(
            f"not a tokenizer.json of Hugging Face ({type(error).__name__}: {error}), {_READERS}"
        ) from None
    for key in ("normalizer", "truncation", "padding"):
        if raw.get(key) not in (None, _NORMALIZER):
            raise TokenizerError(f"has a {key}, which would change ids: {_READERS}")
    return Tokenizer(tokens, pattern)


def load_hf_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a tokenizer.json of Hugging Face.

    Raises: TokenizerError naming the file and what is wrong with it.
    """
    try:
        size = path.stat().st_size if path.exists() else 0
        if size > MAX_FILE_BYTES:
            raise TokenizerError(f"{size} bytes, expected at most {MAX_FILE_BYTES}")
        raw = read_json(path)
        if not isinstance(raw, dict):
            raise TokenizerError(f"not a tokenizer.json of Hugging Face, {_READERS}")
        return tokenizer_from_hf_json(raw)
    except (DataError, OSError, RecursionError) as error:
        raise TokenizerError(str(error)) from None  # it names the file
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from None


_NORMALIZER = {"type": "Replace", "pattern": {"String": BREAK}, "content": ""}
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
_BYTE_LEVEL = {"type": "ByteLevel", "trim_offsets": True}


def _byte_characters() -> list[str]:
    """A printable character for each byte: itself where it is one, else the next from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    unprintable = [byte for byte in range(256) if byte not in printable]
    return [
        chr(byte if byte in printable else 0x100 + unprintable.index(byte)) for byte in range(256)
    ]


_CHARACTERS = _byte_characters()
_BYTES = {character: byte for byte, character in enumerate(_CHARACTERS)}


def _characters(token: bytes) -> str:
    return "".join([_CHARACTERS[byte] for byte in token])


def _pairs(tokens: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """All pairs of tokens that make a token, ordered by its id, then by their own ids."""
    ids = {token: token_id for token_id, token in enumerate(tokens)}
    pairs: list[tuple[bytes, bytes]] = []
    for token in tokens:
        splits = [(token[:at], token[at:]) for at in range(1, len(token))]
        known = [(left, right) for left, right in splits if left in ids and right in ids]
        pairs += sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    return pairs


def _split_pattern(raw: Mapping[str, Any]) -> str:
    """The pattern of a pre-tokenizer that splits by it and turns bytes into characters."""
    steps = raw["pre_tokenizer"]["pretokenizers"]
    split, byte_level = steps
    pattern = split["pattern"]["Regex"]
    kinds = [step["type"] for step in steps]
    if (
        kinds != ["Split", "ByteLevel"]
        or (split["behavior"], split["invert"]) != ("Isolated", False)
        or byte_level["add_prefix_space"]
        or byte_level["use_regex"]
    ):
        raise TokenizerError(f"its pre-tokenizer cuts text in another way: {_READERS}")
    if pattern not in KNOWN_PATTERNS:
        raise TokenizerError(f"splits by {pattern!r:.80}, expected {KNOWN_PATTERNS[0]}")
    return str(pattern)


def _tokens(model: Mapping[str, Any]) -> list[bytes]:
    """The vocabulary by id."""
    vocab = model["vocab"]
    if model["type"] != "BPE" or len(vocab) > MAX_VOCAB_SIZE:
        raise TokenizerError(
            f"is a {model['type']!r:.40} of {len(vocab)} tokens, expected a BPE of at most "
            f"{MAX_VOCAB_SIZE}"
        )
    special = set(SPECIAL_TOKENS)
    by_id = sorted((token_id, text) for text, token_id in vocab.items() if text not in special)
    if [token_id for token_id, _ in by_id] != list(range(len(by_id))):
        raise TokenizerError(f"does not number its {len(by_id)} tokens 0 to {len(by_id) - 1}")
    return [bytes(_BYTES[character] for character in text) for _, text in by_id]


def _check_model(model: Mapping[str, Any], tokens: Sequence[bytes]) -> None:
    """Whether the merges are those of tiktoken: complete but for pairs that give the same token."""
    changes = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")
    if changing := [key for key in changes if model.get(key)]:
        raise TokenizerError(f"its model has {', '.join(changing)}, which would change ids")
    ids = {token: token_id for token_id, token in enumerate(tokens)}
    pairs = [_pair(merge) for merge in model["merges"]]
    known = [(left, right) for left, right in pairs if left in ids and right in ids]
    merged = [ids.get(left + right, -1) for left, right in known]
    if len(merged) != len(pairs) or -1 in merged or merged != sorted(merged):
        raise TokenizerError("its merges are not in the order of their tokens: ids would differ")
    mergeable = {ids[left + right] for left, right in _pairs(tokens)}
    if absent := sorted(mergeable - set(merged)):
        raise TokenizerError(
            f"no merge makes {tokens[absent[0]]!r} (and {len(absent) - 1} more): ids would differ"
        )


def _pair(merge: Any) -> tuple[bytes, bytes]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return bytes(_BYTES[c] for c in left), bytes(_BYTES[c] for c in right)


def _check_special(added: Sequence[Mapping[str, Any]], first: int) -> None:
    found = {token["id"]: token["content"] for token in added}
    expected = dict(enumerate(SPECIAL_TOKENS, start=first))
    if found != expected or len(added) != len(expected):
        raise TokenizerError(
            f"its added tokens are {found!r:.120}, expected the nine of karpathy/nanochat in "
            f"its order, <|bos|> as {first} to <|output_end|>"
        )

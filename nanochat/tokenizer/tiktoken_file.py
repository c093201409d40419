"""Tokenizer <-> a .tiktoken file.   in: Tokenizer, a path   out: the file, Tokenizer
who calls: load.py, cli (`nanochat tokenizer export`)

    bmFub2NoYXQ= 1234      a token's bytes in base64, a blank, its id; a line each

The format is tiktoken's own and has only the tokens.  How text is cut and which special tokens
follow stands beside it in <name>.tiktoken.json, which `save_tiktoken` writes:

    {"pattern": "...", "special_tokens": {"<|bos|>": 65527, ...}}

Source: tiktoken/load.py of openai/tiktoken 0.14 (load_tiktoken_bpe, dump_tiktoken_bpe).
Read next: tokenizer.py (our own file), huggingface.py (Hugging Face's).
"""

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nanochat.common.errors import DataError, TokenizerError
from nanochat.common.files import open_atomically, read_json, write_json_atomically
from nanochat.tokenizer.tokenizer import (
    GPT4_SPLIT_PATTERN,
    MAX_FILE_BYTES,
    MAX_VOCAB_SIZE,
    SPECIAL_TOKENS,
    SPLIT_PATTERN,
    Tokenizer,
)

__all__ = ["PATTERNS", "load_tiktoken", "save_tiktoken", "sidecar_path"]

PATTERNS = {"nanochat": SPLIT_PATTERN, "gpt4": GPT4_SPLIT_PATTERN}
"""The split patterns by the names they go by on the command line."""

MAX_SIDECAR_BYTES = 2**16


def sidecar_path(path: Path) -> Path:
    """Where pattern and special tokens of a .tiktoken file stand."""
    return path.with_name(path.name + ".json")


def save_tiktoken(tokenizer: Tokenizer, path: Path) -> None:
    """Write the file and what it cannot say beside it, each whole or not at all."""
    num_tokens = tokenizer.vocab_size - len(SPECIAL_TOKENS)
    write_json_atomically(
        sidecar_path(path),
        {"pattern": tokenizer.pattern, "special_tokens": tokenizer.special_tokens},
    )
    with open_atomically(path) as file:
        for token_id in range(num_tokens):
            token = base64.b64encode(tokenizer.decode_bytes([token_id]))
            file.write(b"%s %d\n" % (token, token_id))


def load_tiktoken(path: Path, pattern: str | None = None) -> Tokenizer:
    """The tokenizer in a .tiktoken file; the nine special tokens follow its tokens.

    `pattern` is a name in PATTERNS.  None: what the file beside it says.
    Raises: TokenizerError naming the file and what is wrong: absent, too large, not in the format,
            ids with gaps, another pattern or other special tokens, no pattern at all.
    """
    if pattern is not None and pattern not in PATTERNS:
        raise TokenizerError(f"pattern is {pattern!r}, expected one of {', '.join(PATTERNS)}")
    try:
        tokens = _tokens(_read(path))
        split_pattern = _split_pattern(path, pattern, len(tokens))
        return Tokenizer(tokens, split_pattern)
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from None


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise TokenizerError(f"has {size} bytes, expected at most {MAX_FILE_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise TokenizerError(
            f"cannot be read ({error.strerror}), expected a .tiktoken file"
        ) from None


def _tokens(content: bytes) -> list[bytes]:
    by_id: dict[int, bytes] = {}
    for number, line in enumerate(content.splitlines(), 1):
        words = line.split()
        if not words:
            continue
        try:
            encoded, digits = words
            if len(digits) > len(str(MAX_VOCAB_SIZE)) or not digits.isdigit():
                raise ValueError
            token_id, token = int(digits), base64.b64decode(encoded, validate=True)
        except (ValueError, binascii.Error):
            raise TokenizerError(
                f"line {number} is {_shown(line)}, expected a token in base64, a blank and its id"
            ) from None
        if token_id in by_id:
            raise TokenizerError(f"line {number}: id {token_id} is there already")
        by_id[token_id] = token
    if missing := set(range(len(by_id))) - by_id.keys():
        raise TokenizerError(
            f"has {len(by_id)} tokens but no id {min(missing)}: expected ids 0, 1, 2 and so on"
        )
    return [by_id[token_id] for token_id in range(len(by_id))]


def _split_pattern(path: Path, name: str | None, num_tokens: int) -> str:
    """By the sidecar, by name, or both if they agree."""
    sidecar = _read_sidecar(sidecar_path(path), num_tokens)
    if sidecar is None and name is None:
        raise TokenizerError(
            f"does not say how text is cut into pieces, and {sidecar_path(path).name} is not beside"
            " it: say --pattern nanochat (up to two digits together, as karpathy/nanochat) or "
            "--pattern gpt4 (up to three)"
        )
    if sidecar is not None and name is not None and sidecar != PATTERNS[name]:
        raise TokenizerError(f"{sidecar_path(path).name} beside it has another pattern than {name}")
    return PATTERNS[name] if name is not None else str(sidecar)


def _read_sidecar(path: Path, num_tokens: int) -> str | None:
    """The pattern in it, once its special tokens are the nine; None if there is no such file."""
    if not path.exists():
        return None
    try:
        if path.stat().st_size > MAX_SIDECAR_BYTES:
            raise DataError(f"{path} has more than {MAX_SIDECAR_BYTES} bytes")
        raw = read_json(path)
    except (OSError, DataError, RecursionError) as error:
        raise TokenizerError(f"what stands beside it cannot be read: {error}") from None
    if not isinstance(raw, Mapping) or set(raw) != {"pattern", "special_tokens"}:
        raise TokenizerError(f"{path.name} beside it: expected pattern and special_tokens")
    _check_special(raw["special_tokens"], path, num_tokens)
    if raw["pattern"] not in PATTERNS.values():
        raise TokenizerError(f"{path.name} beside it: the split pattern is unknown")
    return str(raw["pattern"])


def _check_special(found: Any, path: Path, num_tokens: int) -> None:
    expected = {name: num_tokens + place for place, name in enumerate(SPECIAL_TOKENS)}
    if found != expected:
        raise TokenizerError(
            f"{path.name} beside it: special tokens are {found!r:.80}, expected the nine of "
            f"karpathy/nanochat in its order, <|bos|> as {num_tokens} to <|output_end|>"
        )


def _shown(line: bytes) -> str:
    text = repr(line)[1:]
    return text if len(text) <= 60 else text[:57] + "..."

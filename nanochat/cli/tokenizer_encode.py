"""nanochat tokenizer encode   in: text, or standard input   out: tokens   who calls: cli.main

Read next: tokenizer_decode.py (the way back).
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from nanochat.common.config import CommonOptions
from nanochat.common.errors import DataError
from nanochat.common.files import home_dir
from nanochat.tokenizer.load import load_tokenizer
from nanochat.tokenizer.tokenizer import Tokenizer

__all__ = ["Config", "run"]


@dataclass(frozen=True, kw_only=True)
class Config(CommonOptions):
    """Show how a text is cut into tokens: a line for each, with its piece of the text."""

    text: tyro.conf.Positional[str | None] = None
    """The text. None: standard input."""
    tokenizer: Path | None = None
    """tokenizer.json, tokenizer.pkl, or a folder with one. None: `tokenizer` in the home."""
    ids: bool = False
    """Print nothing but the ids, on one line, as `nanochat tokenizer decode` reads them."""


def run(config: Config) -> int:
    """0 once the tokens are printed.

    Raises: TokenizerError for the tokenizer, DataError for input that is not UTF-8.
    """
    tokenizer = load_tokenizer(config.tokenizer or home_dir(config.home) / "tokenizer")
    text = _standard_input() if config.text is None else config.text
    tokens = tokenizer.encode(text)
    if config.json:
        pieces = [tokenizer.decode([token]) for token in tokens]
        print(json.dumps({"tokens": tokens, "pieces": pieces, "num_bytes": _num_bytes(text)}))
    elif config.ids:
        print(*tokens)
    else:
        for token in tokens:
            print(f"{token:>7}  {_piece(tokenizer, token)}")
        print(_summary(len(tokens), _num_bytes(text)))
    return 0


def _standard_input() -> str:
    content = sys.stdin.buffer.read()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"standard input is not UTF-8 at byte {error.start}: expected text in UTF-8"
        ) from None


def _piece(tokenizer: Tokenizer, token: int) -> str:
    """What a token stands for, in quotes; as bytes where it ends within a character."""
    content = tokenizer.decode_bytes([token])
    try:
        return json.dumps(content.decode("utf-8"), ensure_ascii=False)
    except UnicodeDecodeError:
        return repr(content)


def _num_bytes(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


def _summary(num_tokens: int, num_bytes: int) -> str:
    ratio = f", {num_bytes / num_tokens:.2f} bytes per token" if num_tokens else ""
    return f"{num_tokens:,} tokens, {num_bytes:,} bytes{ratio}"

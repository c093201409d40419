"""nanochat tokenizer decode   in: token ids, or standard input   out: text   who calls: cli.main

Read next: tokenizer_encode.py (the way there).
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from nanochat.common.config import CommonOptions
from nanochat.common.errors import ConfigError
from nanochat.common.files import home_dir
from nanochat.tokenizer.load import load_tokenizer

__all__ = ["Config", "run"]


@dataclass(frozen=True, kw_only=True)
class Config(CommonOptions):
    """Turn tokens back into text, byte for byte (on a terminal, with a line end added)."""

    tokens: tyro.conf.Positional[tuple[str, ...]] = ()
    """Ids, separated by blanks or commas. None given: standard input."""
    tokenizer: Path | None = None
    """tokenizer.json, tokenizer.pkl, or a folder with one. None: `tokenizer` in the home."""


def run(config: Config) -> int:
    """0 once the text is printed.

    Raises: TokenizerError for the tokenizer and for ids it does not have; ConfigError for words
            that are no numbers.
    """
    tokenizer = load_tokenizer(config.tokenizer or home_dir(config.home) / "tokenizer")
    words = " ".join(config.tokens) if config.tokens else sys.stdin.read()
    tokens = [_number(word) for word in words.replace(",", " ").split()]
    if config.json:
        print(json.dumps({"text": tokenizer.decode(tokens), "tokens": tokens}))
        return 0
    sys.stdout.flush()
    sys.stdout.buffer.write(tokenizer.decode_bytes(tokens) + b"\n" * sys.stdout.isatty())
    sys.stdout.buffer.flush()
    return 0


def _number(word: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise ConfigError(f"{word!r:.40} is no token: expected whole numbers") from None

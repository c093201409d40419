"""nanochat tokenizer import   in: a vocabulary of another program   out: tokenizer.json
who calls: cli.main

Read next: tokenizer/load.py (the forms), tokenizer/reference.py (why nothing in a pickle can run).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from nanochat.cli.tokenizer_train import output_file
from nanochat.common.config import CommonOptions
from nanochat.tokenizer.load import load_tokenizer

__all__ = ["Config", "run"]


@dataclass(frozen=True, kw_only=True)
class Config(CommonOptions):
    """Turn a vocabulary into our tokenizer.json: karpathy/nanochat's tokenizer.pkl (nothing in it
    is run), tiktoken's .tiktoken, Hugging Face's tokenizer.json."""

    path: tyro.conf.Positional[Path]
    """The file, or the folder that has it."""
    out: Path | None = None
    """Folder for tokenizer.json. None: the folder `tokenizer` in the home."""
    pattern: Literal["nanochat", "gpt4"] | None = None
    """How a .tiktoken file's text is cut: digits by two, or by three. None: as stands beside it."""
    overwrite: bool = False
    """Replace a tokenizer that is already there."""


def run(config: Config) -> int:
    """0 once the tokenizer is saved.

    Raises: TokenizerError for a file that is no tokenizer, ConfigError for the place.
    """
    path = output_file(config.out, config.home, config.overwrite)
    tokenizer = load_tokenizer(config.path.expanduser(), config.pattern)
    tokenizer.save(path)
    if config.json:
        result = {
            "tokenizer": str(path),
            "vocab_size": tokenizer.vocab_size,
            "content_hash": tokenizer.content_hash,
        }
        print(json.dumps(result))
    else:
        print(f"{tokenizer.vocab_size:,} tokens, <|bos|> is {tokenizer.bos}")
        print(f"saved {path}  (content hash {tokenizer.content_hash[:12]})")
    return 0

"""nanochat tokenizer export   in: a tokenizer, or a model's   out: a file for another program
who calls: cli.main

Read next: tokenizer/huggingface.py and tokenizer/tiktoken_file.py (the forms).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from nanochat.common.config import CommonOptions
from nanochat.common.errors import ConfigError
from nanochat.common.files import write_text_atomically
from nanochat.tokenizer.huggingface import tokenizer_to_hf_json
from nanochat.tokenizer.load import FILE_NAMES, load_tokenizer
from nanochat.tokenizer.tiktoken_file import save_tiktoken, sidecar_path
from nanochat.tokenizer.tokenizer import Tokenizer

__all__ = ["Config", "run"]

_NAMES = {"hf": "tokenizer.json", "tiktoken": "tokenizer.tiktoken"}


@dataclass(frozen=True, kw_only=True)
class Config(CommonOptions):
    """Write a vocabulary as other programs read it; every text has the same ids there."""

    source: tyro.conf.Positional[str]
    """A tokenizer's file, a folder with one, or a model such as d12/sft."""
    to: Literal["hf", "tiktoken"]
    """tokenizer.json of Hugging Face, or .tiktoken with its pattern and special tokens beside."""
    out: Path
    """The file to write, or a folder that is there."""
    overwrite: bool = False
    """Replace a file that is already there."""


def run(config: Config) -> int:
    """0 once the file is written.

    Raises: TokenizerError for a file that is no tokenizer, CheckpointError for a model that is not
            there, ConfigError for a place that is taken.
    """
    path = config.out.expanduser()
    if path.is_dir():
        path = path / _NAMES[config.to]
    written = [path] if config.to == "hf" else [path, sidecar_path(path)]
    if not config.overwrite and (taken := next((p for p in written if p.exists()), None)):
        raise ConfigError(
            f"{taken} is there already: give another --out, or --overwrite to replace it"
        )
    tokenizer = _tokenizer(config.source, config.home)
    if config.to == "hf":
        text = json.dumps(tokenizer_to_hf_json(tokenizer), ensure_ascii=False, indent=1)
        write_text_atomically(path, text + "\n")
    else:
        save_tiktoken(tokenizer, path)
    if config.json:
        result = {
            "files": [str(file) for file in written],
            "vocab_size": tokenizer.vocab_size,
            "content_hash": tokenizer.content_hash,
        }
        print(json.dumps(result))
        return 0
    print(f"{tokenizer.vocab_size:,} tokens, <|bos|> is {tokenizer.bos}")
    for file in written:
        print(f"saved {file}")
    return 0


def _tokenizer(source: str, home: Path | None) -> Tokenizer:
    """By its place, or by the model that has it, whose name or place may be given."""
    path = Path(source).expanduser()
    if path.is_file() or any((path / name).is_file() for name in FILE_NAMES):
        return load_tokenizer(path)
    if (path / "tokenizer").is_dir():
        return load_tokenizer(path / "tokenizer")
    # From here on torch is needed.
    from nanochat.checkpoint.reference import find_files, find_tokenizer
    from nanochat.checkpoint.resolve import resolve

    model = resolve(source, home)
    if find_files(model) is not None:
        return load_tokenizer(find_tokenizer(model))
    inside = model / "tokenizer"
    return load_tokenizer(inside if inside.is_dir() else model)

"""nanochat tokenizer train   in: text files   out: tokenizer.json   who calls: cli.main

Read next: tokenizer/train.py (how), corpus/documents.py (which files).
"""

import json
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import tyro

from nanochat.common.config import CommonOptions
from nanochat.common.errors import ConfigError
from nanochat.common.files import home_dir
from nanochat.corpus.documents import read_documents
from nanochat.corpus.files import ReadReport
from nanochat.tokenizer.load import FILE_NAME
from nanochat.tokenizer.train import check_settings, train_tokenizer

__all__ = ["Config", "output_file", "run"]

_REPORT_EVERY_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Config(CommonOptions):
    """Learn a vocabulary from text: .txt, .md, .jsonl, .json, .csv, .parquet, .arrow."""

    paths: tyro.conf.Positional[tuple[str, ...]]
    """Files, folders, globs, data:NAME, hf:org/dataset, addresses."""
    vocab_size: int = 32_768
    """Tokens, the nine special ones included: 265 or more."""
    out: Path | None = None
    """Folder for tokenizer.json. None: the folder `tokenizer` in the home."""
    max_chars: int = 2_000_000_000
    """Stop reading after the document that exceeds so many characters."""
    doc_cap: int = 10_000
    """Of each document, read so many characters."""
    text_column: str = "text"
    """The key or column that holds the text in JSON and Parquet."""
    overwrite: bool = False
    """Replace a tokenizer that is already there."""

    def __post_init__(self) -> None:
        check_settings(self.vocab_size, self.max_chars, self.doc_cap)


def run(config: Config) -> int:
    """0 once the tokenizer is saved.

    Raises: DataError for the text, TokenizerError for the size, ConfigError for the place.
    """
    report = ReadReport()
    documents = read_documents(
        config.paths, text_column=config.text_column, report=report, home=config.home
    )
    path = output_file(config.out, config.home, config.overwrite)
    start = time.monotonic()
    counted = _Counted()
    tokenizer = train_tokenizer(
        counted.capped((document.text for document in documents), config.doc_cap),
        config.vocab_size,
        max_chars=config.max_chars,
        doc_cap=config.doc_cap,
    )
    tokenizer.save(path)
    seconds = time.monotonic() - start
    if config.json:
        result = {
            "tokenizer": str(path),
            "vocab_size": tokenizer.vocab_size,
            "content_hash": tokenizer.content_hash,
            "documents": counted.num_texts,
            "characters": counted.num_chars,
            "documents_cut": counted.num_cut,
            "characters_cut": counted.num_chars_cut,
            "wall_s": round(seconds, 3),
        }
        print(json.dumps(result))
    else:
        for line in report.lines():
            print(line)
        if counted.num_cut:
            print(
                f"{counted.num_cut:,} documents cut at {config.doc_cap:,} characters (--doc-cap): "
                f"{counted.num_chars_cut:,} characters not used"
            )
        print(
            f"{tokenizer.vocab_size:,} tokens from {counted.num_texts:,} documents, "
            f"{counted.num_chars:,} characters, in {seconds:.1f} s"
        )
        print(f"saved {path}  (content hash {tokenizer.content_hash[:12]})")
    return 0


def output_file(out: Path | None, home: Path | None, overwrite: bool) -> Path:
    """Where the tokenizer goes: checked before the work, not after it.

    Raises: ConfigError where the folder cannot be one, or holds a tokenizer already.
    """
    folder = home_dir(home) / "tokenizer" if out is None else out.expanduser()
    path = folder / FILE_NAME
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out is {folder}, which is a file: expected a folder")
    if path.exists() and not overwrite:
        raise ConfigError(
            f"{path} is there already: give another --out, or --overwrite to replace it"
        )
    return path


class _Counted:
    """Cuts documents, counts what passes and what does not, and says so now and then."""

    def __init__(self) -> None:
        self.num_texts = self.num_chars = 0
        self.num_cut = self.num_chars_cut = 0

    def capped(self, texts: Iterable[str], doc_cap: int) -> Iterator[str]:
        last = start = time.monotonic()
        for text in texts:
            used = text[:doc_cap]
            self.num_texts += 1
            self.num_chars += len(used)
            self.num_cut += len(used) < len(text)
            self.num_chars_cut += len(text) - len(used)
            if (now := time.monotonic()) - last >= _REPORT_EVERY_S:
                last = now
                millions = self.num_chars / 1e6
                print(f"{millions:,.0f} M characters, {now - start:.0f} s", file=sys.stderr)
            yield used

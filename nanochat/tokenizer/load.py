"""A path -> Tokenizer.   in: a file in any form, or a folder that has one   out: Tokenizer
who calls: cli, checkpoint

    tokenizer.json       ours, or Hugging Face's: what is in it tells which
    tokenizer.pkl        karpathy/nanochat's
    *.tiktoken           tiktoken's, with <name>.tiktoken.json beside it
Read next: tokenizer.py, huggingface.py, reference.py, tiktoken_file.py.
"""

from pathlib import Path

from nanochat.common.errors import TokenizerError
from nanochat.tokenizer.huggingface import MAX_FILE_BYTES, load_hf_tokenizer
from nanochat.tokenizer.reference import load_reference_tokenizer
from nanochat.tokenizer.tiktoken_file import load_tiktoken
from nanochat.tokenizer.tokenizer import Tokenizer

__all__ = ["FILE_NAME", "FILE_NAMES", "load_tokenizer"]

FILE_NAME = "tokenizer.json"
FILE_NAMES = (FILE_NAME, "tokenizer.pkl", "tokenizer.tiktoken")
"""What a tokenizer is called in a folder; the first that is there is taken."""

_OURS = b'"nanochat-tokenizer"'  # within the first line or two of our own
_THEIRS = b'"added_tokens"'  # a key of every tokenizer.json of Hugging Face
_HEAD_BYTES = 1024


def load_tokenizer(path: Path, pattern: str | None = None) -> Tokenizer:
    """The tokenizer at a path: ours, Hugging Face's, tiktoken's or karpathy/nanochat's; nothing in
    any of them is run.

    In a folder, tokenizer.json is preferred to tokenizer.pkl, and that to tokenizer.tiktoken.
    `pattern`, nanochat or gpt4, is for a .tiktoken file that stands alone.
    Raises: TokenizerError naming the path and what is wrong with it.
    """
    if path.is_dir():
        found = next((path / name for name in FILE_NAMES if (path / name).exists()), None)
        if found is None:
            raise TokenizerError(f"{path} has none of {', '.join(FILE_NAMES)} in it")
        path = found
    if path.suffix == ".tiktoken":
        return load_tiktoken(path, pattern)
    if pattern is not None:
        raise TokenizerError(f"{path} says itself how text is cut: --pattern is for .tiktoken")
    if path.suffix == ".pkl":
        return load_reference_tokenizer(path)
    return load_hf_tokenizer(path) if _is_huggingface(path) else Tokenizer.load(path)


def _is_huggingface(path: Path) -> bool:
    """Whether a JSON file is Hugging Face's: it has their key, and does not begin like ours."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
            return _OURS not in head and _THEIRS in head + file.read(MAX_FILE_BYTES)
    except OSError:
        return False  # whoever reads it says why it cannot

"""A path -> Tokenizer.   in: a file in either form, or a folder that has one   out: Tokenizer
who calls: cli

Read next: tokenizer.py (tokenizer.json), reference.py (tokenizer.pkl).
"""

from pathlib import Path

from nanochat.common.errors import TokenizerError
from nanochat.tokenizer.reference import load_reference_tokenizer
from nanochat.tokenizer.tokenizer import Tokenizer

__all__ = ["FILE_NAME", "load_tokenizer"]

FILE_NAME = "tokenizer.json"
REFERENCE_FILE_NAME = "tokenizer.pkl"


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer at a path: ours (JSON), or karpathy/nanochat's (*.pkl, nothing in it is run).

    In a folder, tokenizer.json is preferred to tokenizer.pkl.
    Raises: TokenizerError naming the path and what is wrong with it.
    """
    if path.is_dir():
        candidates = [path / name for name in (FILE_NAME, REFERENCE_FILE_NAME)]
        found = next((candidate for candidate in candidates if candidate.exists()), None)
        if found is None:
            raise TokenizerError(f"{path} has neither {FILE_NAME} nor {REFERENCE_FILE_NAME} in it")
        path = found
    return load_reference_tokenizer(path) if path.suffix == ".pkl" else Tokenizer.load(path)

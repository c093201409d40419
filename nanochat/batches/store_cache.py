"""A text's tokens -> written once, kept.   in: what the text is, who writes it   out: TokenStore
who calls: sources.py, on_the_fly.py, chapter_writer.py, background.py

Read next: store_writer.py (who writes).
"""

import contextlib
import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from nanochat.batches.store import FORMAT, TokenStore, Vocabulary
from nanochat.common.errors import DataError

__all__ = ["cache_place", "cached_store", "kept_store"]


def cached_store(
    root: Path, identity: str, tokenizer: Vocabulary, write: Callable[[Path], TokenStore]
) -> TokenStore:
    """The store for (identity, tokenizer) under `root`, written by `write` the first time.

    `identity` says what the text is: the corpus fingerprint and whatever chose a part of
    it.
    """
    return kept_store(cache_place(root, identity, tokenizer), tokenizer, write)


def cache_place(root: Path, identity: str, vocabulary: Vocabulary) -> Path:
    """Where `cached_store` keeps the tokens of a text."""
    parts = [str(FORMAT), identity, vocabulary.content_hash]
    return root / hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def kept_store(
    directory: Path, tokenizer: Vocabulary, write: Callable[[Path], TokenStore]
) -> TokenStore:
    """The store at `directory`, written by `write` where there is none.

    Several processes may ask at once: one writes, the others wait and read.  What an
    interrupted writer left is removed, what does not open is written again.
    """
    root = directory.parent
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root / f"{directory.name}.lock") as is_alone:
        if directory.exists():
            with contextlib.suppress(DataError):
                return TokenStore.open(directory, tokenizer)
            shutil.rmtree(directory)
        for left_over in root.glob(f".{directory.name}.*.tmp") if is_alone else ():
            if left_over.is_dir():
                shutil.rmtree(left_over)
            else:  # a file beside the store with the same beginning, such as its report
                left_over.unlink(missing_ok=True)
        return write(directory)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """True: alone among the processes; the system lets go when this one ends, however it ends."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            yield False
        else:
            yield True

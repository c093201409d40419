"""Tokens on the disk.   in: a directory   out: TokenStore   who calls: stream, rows, mixture, train

A store is a directory:  tokens.bin (uint16, uint32 for more than 65,536 tokens), offsets.bin
(int64: where each document begins, and the end), for conversations mask.bin (one byte a token: 1 is
trained), and index.json with the counts, the size and SHA-256 of every file, the tokenizer's hash,
and a fingerprint of it all.  Every document begins with <|bos|>.  It is read through a memory map:
what is used is what is in memory, and the system takes it back when it needs to.
Read next: store_writer.py (how it is written), stream.py (who reads it).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from nanochat.common.errors import DataError
from nanochat.common.files import read_json, sha256_of_file

__all__ = ["FORMAT", "Kind", "Store", "TokenStore", "Vocabulary", "token_dtype"]

FORMAT = 1

Indices = npt.NDArray[np.int64]
Tokens = npt.NDArray[Any]  # uint16 or uint32
Mask = npt.NDArray[np.uint8]
Kind = Literal["documents", "conversations"]


class Vocabulary(Protocol):
    """What a store says of the tokenizer its tokens are from."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def bos(self) -> int: ...
    @property
    def content_hash(self) -> str: ...


class Store(Protocol):
    """What a stream reads: one store, or several mixed (mixture.py)."""

    @property
    def num_documents(self) -> int: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def bos(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    def lengths(self, documents: Indices) -> Indices: ...
    def tokens(self, document: int, start: int, stop: int) -> Tokens: ...
    def mask(self, document: int, start: int, stop: int) -> Mask | None: ...


@dataclass(frozen=True, kw_only=True)
class TokenStore:
    """The tokens of a corpus, memory-mapped; see the module's docstring for the files."""

    directory: Path
    kind: Kind
    num_documents: int
    num_tokens: int
    num_trained_tokens: int
    """Tokens with mask 1; all but each document's <|bos|> where there is no mask."""
    num_characters: int
    vocab_size: int
    bos: int
    tokenizer_hash: str
    fingerprint: str
    """SHA-256 over the hashes of the files: equal fingerprints mean equal tokens in equal order."""
    counts: Mapping[str, int]
    """What was left out while writing, by reason."""
    files: Mapping[str, Mapping[str, Any]]
    _tokens: Tokens
    _offsets: Indices
    _mask: Mask | None

    @classmethod
    def open(cls, directory: Path, tokenizer: Vocabulary | None = None) -> "TokenStore":
        """The store in a directory; its sizes fit, and the tokenizer where one is given.

        Raises: DataError naming the file and what is wrong.
        """
        index = _read_index(directory)
        if tokenizer is not None and index["tokenizer_hash"] != tokenizer.content_hash:
            raise DataError(
                f"{directory}: made by tokenizer {index['tokenizer_hash'][:12]}, but this one is "
                f"{tokenizer.content_hash[:12]}: tokenize the corpus again"
            )
        dtype = token_dtype(index["vocab_size"])
        for name, entry in index["files"].items():
            _check_size(directory / name, entry["bytes"])
        offsets = _mapped(directory / "offsets.bin", np.dtype(np.int64))
        tokens = _mapped(directory / "tokens.bin", dtype)
        has_mask = "mask.bin" in index["files"]
        mask = _mapped(directory / "mask.bin", np.dtype(np.uint8)) if has_mask else None
        if len(offsets) != index["num_documents"] + 1 or int(offsets[-1]) != len(tokens):
            raise DataError(
                f"{directory}: offsets.bin does not fit tokens.bin; delete the directory"
            )
        return cls(directory=directory, _tokens=tokens, _offsets=offsets, _mask=mask, **index)

    def lengths(self, documents: Indices) -> Indices:
        """How many tokens each of these documents has."""
        return self._offsets[documents + 1] - self._offsets[documents]

    def tokens(self, document: int, start: int, stop: int) -> Tokens:
        """Tokens start to stop of a document; a view of the file."""
        offset = int(self._offsets[document])
        return self._tokens[offset + start : offset + stop]

    def mask(self, document: int, start: int, stop: int) -> Mask | None:
        """Which of those tokens are trained; None where all are."""
        if self._mask is None:
            return None
        offset = int(self._offsets[document])
        return self._mask[offset + start : offset + stop]

    def verify(self) -> None:
        """Read everything once and compare it with the hashes in the index.

        Raises: DataError naming the file that is not what was written.
        """
        for name, entry in self.files.items():
            if sha256_of_file(self.directory / name) != entry["sha256"]:
                raise DataError(
                    f"{self.directory / name} has changed since it was written: delete its store"
                )


_FIELDS = {
    "kind": str,
    "num_documents": int,
    "num_tokens": int,
    "num_trained_tokens": int,
    "num_characters": int,
    "vocab_size": int,
    "bos": int,
    "tokenizer_hash": str,
    "fingerprint": str,
    "counts": dict,
    "files": dict,
}


def _read_index(directory: Path) -> dict[str, Any]:
    index = read_json(directory / "index.json")
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        found = index.get("format") if isinstance(index, dict) else None
        raise DataError(
            f"{directory}: token store of format {found!r}, expected {FORMAT}; delete the directory"
        )
    for name, kind in _FIELDS.items():
        if not isinstance(index.get(name), kind):
            raise DataError(
                f"{directory}/index.json: {name} is {index.get(name)!r}, expected {kind.__name__}"
            )
    if (
        not {"tokens.bin", "offsets.bin"}
        <= set(index["files"])
        <= {"tokens.bin", "offsets.bin", "mask.bin"}
    ):
        raise DataError(
            f"{directory}/index.json: files are {sorted(index['files'])}, expected tokens, offsets"
        )
    return {name: index[name] for name in _FIELDS}


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """uint16, or uint32 where the vocabulary has more than 65,536 tokens."""
    return np.dtype(np.uint16) if vocab_size <= 1 << 16 else np.dtype(np.uint32)


def _check_size(path: Path, num_bytes: int) -> None:
    found = path.stat().st_size if path.is_file() else None
    if found != num_bytes:
        state = "is missing" if found is None else f"has {found} bytes"
        raise DataError(f"{path} {state}, expected {num_bytes} bytes: delete its store")


def _mapped(path: Path, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    # The plain array view of the map: slicing np.memmap itself costs ten times as much.
    return np.asarray(np.memmap(path, dtype=dtype, mode="r"))

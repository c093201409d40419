"""Text <-> tokens.   in: strings, token ids   out: token ids, strings
who calls: batches, engine, evals, checkpoint, cli, tokenizer.chat

A vocabulary is a list of byte strings; a token's id is its place in the list and its merge
priority; the special tokens follow.  Text never becomes a special token: "<|bos|>" typed by a user
is seven ordinary characters.
On disk: JSON with format, version, pattern, special_tokens [name], tokens [base64] and sha256, the
hash of the JSON of pattern, special_tokens and tokens with sorted keys, no spaces and only ASCII.
Read next: stream.py (half characters), chat.py (conversations), train.py (new vocabularies).
"""

import base64
import binascii
import hashlib
import itertools
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tiktoken

from nanochat.common.errors import DataError, TokenizerError
from nanochat.common.files import read_json, write_text_atomically
from nanochat.tokenizer.known import KnownPieces
from nanochat.tokenizer.stream import StreamDecoder

__all__ = [
    "GPT4_SPLIT_PATTERN",
    "KNOWN_PATTERNS",
    "MAX_FILE_BYTES",
    "MAX_VOCAB_SIZE",
    "SPECIAL_TOKENS",
    "SPLIT_PATTERN",
    "Tokenizer",
    "replace_surrogates",
]

# The order is that of karpathy/nanochat (nanochat/tokenizer.py at 92d63d4): ids follow from it.
SPECIAL_TOKENS = (
    "<|bos|>",
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
)

GPT4_SPLIT_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
# Two digits at most: .965 bits per byte at depth 12, against .969 for one and .972 for three
# (karpathy/nanochat: dev/LOG.md).
SPLIT_PATTERN = GPT4_SPLIT_PATTERN.replace("{1,3}", "{1,2}")

# A file names one of these: another pattern could stall the backtracking engine it runs on.
KNOWN_PATTERNS = (SPLIT_PATTERN, GPT4_SPLIT_PATTERN)

MAX_VOCAB_SIZE = 2**20  # 16 times the reference's largest: bounds what a file can make us allocate
MAX_FILE_BYTES = 64 * 2**20  # 65,536 tokens take 1.3 MB

_FORMAT, _VERSION = "nanochat-tokenizer", 1

# tiktoken 0.14 panics on whitespace that is a million characters long: `\s+(?!\S)` keeps one
# backtracking state per character and fancy-regex holds 1,000,000.  Runs of 100,000 are taken out
# first, and are as exact (see _long_runs).
_LONG_RUN = 100_000
_STRIDE = 10_000
# What \s is to Rust (Unicode's White_Space); Python's \s is another set.
_SPACE = r"[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
_SAMPLED_RUN = re.compile(f"{_SPACE}{{{_LONG_RUN // _STRIDE - 1}}}")
_RUN = re.compile(f"{_SPACE}{{{_LONG_RUN},}}")


_GROUP_CHARS = 200_000  # encoded together by arrays
_BATCH_SLICE = 64  # texts a thread takes at once: less than 1% of the time goes to handing them out


class Tokenizer:
    """A vocabulary, and tiktoken to use it.  Immutable, shared freely by threads, picklable.

    Example: Tokenizer.load(path).encode("Hello world")
    Raises:  TokenizerError for a vocabulary that lacks a byte, repeats a token, or is too large.
    """

    def __init__(self, tokens: Sequence[bytes], pattern: str = SPLIT_PATTERN) -> None:
        _check_vocabulary(tokens, pattern)
        self._tokens = tuple(tokens)
        self._pattern = pattern
        self._special = {name: len(self._tokens) + i for i, name in enumerate(SPECIAL_TOKENS)}
        self._encoding = self._build(pattern)
        self._lock = threading.Lock()

    # ------------------------------------------------------------------------------ what it is

    @property
    def vocab_size(self) -> int:
        """Number of tokens, special ones included."""
        return len(self._tokens) + len(self._special)

    @property
    def pattern(self) -> str:
        """The pattern that cuts text into pieces before any merge."""
        return self._pattern

    @property
    def special_tokens(self) -> dict[str, int]:
        """Name -> id of the tokens that no text can produce."""
        return dict(self._special)

    @property
    def bos(self) -> int:
        """The token that begins every document and conversation."""
        return self.special("<|bos|>")

    def special(self, name: str) -> int:
        """Id of a special token.

        Raises: TokenizerError for a name that is not one, listing those that are.
        """
        if name not in self._special:
            raise TokenizerError(
                f"{name!r} is no special token: expected one of {', '.join(self._special)}"
            )
        return self._special[name]

    @cached_property
    def token_bytes(self) -> tuple[int, ...]:
        """Bytes of text each token stands for; 0 for the special ones (they are not text)."""
        return tuple(map(len, self._tokens)) + (0,) * len(self._special)

    @cached_property
    def content_hash(self) -> str:
        """sha256, in hex, of everything that decides an id: equal vocabularies, equal hashes."""
        canonical = json.dumps(
            self._content(), sort_keys=True, separators=(",", ":"), ensure_ascii=True
        )
        return hashlib.sha256(canonical.encode("ascii")).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.content_hash == other.content_hash

    def __hash__(self) -> int:
        return hash(self.content_hash)

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, content_hash={self.content_hash[:12]})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer, (self._tokens, self._pattern)

    # --------------------------------------------------------------------------- text -> tokens

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, never a special one.

        Lone surrogates (halves of UTF-16 pairs, which no UTF-8 can hold) count as U+FFFD;
        everything else comes back exactly from `decode`.
        """
        # A run of 100,000 covers nine sampled characters in a row, so this costs 1/10,000 of a
        # search.
        if len(text) < _LONG_RUN or not _SAMPLED_RUN.search(text[::_STRIDE]):
            return self._encoding.encode_ordinary(text)
        return self._encode_long_runs(replace_surrogates(text))

    def encode_array(self, text: str) -> npt.NDArray[np.uint32]:
        """The tokens of `encode` in an array, without a list of Python's integers on the way."""
        if len(text) >= _LONG_RUN and _SAMPLED_RUN.search(text[::_STRIDE]):
            return np.array(self.encode(text), np.uint32)
        try:
            return self._encoding.encode_to_numpy(text, disallowed_special=())
        except UnicodeEncodeError:  # a lone surrogate
            return np.array(self.encode(text), np.uint32)

    def encode_all(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.uint32], list[int]]:
        """The tokens of all texts one after another, and how many each has: those of `encode`, in
        one thread some times faster (known.py)."""
        with self._lock:
            groups = [self._encode_group(group) for group in _groups(texts)]
        tokens = [each for each, _ in groups] or [np.zeros(0, np.uint32)]
        return np.concatenate(tokens), [length for _, lengths in groups for length in lengths]

    def _encode_group(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.uint32], list[int]]:
        try:
            tokens, lengths = self._known.encode(texts)
        except UnicodeEncodeError:  # a lone surrogate
            tokens, lengths = self._known.encode([replace_surrogates(text) for text in texts])
        return tokens, lengths.tolist()

    @cached_property
    def _known(self) -> KnownPieces:
        most_digits = 2 if self._pattern == SPLIT_PATTERN else 3
        return KnownPieces(most_digits, self._encode_pieces, self.encode_array, self._tokens)

    def _encode_pieces(
        self, pieces: Sequence[bytes]
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        """The tokens of pieces, and how many each has: with zeros between them, in one call."""
        if any(b"\0" in piece for piece in pieces):
            every = [self._whole_piece.encode_ordinary(piece.decode()) for piece in pieces]
            tokens = np.array([token for each in every for token in each], np.uint32)
            return tokens, np.array([len(each) for each in every], np.int64)
        joined = b"".join(piece + b"\0" for piece in pieces).decode()
        found = self._zero_parted.encode_to_numpy(joined, disallowed_special=())
        zeros = np.flatnonzero(found == self._tokens.index(b"\0"))
        return found[found != found[zeros[0]]], np.diff(zeros, prepend=-1) - 1

    @cached_property
    def _zero_parted(self) -> tiktoken.Encoding:
        return self._build(r"\x00|[^\x00]+")

    def encode_batch(self, texts: Sequence[str], num_threads: int | None = None) -> list[list[int]]:
        """The tokens of each text.  num_threads None: one per processor, at most 8."""
        num_threads = num_threads or min(8, os.cpu_count() or 1)
        if num_threads == 1 or len(texts) <= 1:
            return [self.encode(text) for text in texts]
        num_texts = max(1, min(_BATCH_SLICE, len(texts) // num_threads))
        slices = [texts[start : start + num_texts] for start in range(0, len(texts), num_texts)]
        with ThreadPoolExecutor(num_threads) as threads:
            encoded = threads.map(lambda part: [self.encode(text) for text in part], slices)
            return list(itertools.chain.from_iterable(encoded))

    def _encode_long_runs(self, text: str) -> list[int]:
        tokens: list[int] = []
        done = 0
        for start, end in _long_runs(text):
            tokens += self._encoding.encode_ordinary(text[done:start])
            tokens += self._whole_piece.encode_ordinary(text[start:end])
            done = end
        return tokens + self._encoding.encode_ordinary(text[done:])

    @cached_property
    def _whole_piece(self) -> tiktoken.Encoding:
        # The same merges with a pattern that takes everything as one piece.
        return self._build(r"(?s:.+)")

    def _build(self, pattern: str) -> tiktoken.Encoding:
        ranks = {token: rank for rank, token in enumerate(self._tokens)}
        return tiktoken.Encoding(
            "nanochat", pat_str=pattern, mergeable_ranks=ranks, special_tokens=self._special
        )

    # --------------------------------------------------------------------------- tokens -> text

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of the tokens; bytes that are no UTF-8 become U+FFFD, special ones their names.

        Raises: TokenizerError for a number outside the vocabulary.
        """
        return self.decode_bytes(tokens).decode("utf-8", errors="replace")

    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        """The exact bytes of the tokens.

        Raises: TokenizerError for a number outside the vocabulary.
        """
        try:
            return self._encoding.decode_bytes(tokens)
        except (KeyError, OverflowError):
            wrong = next(token for token in tokens if not 0 <= token < self.vocab_size)
            raise TokenizerError(
                f"token {wrong} is outside the vocabulary of {self.vocab_size}: expected 0 to "
                f"{self.vocab_size - 1}; were these tokens made by another tokenizer?"
            ) from None

    def stream_decoder(self) -> StreamDecoder:
        """A decoder for tokens that arrive one at a time."""
        return StreamDecoder(lambda token: self.decode_bytes([token]))

    # ---------------------------------------------------------------------------------- on disk

    def save(self, path: Path) -> None:
        """Write the JSON file, whole or not at all."""
        content = (
            {"format": _FORMAT, "version": _VERSION}
            | self._content()
            | {"sha256": self.content_hash}
        )
        write_text_atomically(path, json.dumps(content, indent=0, ensure_ascii=True) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """The tokenizer in a file written by `save`.

        Raises: TokenizerError naming the file and what is wrong: absent, not JSON, another format,
                changed content.
        """
        raw = _read_json(path)
        fields = _checked_fields(raw, path)
        tokens = _decoded(fields["tokens"], path)
        try:
            tokenizer = cls(tokens, fields["pattern"])
        except TokenizerError as error:
            raise TokenizerError(f"{path}: {error}") from None
        if tokenizer.content_hash != fields["sha256"]:
            raise TokenizerError(
                f"{path}: content hash is {tokenizer.content_hash[:12]}..., but the file says "
                f"{fields['sha256'][:12]}...: it was changed after it was saved; copy it again"
            )
        return tokenizer

    def _content(self) -> dict[str, Any]:
        return {
            "pattern": self._pattern,
            "special_tokens": list(self._special),
            "tokens": [base64.b64encode(token).decode("ascii") for token in self._tokens],
        }


def _groups(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Some at a time: their arrays stay in a processor's cache."""
    start = num_chars = 0
    for index, text in enumerate(texts, start=1):
        num_chars += len(text)
        if num_chars >= _GROUP_CHARS or index == len(texts):
            yield texts[start:index]
            start, num_chars = index, 0


def replace_surrogates(text: str) -> str:
    """The text as UTF-8 can hold it: surrogate pairs joined, lone halves replaced by U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _long_runs(text: str) -> Iterator[tuple[int, int]]:
    """Where long whitespace is one piece whatever surrounds it: it can be encoded by itself.

    In a run of whitespace the pattern's pieces are: all up to the last line break (`\\s*[\\r\\n]`;
    its length is no danger), then all but the last character (`\\s+(?!\\S)`, the dangerous one),
    then the last character together with what follows; at the end of the text `\\s+(?!\\S)` takes
    the last character too.
    """
    for run in _RUN.finditer(text):
        start = 1 + max(text.rfind("\n", *run.span()), text.rfind("\r", *run.span()))
        start = max(start, run.start())
        end = run.end() if run.end() == len(text) else run.end() - 1
        if start < end:
            yield start, end


def _check_vocabulary(tokens: Sequence[bytes], pattern: str) -> None:
    if pattern not in KNOWN_PATTERNS:
        raise TokenizerError(
            f"the split pattern {_short(pattern)} is unknown: expected that of karpathy/nanochat, "
            f"{SPLIT_PATTERN} or GPT-4's (others are refused: a pattern can stall the program)"
        )
    vocab_size = len(tokens) + len(SPECIAL_TOKENS)
    if vocab_size > MAX_VOCAB_SIZE:
        raise TokenizerError(
            f"the vocabulary has {vocab_size} tokens, expected at most {MAX_VOCAB_SIZE}"
        )
    places: dict[bytes, int] = {}
    for token_id, token in enumerate(tokens):
        if not token:
            raise TokenizerError(f"token {token_id} is empty: expected at least one byte")
        if token in places:
            raise TokenizerError(
                f"tokens {places[token]} and {token_id} are both {token!r}: expected no repetition"
            )
        places[token] = token_id
    missing = [byte for byte in range(256) if bytes([byte]) not in places]
    if missing:
        raise TokenizerError(
            f"the vocabulary lacks {len(missing)} of the 256 single bytes (first: {missing[0]}): "
            "without them some text could not be encoded"
        )


def _read_json(path: Path) -> Any:
    try:
        size = path.stat().st_size if path.exists() else 0
        if size > MAX_FILE_BYTES:
            raise TokenizerError(f"{path}: {size} bytes, expected at most {MAX_FILE_BYTES}")
        return read_json(path)
    except (DataError, OSError, RecursionError) as error:
        raise TokenizerError(
            f"{error}; `nanochat tokenizer train` and `nanochat tokenizer import` write tokenizers"
        ) from None


def _checked_fields(raw: Any, path: Path) -> dict[str, Any]:
    if not isinstance(raw, Mapping) or raw.get("format") != _FORMAT:
        raise TokenizerError(f'{path}: not a tokenizer: expected "format": "{_FORMAT}"')
    if raw.get("version") != _VERSION:
        raise TokenizerError(
            f"{path}: format version {_short(raw.get('version'))}, but this nanochat reads "
            f"version {_VERSION}"
        )
    expected = {"format", "version", "pattern", "special_tokens", "tokens", "sha256"}
    if set(raw) != expected:
        raise TokenizerError(f"{path}: keys are {_short(sorted(raw))}, expected {sorted(expected)}")
    for key in ("pattern", "sha256"):
        if not isinstance(raw[key], str):
            raise TokenizerError(f'{path}: "{key}" is {_short(raw[key])}, expected a string')
    if raw["special_tokens"] != list(SPECIAL_TOKENS):
        raise TokenizerError(
            f"{path}: special tokens are {_short(raw['special_tokens'])}, expected the nine of "
            "karpathy/nanochat in its order, <|bos|> to <|output_end|>"
        )
    tokens = raw["tokens"]
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise TokenizerError(f'{path}: "tokens" is {_short(tokens)}, expected a list of strings')
    return dict(raw)


def _decoded(tokens: Sequence[str], path: Path) -> list[bytes]:
    decoded = []
    for token_id, token in enumerate(tokens):
        try:
            decoded.append(base64.b64decode(token, validate=True))
        except (binascii.Error, ValueError):
            raise TokenizerError(
                f"{path}: token {token_id} is {_short(token)}, expected base64"
            ) from None
    return decoded


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

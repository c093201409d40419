"""A piece of a corpus -> its tokens, and what is to be known of each document.   in: PieceTask
out: a directory, PieceFacts   who calls: batches/prepare.py, in any process   (imports no torch)

One pass over the text: read, clean, hash, compare with the evaluation sets, tokenize.  Whether a
document stays is decided when all pieces are there; the tokens of one that does not are then not
gathered.  A piece's directory is whole or absent:

    tokens.bin      all documents, <|bos|> first in each    offsets.npy     where each begins
    hashes.npy      128 bits of the clean text              characters.npy  of the clean text
    signatures.npy  128 x 16 bits (near.py)                 bands.npy       a row of keys each
    has_words.npy   whether it has a signature              is_held_out.npy for validation
    places.npy      span and number of each                 hits.npy        (document, entry)
    piece.json      PieceFacts
Read next: corpus/prepare (what is computed), prepare_duplicates.py, prepare_shards.py (who reads).
"""

import functools
import hashlib
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nanochat.batches.store import token_dtype
from nanochat.batches.store_writer import after_bos
from nanochat.common.files import read_json, sync_directory, write_json_atomically
from nanochat.corpus.pieces import Piece, place_of, read_span
from nanochat.corpus.prepare.clean import CleanRules, clean, reason_against
from nanochat.corpus.prepare.contamination import EvaluationSets
from nanochat.corpus.prepare.near import band_keys, signatures_of
from nanochat.corpus.prepare.words import words_of
from nanochat.corpus.split import text_hash
from nanochat.tokenizer.load import load_tokenizer
from nanochat.tokenizer.tokenizer import Tokenizer

__all__ = [
    "PieceFacts",
    "PieceSettings",
    "PieceTask",
    "piece_directory",
    "piece_facts",
    "snippet",
    "write_piece",
]

BATCH_CHARS = 400_000  # looked at together: the arrays of their words stay in a processor's cache
NUM_EXAMPLES = 3  # of each reason
SNIPPET_CHARS = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class PieceSettings:
    """What is done with every piece."""

    rules: CleanRules
    tokenizer: Path
    text_column: str
    columns: Mapping[Path, str]
    held_out_files: frozenset[Path]
    """All of their documents are for validation."""
    held_out_limit: int | None
    """Or those whose text has a hash below this (corpus/split.py)."""
    evaluation: Path | None
    """Where the entries of the evaluation sets are saved."""
    band_rows: int | None
    """Numbers of a signature in a band; None: no signatures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PieceTask:
    """One piece to do; may be sent to another machine that has the same disk."""

    piece: Piece
    settings: PieceSettings
    work: Path
    """Where pieces are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PieceFacts:
    """What a piece has."""

    number: int
    num_read: int
    """Texts, empty ones too."""
    num_read_characters: int
    num_documents: int
    num_tokens: int
    num_changed: int
    """Documents that cleaning changed."""
    left_out: dict[str, int]
    """Reason -> texts."""
    examples: dict[str, list[tuple[str, str]]]
    """Reason -> some of them: place, beginning."""
    seconds: dict[str, float]
    """What the time went to."""


def piece_directory(work: Path, number: int) -> Path:
    """Where a piece is, once it is whole."""
    return work / "pieces" / f"{number:06d}"


def piece_facts(work: Path, number: int) -> PieceFacts | None:
    """Of a piece that is there; None otherwise."""
    path = piece_directory(work, number) / "piece.json"
    return PieceFacts(**read_json(path)) if path.is_file() else None


def write_piece(task: PieceTask) -> PieceFacts:
    """The piece's directory, written if it is not there.

    Memory: one batch of BATCH_CHARS, and some 700 bytes for each document of the piece.
    Raises: DataError for what cannot be read, with file and place.
    """
    if (known := piece_facts(task.work, task.piece.number)) is not None:
        return known
    place = piece_directory(task.work, task.piece.number)
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}.", suffix=".tmp"))
    try:
        facts = _Writer(task, temporary).write()
        write_json_atomically(temporary / "piece.json", asdict(facts))
        temporary.chmod(0o755)
        if not place.exists():
            temporary.rename(place)
            sync_directory(place.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # gone already where it was renamed
    return facts


def snippet(text: str) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(text[: 4 * SNIPPET_CHARS].split())
    return line if len(line) <= SNIPPET_CHARS else line[: SNIPPET_CHARS - 3] + "..."


@dataclass(slots=True)
class _Batch:
    """Documents that are looked at together."""

    texts: list[str] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)
    is_held_out: list[bool] = field(default_factory=list)
    num_chars: int = 0


class _Writer:
    def __init__(self, task: PieceTask, directory: Path) -> None:
        self._task, self._settings = task, task.settings
        self._directory = directory
        self._tokenizer = _tokenizer(task.settings.tokenizer)
        self._evaluation = _evaluation(task.settings.evaluation)
        self._dtype = token_dtype(self._tokenizer.vocab_size)
        self._arrays: dict[str, list[npt.NDArray[Any]]] = {}
        self._num_documents = self._num_tokens = 0
        self._num_read = self._num_read_characters = self._num_changed = 0
        self._left_out: Counter[str] = Counter()
        self._examples: dict[str, list[tuple[str, str]]] = {}
        self._seconds: Counter[str] = Counter()

    def write(self) -> PieceFacts:
        with (self._directory / "tokens.bin").open("wb") as file:
            batches = self._batches()
            while True:
                with self._timed("read and clean"):
                    batch = next(batches, None)
                if batch is None:
                    break
                self._add(batch, file.write)
        with self._timed("write"):
            self._save_arrays()
        return PieceFacts(
            number=self._task.piece.number,
            num_read=self._num_read,
            num_read_characters=self._num_read_characters,
            num_documents=self._num_documents,
            num_tokens=self._num_tokens,
            num_changed=self._num_changed,
            left_out=dict(self._left_out),
            examples=self._examples,
            seconds=dict(self._seconds),
        )

    def _batches(self) -> Iterator[_Batch]:
        batch = _Batch()
        for index, span in enumerate(self._task.piece.spans):
            is_file_held_out = span.path in self._settings.held_out_files
            for text, number in read_span(span, self._settings.columns, self._settings.text_column):
                self._num_read += 1
                self._num_read_characters += len(text)
                cleaned = clean(text)
                if (reason := reason_against(cleaned, self._settings.rules)) is not None:
                    self._leave_out(reason, place_of(span.path, number), cleaned)
                    continue
                self._num_changed += cleaned != text
                batch.texts.append(cleaned)
                batch.places.append((index, number))
                batch.is_held_out.append(is_file_held_out or self._is_below_limit(text))
                batch.num_chars += len(cleaned)
                if batch.num_chars >= BATCH_CHARS:
                    yield batch
                    batch = _Batch()
        if batch.texts:
            yield batch

    def _is_below_limit(self, text: str) -> bool:
        """By the text as it was read: training from raw text holds out the same documents."""
        limit = self._settings.held_out_limit
        return limit is not None and text_hash(text) < limit

    def _leave_out(self, reason: str, place: str, text: str) -> None:
        self._left_out[reason] += 1
        examples = self._examples.setdefault(reason, [])
        if len(examples) < NUM_EXAMPLES:
            examples.append((place, snippet(text)))

    def _add(self, batch: _Batch, write: Callable[[bytes], object]) -> None:
        with self._timed("hash"):
            data = [text.encode() for text in batch.texts]
            digests = b"".join(hashlib.blake2b(each, digest_size=16).digest() for each in data)
            self._keep("hashes", np.frombuffer(digests, "<u8").reshape(-1, 2))
        if self._settings.band_rows is not None or self._evaluation is not None:
            with self._timed("words"):
                words = words_of(data)
            if self._settings.band_rows is not None:
                with self._timed("signatures"):
                    signatures, has_words = signatures_of(words)
                    self._keep("signatures", signatures)
                    self._keep("has_words", has_words)
                    self._keep("bands", band_keys(signatures, self._settings.band_rows).T)
            if self._evaluation is not None:
                with self._timed("evaluation sets"):
                    hits = self._evaluation.hits(words)
                    rows = np.stack([hits.texts + self._num_documents, hits.entries], axis=1)
                    self._keep("hits", rows)
        with self._timed("tokenize"):
            encoded, counts = self._tokenizer.encode_all(batch.texts)
            tokens, lengths = after_bos(encoded, counts, self._tokenizer.bos, self._dtype)
        with self._timed("write"):
            write(tokens.tobytes())
        self._keep("offsets", self._num_tokens + np.cumsum(lengths))
        self._keep("characters", np.array([len(text) for text in batch.texts], np.int32))
        self._keep("places", np.array(batch.places, np.int64))
        self._keep("is_held_out", np.array(batch.is_held_out))
        self._num_documents += len(lengths)
        self._num_tokens += len(tokens)

    def _keep(self, name: str, array: npt.NDArray[Any]) -> None:
        self._arrays.setdefault(name, [np.zeros(1, np.int64)] if name == "offsets" else [])
        self._arrays[name].append(array)

    def _save_arrays(self) -> None:
        for name, parts in self._arrays.items():
            array = np.concatenate(parts)
            # Bands are read one at a time, over all pieces.
            array = np.ascontiguousarray(array.T) if name == "bands" else array
            np.save(self._directory / f"{name}.npy", array)

    def _timed(self, name: str) -> AbstractContextManager[None]:
        return _timed(self._seconds, name)


@contextmanager
def _timed(seconds: "Counter[str]", name: str) -> Iterator[None]:
    start_s = time.perf_counter()
    yield
    seconds[name] += time.perf_counter() - start_s  # type: ignore[assignment]


@functools.cache
def _tokenizer(path: Path) -> Tokenizer:
    """Once a process, however many pieces it does."""
    return load_tokenizer(path)


@functools.cache
def _evaluation(directory: Path | None) -> EvaluationSets | None:
    return None if directory is None else EvaluationSets.load(directory)

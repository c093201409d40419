"""Files -> pieces of about equal size, and their texts.   in: files, a size   out: Piece, texts
who calls: batches/prepare.py, batches/prepare_piece.py

A piece is what one process reads at a time: several small files, a file, or a part of a large one.
Files can be parted where a reader can begin in the middle: Parquet at its row groups, plain .jsonl
at its lines; all others are read whole, a record at a time.  The pieces are in the order of the
files and of their parts, so that texts of all pieces, one after another, are the corpus in its
order, whatever the size of a piece.
Read next: documents.py (what a record's text is), batches/prepare.py (who reads pieces).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nanochat.common.errors import DataError
from nanochat.corpus.documents import texts_of_file, texts_of_records
from nanochat.corpus.files import COMPRESSIONS, Record, format_of, not_utf8, plain_errors
from nanochat.corpus.tables import group_sizes, read_table

__all__ = ["Piece", "Span", "cut_pieces", "place_of", "read_span"]

PACKED_RATIO = 3  # bytes of text in a byte of .gz, .zst and .bz2, about


@dataclass(frozen=True, slots=True)
class Span:
    """A file, or a part of it."""

    path: Path
    start: int = 0
    stop: int | None = None
    """Row groups of Parquet, bytes of .jsonl: lines that begin there.  None: the whole file."""
    first: int = 0
    """The number of its first text: rows before it, or the byte."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What one process reads at a time."""

    number: int
    spans: tuple[Span, ...]
    num_bytes: int
    """About, unpacked."""


def cut_pieces(files: Sequence[Path], piece_bytes: int) -> list[Piece]:
    """The files in pieces of about this size, in their order.

    Raises: DataError for a Parquet file that is damaged, a file that is not there.
    """
    pieces: list[Piece] = []
    held: list[Span] = []
    num_bytes = 0
    for path in files:
        for span, size in _spans(path, piece_bytes):
            if held and num_bytes + size > piece_bytes:
                pieces.append(Piece(len(pieces), tuple(held), num_bytes))
                held, num_bytes = [], 0
            held.append(span)
            num_bytes += size
    return [*pieces, Piece(len(pieces), tuple(held), num_bytes)] if held else pieces


def read_span(
    span: Span, columns: Mapping[Path, str], text_column: str
) -> Iterator[tuple[str, int]]:
    """Its texts, empty ones too, each with its number (see `place_of`).

    Memory: one line, one row group.
    Raises: DataError as `read_documents`.
    """
    column = columns.get(span.path, text_column)
    if span.stop is None:
        yield from ((text, number) for number, text in enumerate(texts_of_file(span.path, column)))
    elif format_of(span.path) == "parquet":
        records = read_table(span.path, [column], range(span.start, span.stop))
        yield from (
            (text, number)
            for number, text in enumerate(texts_of_records(records, column), span.first)
        )
    else:
        for record, place in _lines(span):
            (text,) = texts_of_records([record], column)
            yield text, place


def place_of(path: Path, number: int) -> str:
    """The place of a text in words: its file, and where in it."""
    unit = "text" if format_of(path) == "text" else "record"
    if _is_parted_by_bytes(path):
        return f"{path}, byte {number:,}"
    return f"{path}, {unit} {number + 1:,}"


def _spans(path: Path, piece_bytes: int) -> Iterator[tuple[Span, int]]:
    with plain_errors(path):
        size = path.stat().st_size
    if format_of(path) == "parquet":
        yield from _group_spans(path, piece_bytes)
    elif _is_parted_by_bytes(path):
        for start in range(0, size, piece_bytes):
            stop = min(start + piece_bytes, size)
            yield Span(path, start, stop, start), stop - start
    else:
        yield Span(path), size * (PACKED_RATIO if path.suffix.lower() in COMPRESSIONS else 1)


def _group_spans(path: Path, piece_bytes: int) -> Iterator[tuple[Span, int]]:
    sizes = group_sizes(path)
    start, first, num_rows, num_bytes = 0, 0, 0, 0
    for number, (rows, size) in enumerate(sizes):
        if number > start and num_bytes + size > piece_bytes:
            yield Span(path, start, number, first), num_bytes
            start, first, num_rows, num_bytes = number, first + num_rows, 0, 0
        num_rows += rows
        num_bytes += size
    if sizes:
        yield Span(path, start, len(sizes), first), num_bytes


def _is_parted_by_bytes(path: Path) -> bool:
    return format_of(path) == "lines" and path.suffix.lower() not in COMPRESSIONS


def _lines(span: Span) -> Iterator[tuple[Record, int]]:
    """The records of lines that begin in the span, and the bytes they begin at."""
    assert span.stop is not None, f"{span.path} whole"
    with plain_errors(span.path), span.path.open("rb") as file:
        place = span.start
        if place:  # to the end of the line that begins before
            file.seek(place - 1)
            place += len(file.readline()) - 1
        while place < span.stop and (line := file.readline()):
            if line.strip():
                yield _record(line, span.path, place), place
            place += len(line)


def _record(line: bytes, path: Path, place: int) -> Record:
    where = f"{path}, the line at byte {place:,}"
    try:
        text = line.decode()
        return Record(json.loads(text.removeprefix("\ufeff") if place == 0 else text), where)
    except UnicodeDecodeError as error:
        raise not_utf8(where, place, error) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({str(error) or 'nested too deeply'})") from None

"""Files -> documents.   in: .txt .md .jsonl .json .csv .parquet .arrow   out: Document
who calls: tokenizer training, batches.sources (through cli)

A line of JSON, an item of an array, a row of a table is one document: its `text` (or another
column), or the value itself where that is a string.  A text file is one document too, unless it has
lines of `<|endoftext|>` between its documents, or is long: then it is cut between paragraphs.
Documents of nothing but white space are left out and counted.
Read next: files.py (how they are opened), split.py (what is held out), batches/store_writer.py
(tokens).
"""

import codecs
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from nanochat.common.errors import DataError
from nanochat.common.quote import quoted
from nanochat.corpus.files import (
    TABLES,
    Paths,
    ReadReport,
    Record,
    corpus_fingerprint,
    format_of,
    not_utf8,
    read_chunks,
    read_records,
)
from nanochat.corpus.places import find_places, split_places
from nanochat.corpus.split import Reader, Split, SplitRule, split_files

__all__ = [
    "MAX_TEXT_CHARS",
    "TEXT_FORMATS",
    "Document",
    "corpus_fingerprint",
    "find_files",
    "read_documents",
    "split_documents",
    "texts_of_file",
    "texts_of_records",
]

# Of a text file: some 12,000 tokens, longer than the contexts trained here; and a book of a
# megabyte gives twenty documents to shuffle and to hold one out of.
MAX_TEXT_CHARS = 50_000

NAMES = r"^[ \t]*<\|(?:endoftext|end_of_text|bos)\|>[ \t]*\r?"
SEPARATOR = re.compile(NAMES + r"\n", re.MULTILINE)
LAST_SEPARATOR = re.compile(NAMES + r"\Z", re.MULTILINE)  # at the end it needs no line end
SEPARATOR_ROOM = 200  # longer than any separator with the blanks around it

TEXT_FORMATS = ("text", "lines", "json", *TABLES)


class Document(NamedTuple):
    """A text, and where it came from."""

    text: str
    source: str
    """The file."""
    position: int
    """Which of the file's documents, from 0."""


def find_files(paths: Paths) -> list[Path]:
    """The text files that paths and names (corpus/places.py) stand for, in reading order.

    Raises: DataError for a path that does not exist, an unknown suffix, a folder without text.
    """
    return list(find_places(TEXT_FORMATS, paths).files)


def read_documents(
    paths: Paths,
    *,
    text_column: str = "text",
    report: ReadReport | None = None,
    home: Path | None = None,
) -> Iterator[Document]:
    """Every document of the files, one after another; the paths are checked before the first.

    Memory: one line, one row group, or MAX_TEXT_CHARS of a text file, whatever the corpus.
    Raises: DataError for paths as `find_files`; while reading, with file and place, for what is not
            UTF-8, JSON or a table, has no such column, is truncated; at the end, if all was empty.
    """
    places = find_places(TEXT_FORMATS, paths, home)
    report = report if report is not None else ReadReport()
    return _documents(places.files, places.columns, text_column, report)


def split_documents(
    paths: Paths,
    rule: SplitRule | None = None,
    *,
    text_column: str = "text",
    home: Path | None = None,
) -> Split[Document]:
    """The documents to train on and those held out; without a rule, what a data set holds out.

    Example: split = split_documents("corpus/"); split.train(), split.validation(), split.rule
    Raises:  DataError as `read_documents`, and when one side would be empty.
    """
    places, rule = split_places(TEXT_FORMATS, paths, rule, home)
    named = [places.columns.get(path) for path in places.files]

    def read(files: Sequence[Path], report: ReadReport | None) -> Iterator[Document]:
        report = report if report is not None else ReadReport()
        return _documents(files, places.columns, text_column, report)

    reader = Reader(
        name=f"documents:{text_column}" + (f":{named}" if any(named) else ""),
        read=read,
        text_of=lambda document: document.text,
    )
    return split_files(reader, places.files, rule)


def _documents(
    files: Sequence[Path], columns: Mapping[Path, str], text_column: str, report: ReadReport
) -> Iterator[Document]:
    for path in files:
        column = columns.get(path, text_column)
        position = 0
        for text in texts_of_file(path, column):
            if not text or text.isspace():
                report.counts["empty documents left out"] += 1
                continue
            report.num_kept += 1
            yield Document(text, str(path), position)
            position += 1
    if not report.num_kept:
        raise DataError(f"{files[0]}{' and the others' * (len(files) > 1)}: no text in it")


def texts_of_file(path: Path, column: str) -> Iterator[str]:
    """Every text of a file, empty ones too: what the column of a record says, or a text file's.

    Raises: as `read_documents`.
    """
    if format_of(path) == "text":
        return _text_file(path)
    return texts_of_records(read_records(path, [column]), column)


def texts_of_records(records: Iterable[Record], column: str) -> Iterator[str]:
    """The text of each record: its column, or the record itself where it is a string.

    Raises: DataError with the place of a record that has neither.
    """
    for value, where in records:
        if isinstance(value, dict):
            if column not in value:
                keys = ", ".join(value) or "none"
                raise DataError(f"{where}: no {column!r}, the keys are {keys}: name one of them")
            value = value[column]
        if value is not None and not isinstance(value, str):
            raise DataError(f"{where}: {column!r} is {quoted(value)}, expected a string")
        yield value or ""


def _text_file(path: Path) -> Iterator[str]:
    held = ""
    for text in _decoded(path):
        *complete, held = SEPARATOR.split(held + text)
        for document in complete:
            yield from _cut(document, MAX_TEXT_CHARS)
        *complete, held = _cut(held, MAX_TEXT_CHARS + SEPARATOR_ROOM)
        yield from complete
    if held := LAST_SEPARATOR.sub("", held):
        yield from _cut(held, MAX_TEXT_CHARS)


def _cut(text: str, allowed: int) -> list[str]:
    """Pieces of at most MAX_TEXT_CHARS, as long as more than `allowed` is left; then the rest.

    Each ends at the last paragraph, else line, else word that begins in its second half.
    """
    pieces = []
    while len(text) > allowed:
        half = MAX_TEXT_CHARS // 2
        ends = (text.rfind(mark, half, MAX_TEXT_CHARS) + len(mark) for mark in ("\n\n", "\n", " "))
        end = next((end for end in ends if end > half), MAX_TEXT_CHARS)
        pieces.append(text[:end])
        text = text[end:]
    return [*pieces, text]


def _decoded(path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    start = 0  # of what the decoder is given, in bytes of the file
    is_first = True
    for chunk in _and_last(read_chunks(path)):
        held = decoder.getstate()[0]
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            raise not_utf8(str(path), start - len(held), error) from None
        start += len(chunk)
        yield text.removeprefix("\ufeff") if is_first else text
        is_first = is_first and not text


def _and_last(chunks: Iterator[bytes]) -> Iterator[bytes]:
    yield from chunks
    yield b""

"""Tables -> records.   in: .csv .tsv .parquet .arrow   out: Record, columns
who calls: files.py (read_records), survey.py

In memory are a row of a CSV file, a row group of a Parquet file, a record batch of an Arrow file
(which is mapped, not read).  A row is a dict by column, whatever the format; lists and structs in
Parquet and Arrow become lists and dicts, and cells of CSV stay text.
Read next: files.py (who calls), documents.py, conversations.py (what the rows mean).
"""

import csv
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat.common.errors import DataError
from nanochat.corpus.files import Record, format_of, plain_errors, read_lines

__all__ = ["TableFacts", "group_sizes", "read_table", "table_facts"]

ROWS_AT_ONCE = 256  # turned into Python objects
MOST_CELL_CHARS = 1 << 28  # a quote that is never closed would take all the rest for one cell
DELIMITERS = ",\t;|"


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFacts:
    """What a table says of itself."""

    columns: dict[str, str]
    """Names -> types."""
    num_rows: int | None
    """None where they would have to be counted."""


def read_table(
    path: Path, columns: Sequence[str] | None = None, groups: range | None = None
) -> Iterator[Record]:
    """The rows of a table as dicts, only these columns (None: all).

    Of a Parquet file only these row groups, where they are given.
    Raises: DataError with file and row, or line, for what is damaged or lacks a column.
    """
    if groups is not None:
        return _parquet_rows(path, columns, groups)
    readers = {"csv": _csv_rows, "parquet": _parquet_rows, "arrow": _arrow_rows}
    return readers[format_of(path) or ""](path, columns)


def table_facts(path: Path) -> TableFacts:
    """Columns and rows, without reading the rows.

    Raises: DataError for what is damaged.
    """
    if format_of(path) == "csv":
        header, _ = _csv_open(path)
        return TableFacts(columns=dict.fromkeys(header, "text"), num_rows=None)
    import pyarrow.parquet

    with _arrow_errors(path):
        if format_of(path) == "parquet":
            with pyarrow.parquet.ParquetFile(path) as file:
                return _facts(file.schema_arrow, file.metadata.num_rows)
        with _arrow_reader(path) as reader:
            is_file = hasattr(reader, "num_record_batches")
            numbers = range(reader.num_record_batches) if is_file else ()
            rows = sum(reader.get_batch(number).num_rows for number in numbers)
            return _facts(reader.schema, rows if is_file else None)


def group_sizes(path: Path) -> list[tuple[int, int]]:
    """Of each row group of a Parquet file: its rows, and their bytes before they were packed.

    Raises: DataError for what is damaged.
    """
    import pyarrow.parquet

    with _arrow_errors(path), pyarrow.parquet.ParquetFile(path) as file:
        groups = (file.metadata.row_group(number) for number in range(file.num_row_groups))
        return [(group.num_rows, group.total_byte_size) for group in groups]


def _facts(schema: Any, num_rows: int | None) -> TableFacts:
    return TableFacts(columns={each.name: str(each.type) for each in schema}, num_rows=num_rows)


# ---------------------------------------------------------------------------------------- csv


def _csv_rows(path: Path, columns: Sequence[str] | None) -> Iterator[Record]:
    header, rows = _csv_open(path)
    _check_columns(path, columns, header)
    wanted = list(columns or header)
    for number, row in rows:
        if len(row) != len(header):
            raise DataError(
                f"{path}, line {number}: {len(row)} cells, expected {len(header)} as in the header"
            )
        cells = dict(zip(header, row, strict=True))
        yield Record({name: cells[name] for name in wanted}, f"{path}, line {number}")


def _csv_open(path: Path) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The header, and the rows with the lines they begin at."""
    csv.field_size_limit(MOST_CELL_CHARS)
    lines = (line + "\n" for _, line in read_lines(path))
    first = next(lines, "")
    delimiter = "\t" if ".tsv" in path.suffixes else _delimiter(first)
    reader = csv.reader(itertools.chain([first], lines), delimiter=delimiter, strict=True)
    rows = _csv_numbered(path, reader)
    header = next((row for _, row in rows), [])
    repeated = [name for name in header if header.count(name) > 1]
    if not header or repeated:
        found = f"the column {repeated[0]!r} twice" if repeated else "no line"
        raise DataError(f"{path}: {found}, expected a header with the names of the columns")
    return header, rows


def _csv_numbered(path: Path, reader: Any) -> Iterator[tuple[int, list[str]]]:
    while True:
        number = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{path}, line {number}: not CSV ({error})") from None
        if row:  # an empty line has none
            yield number, row


def _delimiter(header: str) -> str:
    """What the header has most of; a comma where it has one column."""
    return max(DELIMITERS, key=header.count)


def _check_columns(path: Path, columns: Sequence[str] | None, there: Sequence[str]) -> None:
    missing = [name for name in columns or () if name not in there]
    if missing:
        raise DataError(
            f"{path}: no column {missing[0]!r}, the columns are {', '.join(there)}: name one of "
            "them"
        )


# ---------------------------------------------------------------------------------------- arrow


def _parquet_rows(
    path: Path, columns: Sequence[str] | None, groups: range | None = None
) -> Iterator[Record]:
    import pyarrow.parquet

    with _arrow_errors(path), pyarrow.parquet.ParquetFile(path) as file:
        _check_columns(path, columns, file.schema_arrow.names)
        wanted = range(file.num_row_groups) if groups is None else groups
        before = sum(file.metadata.row_group(number).num_rows for number in range(wanted.start))
        batches = file.iter_batches(
            ROWS_AT_ONCE, list(wanted), columns=list(columns) if columns else None
        )
        yield from _batch_rows(path, batches, before)


def _arrow_rows(path: Path, columns: Sequence[str] | None) -> Iterator[Record]:
    with _arrow_errors(path), _arrow_reader(path) as reader:
        _check_columns(path, columns, reader.schema.names)
        yield from _batch_rows(path, _slices(reader, columns))


def _batch_rows(path: Path, batches: Iterator[Any], before: int = 0) -> Iterator[Record]:
    number = before
    for batch in batches:
        for value in batch.to_pylist():
            number += 1
            yield Record(value, f"{path}, row {number}")


def _slices(reader: Any, columns: Sequence[str] | None) -> Iterator[Any]:
    if hasattr(reader, "num_record_batches"):
        batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
    else:
        batches = iter(reader)
    for batch in batches:
        chosen = batch.select(list(columns)) if columns else batch
        for start in range(0, chosen.num_rows, ROWS_AT_ONCE):
            yield chosen.slice(start, ROWS_AT_ONCE)


@contextmanager
def _arrow_reader(path: Path) -> Iterator[Any]:
    """A reader of an IPC file, or of a stream, which Hugging Face's datasets writes."""
    import pyarrow

    with pyarrow.memory_map(str(path)) as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        open_it = pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream
        with open_it(source) as reader:
            yield reader


@contextmanager
def _arrow_errors(path: Path) -> Iterator[None]:
    import pyarrow

    kind = "Parquet" if format_of(path) == "parquet" else "Arrow"
    try:
        with plain_errors(path):
            yield
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path}: damaged or not {kind} ({reason}); get it again") from None

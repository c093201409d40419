"""JSONL and CSV -> rows that know where they stand.   in: a file, .gz or .zst too   out: TableRow
who calls: custom.py, questions.py   (imports no torch)

Whatever is wrong is said with file, line and column; a JSON column may be reached into
(`choices.text`).
Read next: custom.py.
"""

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat.common.config import nearest
from nanochat.common.errors import DataError
from nanochat.corpus.files import read_lines

__all__ = ["TableRow", "read_table"]

SEPARATORS = {".csv": ",", ".tsv": "\t"}
OBJECTS = (".jsonl", ".ndjson")
COMPRESSIONS = (".gz", ".zst")
PLACE = re.compile(r"\{([^{}]*)\}")  # {name} in a template


@dataclass(frozen=True, slots=True)
class TableRow:
    """One question of a user's file."""

    values: Mapping[str, Any]
    path: Path
    line: int
    """From 1; where a row spans several, the last of a CSV row."""

    def error(self, column: str, problem: str) -> DataError:
        """What is wrong, with file, line and column."""
        return DataError(f"{self.path}, line {self.line}, column {column!r}: {problem}")

    def value(self, column: str) -> Any:
        """What stands in a column; `a.b` is the entry b of the object in column a.

        Raises: DataError naming file, line, column and the columns there are.
        """
        if column in self.values:
            return self.values[column]
        found: Any = self.values
        for part in column.split("."):
            if not isinstance(found, Mapping) or part not in found:
                there = ", ".join(map(repr, self.values)) or "none"
                raise self.error(
                    column, f"not there{nearest(column, self.values)}: the columns are {there}"
                )
            found = found[part]
        return found

    def text(self, column: str) -> str:
        """What stands in a column, as text; a number as it is written in JSON.

        Raises: DataError for a list, an object, null, or nothing but spaces.
        """
        value = self.value(column)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return json.dumps(value)
        if not isinstance(value, str):
            raise self.error(column, f"{json.dumps(value)[:60]}, expected text")
        if not value.strip():
            raise self.error(column, "empty, expected text")
        return value

    def fill(self, template: str) -> str:
        """A column's text, or a template with every {column} replaced by its text."""
        if not PLACE.search(template):
            return self.text(template)
        return PLACE.sub(lambda match: self.text(match[1]), template)


def read_table(path: Path) -> list[TableRow]:
    """All rows of a .jsonl, .csv or .tsv file.

    Raises: DataError naming file, line and place of what cannot be read; for a file without rows.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    kind = suffixes[-1] if suffixes else ""
    if kind in OBJECTS:
        rows = list(_objects(path))
    elif kind in SEPARATORS:
        rows = list(_separated(path, SEPARATORS[kind]))
    else:
        raise DataError(
            f"{path}: the suffix is unknown, expected .jsonl, .csv or .tsv, plain, .gz or .zst"
        )
    if not rows:
        raise DataError(f"{path} has no rows, expected at least one question")
    return rows


def _objects(path: Path) -> Iterator[TableRow]:
    for number, line in read_lines(path):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}, line {number}, column {error.colno}: not JSON ({error.msg})"
            ) from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: not JSON ({error})") from None
        if not isinstance(value, dict):
            raise DataError(f"{path}, line {number}: {line[:40]!r}, expected a JSON object")
        yield TableRow(value, path, number)


def _separated(path: Path, separator: str) -> Iterator[TableRow]:
    reader = csv.reader(
        (f"{line}\n" for _, line in read_lines(path)), delimiter=separator, strict=True
    )
    names: list[str] | None = None
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if names is None:
                names = _names(path, cells)
            elif len(cells) != len(names):
                raise DataError(
                    f"{path}, line {reader.line_num}: {len(cells)} columns, expected "
                    f"{len(names)} ({', '.join(names)}): put quotes around text with "
                    f"{separator!r} in it"
                )
            else:
                values = {name: cell.rstrip("\r") for name, cell in zip(names, cells, strict=True)}
                yield TableRow(values, path, reader.line_num)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not CSV ({error})") from None


def _names(path: Path, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    for index, name in enumerate(names, 1):
        if not name or names.index(name) != index - 1:
            raise DataError(
                f"{path}, line 1, column {index}: {name!r}, expected a name that no other column "
                "has: the first line names the columns"
            )
    return names

"""Paths and names -> what is in them.   in: as places.py takes   out: FileFacts for each file
who calls: cli/data_show.py

A file is read as training would read it, up to so many items, so that what is told is what would
happen; a fault is told in its place and does not hide the other files.
Read next: documents.py, conversations.py, tables.py.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nanochat.common.errors import DataError
from nanochat.common.messages import Conversation, Part
from nanochat.corpus.conversations import read_conversations
from nanochat.corpus.documents import read_documents
from nanochat.corpus.files import (
    COMPRESSIONS,
    TABLES,
    Paths,
    ReadReport,
    Record,
    format_of,
    read_records,
)
from nanochat.corpus.places import find_places
from nanochat.corpus.shapes import shape_of
from nanochat.corpus.tables import TableFacts, table_facts

__all__ = ["FileFacts", "SurveyOptions", "shortened", "survey"]

FORMATS = ("text", "lines", "json", *TABLES)
FORMAT_NAMES = {
    "text": "text",
    "lines": "JSON lines",
    "json": "JSON",
    "csv": "CSV",
    "parquet": "Parquet",
    "arrow": "Arrow",
}
TYPE_NAMES = {
    bool: "bool",
    dict: "object",
    float: "float",
    int: "int",
    list: "list",
    str: "string",
    type(None): "null",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SurveyOptions:
    """How closely to look."""

    most_items: int | None = 1000
    """Of each file; None: all."""
    num_examples: int = 2
    example_chars: int = 200
    text_column: str = "text"
    home: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """What a file is and has."""

    path: str
    num_bytes: int
    format: str
    """Such as `JSON lines, gz`."""
    kind: str
    """documents, conversations, or nothing."""
    columns: dict[str, str]
    """Names -> types, of a table, or of the first record."""
    num_rows: int | None
    """As a table itself says; None where it does not."""
    num_items: int
    """Documents or conversations that would be used, of those looked at."""
    is_counted: bool
    """Whether that were all of them."""
    shapes: dict[str, int]
    """Of conversations: which shapes, how often."""
    counts: dict[str, int]
    """What would be left out or changed, by reason."""
    examples: tuple[str, ...]
    problem: str | None
    """Why reading ended, if it did not end well."""


def survey(paths: Paths, options: SurveyOptions | None = None) -> Iterator[FileFacts]:
    """The files one after another, each looked at when it is asked for.

    Raises: DataError for paths as `find_places`; what is wrong inside a file is its `problem`.
    """
    options = options or SurveyOptions()
    places = find_places(FORMATS, paths, options.home)
    for path in places.files:
        yield _looked_at(path, places.columns.get(path), options)


def _looked_at(path: Path, column: str | None, options: SurveyOptions) -> FileFacts:
    report = ReadReport()
    kind, num_items = "nothing", 0
    examples: list[str] = []
    facts, problem, is_counted = TableFacts(columns={}, num_rows=None), None, False
    try:
        first = None if format_of(path) == "text" else next(read_records(path), None)
        facts = _columns(path, first)
        where = f"{path}#{column}" if column else str(path)
        if first is not None and _is_conversation(first, column, options.text_column):
            kind = "conversations"
            items = (_told(each) for each in read_conversations(where, report=report))
        else:
            kind = "documents"
            documents = read_documents(where, text_column=options.text_column, report=report)
            items = (each.text for each in documents)
        for text in itertools.islice(items, options.most_items):
            num_items += 1
            if len(examples) < options.num_examples:
                examples.append(shortened(text, options.example_chars))
        is_counted = options.most_items is None or next(items, None) is None
    except DataError as error:
        problem = str(error)
    return FileFacts(
        path=str(path),
        num_bytes=path.stat().st_size,
        format=_format_name(path),
        kind=kind,
        columns=facts.columns,
        num_rows=facts.num_rows,
        num_items=num_items,
        is_counted=is_counted,
        shapes=dict(report.shapes.get(str(path), {})),
        counts=dict(report.counts),
        examples=tuple(examples),
        problem=problem,
    )


def _is_conversation(first: Record, column: str | None, text_column: str) -> bool:
    value = first.value
    if isinstance(value, dict) and column is not None:
        return not isinstance(value.get(column), str) and shape_of(value.get(column)) is not None
    has_text = isinstance(value, dict) and isinstance(value.get(text_column), str)
    return not has_text and shape_of(value) is not None


def _columns(path: Path, first: Record | None) -> TableFacts:
    if format_of(path) in TABLES:
        return table_facts(path)
    value = None if first is None else first.value
    if not isinstance(value, dict):
        return TableFacts(columns={}, num_rows=None)
    types = {key: TYPE_NAMES.get(type(field), "?") for key, field in value.items()}
    return TableFacts(columns=types, num_rows=None)


def _format_name(path: Path) -> str:
    packed = path.suffix.lower() if path.suffix.lower() in COMPRESSIONS else ""
    return FORMAT_NAMES[format_of(path) or ""] + (f", {packed[1:]}" if packed else "")


def _told(conversation: Conversation) -> str:
    return " | ".join(f"{message.role}: {_text(message.content)}" for message in conversation)


def _text(content: str | tuple[Part, ...]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def shortened(text: str, num_chars: int) -> str:
    """The beginning of a text, in one line of at most so many characters."""
    line = " ".join(text[: 4 * num_chars].split())
    return line if len(line) <= num_chars else line[: num_chars - 3] + "..."

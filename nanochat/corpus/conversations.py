"""Files -> conversations.   in: .jsonl .json .csv .parquet .arrow   out: Conversation
who calls: batches.sources (through cli), evals

Every record says by its keys which shape it has (shapes.py); the shapes found are reported by file.
What training cannot use as it stands is mended or left out, and counted by reason in a ReadReport:
a leading answer is dropped, turns of one side after another are joined, a question at the end is
dropped, a conversation with an empty turn is left out.  A record of no known shape is an error.
Read next: shapes.py (records -> turns), common/messages.py (what comes out), tokenizer/chat.py
(its tokens).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from nanochat.common.errors import DataError
from nanochat.common.messages import Conversation, Message, Part, conversation_to_json
from nanochat.common.quote import quoted
from nanochat.corpus.files import TABLES, Paths, ReadReport, Record, read_records
from nanochat.corpus.places import find_places, split_places
from nanochat.corpus.shapes import (
    SHAPES,
    Content,
    Shape,
    Turn,
    Unusable,
    shape_of,
    unpacked,
    unpacked_text,
)
from nanochat.corpus.split import Reader, Split, SplitRule, split_files

__all__ = ["find_conversation_files", "read_conversations", "split_conversations"]

FORMATS = ("lines", "json", *TABLES)


def find_conversation_files(paths: Paths) -> list[Path]:
    """The conversation files that paths and names (corpus/places.py) stand for, in reading order.

    Raises: DataError for a path that does not exist, an unknown suffix, a folder without any.
    """
    return list(find_places(FORMATS, paths).files)


def read_conversations(
    paths: Paths, *, report: ReadReport | None = None, home: Path | None = None
) -> Iterator[Conversation]:
    """Every conversation of the files that can be trained on: user and assistant in turns.

    The paths are checked before the first; `report` is filled meanwhile.
    Raises: DataError for paths as `find_conversation_files`; while reading, with file and line, for
            what is not JSON or has no known shape; at the end, if no conversation was left.
    """
    places = find_places(FORMATS, paths, home)
    report = report if report is not None else ReadReport()
    return _conversations(places.files, places.columns, report)


def split_conversations(
    paths: Paths, rule: SplitRule | None = None, *, home: Path | None = None
) -> Split[Conversation]:
    """The conversations to train on and those held out; without a rule, what a data set holds out.

    Raises: DataError as `read_conversations`, and when one side would be empty.
    """
    places, rule = split_places(FORMATS, paths, rule, home)
    named = [places.columns.get(path) for path in places.files]

    def read(files: Sequence[Path], report: ReadReport | None) -> Iterator[Conversation]:
        report = report if report is not None else ReadReport()
        return _conversations(files, places.columns, report)

    reader = Reader(
        name="conversations" + (f":{named}" if any(named) else ""),
        read=read,
        text_of=lambda conversation: json.dumps(conversation_to_json(conversation)),
    )
    return split_files(reader, places.files, rule)


# --------------------------------------------------------------------------------- reading


def _conversations(
    files: Sequence[Path], columns: Mapping[Path, str], report: ReadReport
) -> Iterator[Conversation]:
    for path in files:
        shapes = report.shapes.setdefault(str(path), type(report.counts)())
        for read in read_records(path):
            record = _conversation_record(read, columns.get(path))
            shape = _shape(record)
            shapes[shape] += 1
            for conversation in _usable_ones(record, SHAPES[shape], report):
                report.num_kept += 1
                yield conversation
    if not report.num_kept:
        reasons = "; ".join(f"{count} {reason}" for reason, count in report.counts.items())
        raise DataError(f"{files[0]}: no conversation to train on ({reasons or 'nothing in it'})")


def _usable_ones(record: Record, shape: Shape, report: ReadReport) -> list[Conversation]:
    usable: list[Conversation] = []
    with _counted(report):
        for turns in shape.turns(record, report):
            with _counted(report):
                usable.append(_usable(turns, report))
    return usable


@contextmanager
def _counted(report: ReadReport) -> Iterator[None]:
    try:
        yield
    except Unusable as reason:
        report.counts[f"conversations left out: {reason}"] += 1


def _conversation_record(record: Record, column: str | None) -> Record:
    """The column that was asked for, with nested values that are kept as JSON text unpacked."""
    value = record.value
    if column is not None:
        if not isinstance(value, dict) or column not in value:
            raise DataError(
                f"{record.where}: no {column!r} in {quoted(value)}, expected that column"
            )
        value = unpacked_text(value[column])
    return Record(unpacked(value), record.where)


def _shape(record: Record) -> str:
    value = record.value
    if (name := shape_of(value)) is not None:
        return name
    found = f"the keys {', '.join(value)}" if isinstance(value, dict) else quoted(value)
    raise DataError(
        f"{record.where}: no conversation in {found or 'no key'}, expected one of the shapes "
        f"{'; '.join(f'{name} ({shape.keys})' for name, shape in SHAPES.items())}"
    )


def _usable(turns: Sequence[Turn], report: ReadReport) -> Conversation:
    """The turns as training needs them: a system message at most, then user and assistant."""
    counts = report.counts
    if any(_is_empty(turn.content) for turn in turns if turn.role != "system"):
        raise Unusable("an empty turn")
    num_system = next((i for i, turn in enumerate(turns) if turn.role != "system"), len(turns))
    if any(turn.role == "system" for turn in turns[num_system:]):
        raise Unusable("a system message after the start")
    system = [turn for turn in turns[:num_system] if not _is_empty(turn.content)]
    said = list(turns[num_system:])
    while said and said[0].role == "assistant":
        counts["leading assistant turns dropped"] += 1
        said = said[1:]
    while said and said[-1].role == "user":
        counts["trailing user turns dropped"] += 1
        said = said[:-1]
    if not said:
        raise Unusable("no answer to a question")
    joined = _joined([*system, *said])
    if num_fewer := len(system) + len(said) - len(joined):
        counts["turns joined to the one before"] += num_fewer
    return tuple(Message(turn.role, turn.content) for turn in joined)


def _joined(turns: Sequence[Turn]) -> list[Turn]:
    joined: list[Turn] = []
    for turn in turns:
        if joined and joined[-1].role == turn.role:
            joined[-1] = Turn(turn.role, _together(joined[-1].content, turn.content))
        else:
            joined.append(turn)
    return joined


def _together(first: Content, second: Content) -> Content:
    if isinstance(first, str) and isinstance(second, str):
        return f"{first}\n\n{second}"
    return (*_parts(first), Part("text", "\n\n"), *_parts(second))


def _parts(content: Content) -> tuple[Part, ...]:
    return (Part("text", content),) if isinstance(content, str) else content


def _is_empty(content: Content) -> bool:
    return not any(part.text.strip() for part in _parts(content))

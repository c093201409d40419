"""Paths and names -> files.   in: paths, data:NAME, hf:org/dataset, addresses   out: Places
who calls: documents, conversations, survey

    corpus/                    a file, a folder, a glob
    corpus.parquet#body        the column `body` of it
    data:climbmix              what `nanochat data download climbmix` has brought here
    data:smoltalk:validation   the files of it that are for validation
    hf:org/dataset[/config][:split][#column]   loaded at the first use, then kept
    s3://bucket/folder/*.jsonl, https://...    the same
Read next: files.py (paths on this machine), remote.py (all the others).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nanochat.common.errors import DataError
from nanochat.corpus.files import Paths, find_files_with, format_of
from nanochat.corpus.remote import Arrived, arrived, dataset_of, fetch, is_remote
from nanochat.corpus.split import SplitRule

__all__ = ["Places", "find_places", "split_places"]


@dataclass(frozen=True, kw_only=True)
class Places:
    """Files on this machine."""

    files: tuple[Path, ...]
    """In reading order, each once."""
    columns: Mapping[Path, str]
    """Where one is named for a file: what holds its texts, or its conversations."""
    validation: tuple[Path, ...]
    """Those that their data set holds out."""


def find_places(formats: Sequence[str], paths: Paths, home: Path | None = None) -> Places:
    """The files of these formats that paths and names stand for; what is remote is loaded.

    Raises: DataError for a path that does not exist, a data set that is not here, cannot be loaded
            or has no such file; ConfigError for a name without meaning.
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    if not given:
        raise DataError("no path was given: expected a file, a folder or a glob")
    files: dict[Path, None] = {}
    columns: dict[Path, str] = {}
    validation: dict[Path, None] = {}
    for each in given:
        found, column, held_out = _files_of(str(each), formats, home)
        files.update(dict.fromkeys(found))
        validation.update(dict.fromkeys(held_out))
        if column:
            columns.update(dict.fromkeys(found, column))
    return Places(files=tuple(files), columns=columns, validation=tuple(validation))


def split_places(
    formats: Sequence[str], paths: Paths, rule: SplitRule | None, home: Path | None = None
) -> tuple[Places, SplitRule]:
    """All files, those held out among them, and the rule with what names stand for.

    Without a rule it is that of the data sets: the files they hold out, if there are any.
    Raises: as `find_places`.
    """
    places = find_places(formats, paths, home)
    if rule is None:
        return places, SplitRule(validation_files=places.validation)
    if not rule.validation_files:
        return places, rule
    held_out = find_places(formats, rule.validation_files, home)
    both = Places(
        files=tuple(dict.fromkeys((*places.files, *held_out.files))),
        columns={**places.columns, **held_out.columns},
        validation=held_out.files,
    )
    return both, SplitRule(validation_files=held_out.files)


def _files_of(
    text: str, formats: Sequence[str], home: Path | None
) -> tuple[list[Path], str | None, list[Path]]:
    """Files, the column that is named, and those of the files that are held out."""
    name, _, column = text.partition("#")
    if is_remote(name) and not Path(text).exists():
        here, side = _arrived(name, home)
        files = [path for path in here.files if format_of(path) in formats]
        if not files:
            raise DataError(f"{name} has no file that can be read here: {here.folder}")
        held_out = [path for path in files if here.sides[path] == "validation" and side is None]
        return files, column or here.column, held_out
    front, mark, column = text.rpartition("#")
    if mark and front and not Path(text).expanduser().exists():
        return find_files_with(formats, front), column or None, []
    return find_files_with(formats, text), None, []


def _arrived(name: str, home: Path | None) -> tuple[Arrived, str | None]:
    """A data set, of the catalog with one side of it perhaps, and which side that is."""
    if not name.startswith("data:"):
        return fetch(dataset_of(name), home), None
    entry, _, side = name.removeprefix("data:").partition(":")
    dataset = dataset_of(f"data:{entry}")
    if dataset.kind == "eval":
        raise DataError(f"{entry} is for evaluation: `nanochat eval` finds it by itself")
    here = arrived(dataset, home)
    if here is None:
        raise DataError(f"{entry} is not on this machine: nanochat data download {entry}")
    if not side:
        return here, None
    files = tuple(path for path in here.files if here.sides[path] == side)
    if not files:
        sides = ", ".join(sorted(set(here.sides.values())))
        raise DataError(f"{entry} has nothing for {side!r} here, expected one of {sides}")
    return replace(here, name=name, files=files), side

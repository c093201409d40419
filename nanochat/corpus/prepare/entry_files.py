"""Folders -> the files of evaluation sets in them.   in: paths   out: EntryFiles
who calls: contamination.py, batches/prepare.py, cli/data_prepare.py

What lies in a folder and has `train` as a word of its name is there to be learnt from, and what
`nanochat eval` writes of its downloads has no questions: both are left out, and named.  A file that
is named itself is taken whatever it is called.
Read next: contamination.py (what is made of them).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nanochat.corpus.files import find_files_with, format_of

__all__ = ["FORMATS", "EntryFiles", "entry_files", "has_entry_files"]

FORMATS = ("lines", "json", "csv", "parquet", "arrow")
RECORDS = "downloads"  # evals/download.py: a .json of each file, saying where it came from
WORDS = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True, slots=True)
class EntryFiles:
    """What is read of some folders, and what is not."""

    paths: tuple[Path, ...]
    names: tuple[str, ...]
    """Of each path, below the folder that was given."""
    left_out: tuple[str, ...]
    """Names of files that could be read, and are not."""


def entry_files(places: Sequence[Path]) -> EntryFiles:
    """The files of evaluation sets in these folders (or these files themselves).

    Raises: DataError for a folder without any file that could be read.
    """
    taken: dict[Path, str] = {}
    left_out: list[str] = []
    for place in places:
        for path in find_files_with(FORMATS, place):
            name = path.relative_to(place) if place.is_dir() else Path(path.name)
            if place.is_dir() and _is_other(name):
                left_out.append(str(name))
            else:
                taken[path] = str(name)
    return EntryFiles(tuple(taken), tuple(taken.values()), tuple(left_out))


def has_entry_files(folder: Path) -> bool:
    """Whether there is anything of an evaluation set in a folder, which need not exist."""
    return any(
        format_of(path) in FORMATS
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not _is_other(path.relative_to(folder))
        for path in folder.rglob("*")
    )


def _is_other(name: Path) -> bool:
    is_record = name.parts[0] == RECORDS and name.suffix == ".json"
    return is_record or "train" in WORDS.split(name.name.lower())

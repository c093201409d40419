"""Where a demo is written.   in: a run directory   out: the same, empty   who calls: demo_story.py

A demo replaces the demo before it without asking, and nothing else: what it may replace has a
demo.json, which says what was asked for.
Read next: demo_story.py.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nanochat.common.errors import ConfigError
from nanochat.common.files import write_json_atomically

__all__ = ["MARK", "begin_anew", "check_replaceable"]

MARK = "demo.json"


def check_replaceable(directory: Path) -> None:
    """Return if a demo may be written there: nothing is there yet, or an earlier demo.

    Raises: ConfigError for the run of another command.
    """
    if directory.exists() and not (directory / MARK).is_file():
        raise ConfigError(
            f"run {directory.name} is no demo: {directory} has no {MARK}; a demo would replace it: "
            "choose another --run, or remove that folder"
        )


def begin_anew(directory: Path, asked: Mapping[str, Any]) -> None:
    """The directory has nothing but the mark, which says what was asked for.

    Raises: ConfigError as `check_replaceable`.
    """
    check_replaceable(directory)
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
    write_json_atomically(directory / MARK, dict(asked))

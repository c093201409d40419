"""A directory -> may a corpus be prepared there?   in: a directory   out: nothing, or ConfigError
who calls: batches/prepare.py, batches/prepared.py, cli/data_prepare.py   (imports no torch)

A directory is ours by what its settings.json says, not by having one: many programs write a file of
that name.  Nothing is removed but what `nanochat data prepare` writes itself, and nothing at all
where something else lies beside it.
Read next: prepare.py (what is written), shards.py (what is left in the end).
"""

import json
import shutil
from pathlib import Path
from typing import Any

from nanochat.common.errors import ConfigError, DataError
from nanochat.common.files import read_json
from nanochat.common.lock import locked

__all__ = ["begin_anew", "check_place", "check_settings", "is_begun"]

LOCK = ".lock"
FILES = ("settings.json", "tokenizer.json", "index.json", "report.json")
FOLDERS = ("work", "train", "validation")
ALWAYS_SAID = frozenset({"version", "rules", "held_out", "files", "shard_tokens"})
"""What every settings.json of ours has had from the first version on."""


def is_begun(directory: Path) -> bool:
    """Whether `nanochat data prepare` has begun here, by what settings.json says."""
    path = directory / "settings.json"
    if not path.is_file():
        return False
    try:
        settings = read_json(path)
    except DataError:  # another program's; ours is whole or absent
        return False
    return (
        isinstance(settings, dict)
        and settings.keys() >= ALWAYS_SAID
        and isinstance(settings["version"], int)
        and isinstance(settings["rules"], dict)
    )


def check_place(directory: Path) -> None:
    """Raises: ConfigError where something is that the command has not begun."""
    if not directory.exists() or is_begun(directory):
        return
    if not directory.is_dir():
        raise ConfigError(f"{directory} is a file, expected a directory to prepare in")
    if found := _not_ours(directory, ()):
        raise ConfigError(
            f"{directory} holds something else ({found}), expected an empty directory, or one that "
            "this command has begun"
        )


def check_settings(directory: Path, settings: dict[str, Any]) -> None:
    """Raises: ConfigError naming the settings in which the beginning differs from these."""
    if not is_begun(directory):
        return
    before = read_json(directory / "settings.json")
    differing = [
        _difference(name, before.get(name), settings.get(name))
        for name in sorted({*before, *settings})
        if before.get(name) != settings.get(name)
    ]
    if differing:
        raise ConfigError(
            f"{directory} was begun with other settings: {'; '.join(differing)}; take another "
            "directory, or begin anew with --overwrite"
        )


def begin_anew(directory: Path) -> None:
    """Remove what was prepared, or begun, in a directory; who prepares there is waited for.

    Raises: ConfigError, with nothing removed, where something else is in it.
    """
    check_place(directory)
    if not directory.exists():
        return
    with locked(directory / LOCK, f"prepares {directory}"):
        if found := _not_ours(directory, (*FILES, *FOLDERS)):
            raise ConfigError(
                f"{directory} holds {found} besides what was prepared: move that elsewhere, or "
                "take another directory; nothing was removed"
            )
        for name in FOLDERS:
            shutil.rmtree(directory / name, ignore_errors=True)
        halves = [path for name in FILES for path in directory.glob(f".{name}.*.tmp")]
        # settings.json last: until then the directory is known as ours.
        for path in [*halves, *(directory / name for name in reversed(FILES))]:
            path.unlink(missing_ok=True)


def _not_ours(directory: Path, ours: tuple[str, ...]) -> str:
    """The first names in it that are neither of these nor a half of one; empty where none is."""
    names = sorted(
        path.name
        for path in directory.iterdir()
        if path.name not in (LOCK, *ours)
        and not any(path.match(f".{name}.*.tmp") for name in FILES)
    )
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _difference(name: str, before: Any, now: Any) -> str:
    if name in ("files", "evaluation"):
        names = [_file_name(entry) for entry in now or [] if entry not in (before or [])]
        gone = [_file_name(entry) for entry in before or [] if entry not in (now or [])]
        changed = ", ".join(list(dict.fromkeys(names + gone))[:3]) or "their order"
        return f"{name} ({changed} changed)"
    return f"{name} ({json.dumps(before)}, now {json.dumps(now)})"


def _file_name(entry: list[Any]) -> str:
    """Name, size and time of a file, and its column where one was named -> as it is written."""
    name, _, _, *column = entry
    return "#".join([name, *column])

"""What was measured <-> metrics.jsonl.   in: rows, one a step   out: lines; what an earlier part of
a run has written   who calls: loop.py, stages.py, display.py

Read next: loop.py (what a row has).
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from nanochat.common.errors import TrainingError
from nanochat.common.files import write_text_atomically
from nanochat.train.progress import Progress, from_plain, to_plain

__all__ = ["append_row", "read_rows", "rewrite_rows", "writing"]


def read_rows(path: Path | None, progress: Progress) -> list[dict[str, float]]:
    """The rows of an earlier part of the run, of which a killed process may have left the last one
    out, or half."""
    rows: dict[float, dict[str, float]] = {}
    text = path.read_text() if path is not None and path.is_file() else ""
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            row = from_plain(json.loads(line))
            rows[row["step"]] = row
    if progress.last_row is not None:
        rows.setdefault(progress.last_row["step"], dict(progress.last_row))
    return [rows[step] for step in sorted(rows) if step <= progress.step]


def append_row(path: Path, row: Mapping[str, float]) -> None:
    """One more line.

    Raises: TrainingError if the disk refuses.
    """
    with writing(path), path.open("a") as file:
        file.write(_to_line(row))


def rewrite_rows(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """All lines anew: what is past the place where training goes on is gone.

    Raises: TrainingError if the disk refuses.
    """
    with writing(path):
        write_text_atomically(path, "".join(map(_to_line, rows)))


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Meanwhile a disk that refuses is one line for the user.

    Raises: TrainingError instead of OSError.
    """
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"{path}: not written, {error}; the checkpoints are untouched: free some space, and go "
            "on with --resume"
        ) from error


def _to_line(row: Mapping[str, float]) -> str:
    return json.dumps(to_plain(row)) + "\n"

"""nanochat data prepare   in: files and names   out: a prepared corpus   who calls: cli.main

Read next: batches/prepare.py (the stages), docs/data.md.
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from nanochat.cli.terminal import neutralize
from nanochat.common.config import CommonOptions
from nanochat.common.errors import ConfigError

if TYPE_CHECKING:
    from nanochat.batches.prepare import Prepared, PrepareSettings, ProgressOf

__all__ = ["Config", "run"]

LINE_EVERY_S = 10.0  # where there is no terminal to draw a bar on
STAGES = {
    "pieces": "read, clean, tokenize",
    "duplicates": "find duplicates",
    "shards": "shuffle into shards",
}


@dataclass(frozen=True, kw_only=True)
class Config(CommonOptions):
    """Clean a corpus, remove duplicates, look for evaluation sets in it, tokenize and shuffle it.

    `nanochat pretrain --data DIR` then trains on the directory. What was stopped goes on with the
    same command."""

    data: tyro.conf.Positional[tuple[str, ...]] = ()
    """Files, folders, globs, data:NAME, hf:org/dataset, addresses; with #column, that column."""
    to: Path | None = None
    """The directory to write. None: under the home, data/prepared/NAME."""
    name: str = "corpus"
    """Of that directory, where --to is not given."""
    val_data: tuple[str, ...] = ()
    """Validation text. None: what a data set holds out, else a hundredth of the documents."""
    text_column: str = "text"
    """Column or key that holds the text."""
    tokenizer: Path | None = None
    """A tokenizer.json. None: one is trained on the text."""
    vocab_size: int = 32_768
    """Entries of the tokenizer to train."""
    min_chars: int = 20
    """Shorter texts are left out."""
    max_chars: int = 1_000_000
    """Longer texts are left out."""
    quality: bool = False
    """Leave out texts of mostly repeated lines, of few letters, or with a thousand characters
    without a blank."""
    duplicates: Literal["remove", "equal", "keep"] = "remove"
    """Remove documents that are equal or alike, only equal ones, or none."""
    threshold: float = 0.8
    """How alike is a duplicate: the share of common runs of five words."""
    decontaminate: tuple[Path, ...] = ()
    """Folders and files of evaluation sets to look for. None: those under the home."""
    remove_contaminated: bool = False
    """Remove documents that have 13 words in a row of one."""
    seed: int = 0
    """Of the shuffle."""
    shard_tokens: int = 64_000_000
    """Tokens in a shard, about; each process holds one."""
    piece_bytes: int = 64_000_000
    """Text that a process reads at a time; what is lost when it is stopped."""
    workers: int | None = None
    """Processes. None: one for each processor."""
    ray: str | None = None
    """Work on a Ray cluster instead: its address, auto, or local. Needs the extra `cluster`, and
    paths that all its machines share."""
    overwrite: bool = False
    """Begin anew where the directory was begun before."""

    def __post_init__(self) -> None:
        if not self.data:
            raise ConfigError("no data was named: expected files, folders, or data:NAME")
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"workers is {self.workers}, expected at least 1")


def run(config: Config) -> int:
    """0 once the corpus is prepared.

    Raises: DataError for the text; ConfigError for settings, and where the directory was begun with
            others.
    """
    from nanochat.batches.prepare import prepare
    from nanochat.batches.prepare_place import begin_anew
    from nanochat.common.files import home_dir
    from nanochat.common.pool import open_executor

    settings = _settings(config)
    directory = config.to or home_dir(config.home) / "data" / "prepared" / config.name
    directory = directory.expanduser().absolute()
    if config.overwrite:
        begin_anew(directory)
    start_s = time.monotonic()
    with open_executor(config.workers, config.ray) as executor:
        if not config.json:
            print(f"preparing {directory} with {executor.name}", flush=True)
        with _shown(is_quiet=config.json) as progress:
            prepared = prepare(settings, directory, executor, progress)
    wall_s = time.monotonic() - start_s
    if config.json:
        print(json.dumps(_result(prepared, wall_s)))
    else:
        _tell(prepared, wall_s)
    return 0


def _settings(config: Config) -> "PrepareSettings":
    from nanochat.batches.prepare import PrepareSettings
    from nanochat.common.files import home_dir
    from nanochat.corpus.prepare.clean import CleanRules
    from nanochat.corpus.prepare.entry_files import has_entry_files

    evaluation = config.decontaminate
    if not evaluation and has_entry_files(folder := home_dir(config.home) / "data" / "eval"):
        evaluation = (folder,)
    return PrepareSettings(
        data=config.data,
        val_data=config.val_data,
        text_column=config.text_column,
        tokenizer=config.tokenizer,
        vocab_size=config.vocab_size,
        rules=CleanRules(
            min_chars=config.min_chars, max_chars=config.max_chars, has_quality=config.quality
        ),
        duplicates=config.duplicates,
        threshold=config.threshold,
        evaluation=evaluation,
        removes_contaminated=config.remove_contaminated,
        seed=config.seed,
        shard_tokens=config.shard_tokens,
        piece_bytes=config.piece_bytes,
        home=config.home,
    )


@contextmanager
def _shown(*, is_quiet: bool) -> "Iterator[ProgressOf]":
    """A bar for each stage on a terminal, else a line now and then, on standard error."""
    if is_quiet:
        yield lambda stage, done, total: None
    elif not sys.stderr.isatty():
        yield _Lines().show
    else:
        from rich.console import Console
        from rich.progress import Progress, TaskID

        with Progress(console=Console(stderr=True)) as bars:
            tasks: dict[str, TaskID] = {}

            def show(stage: str, done: int, total: int) -> None:
                if stage not in tasks:
                    tasks[stage] = bars.add_task(STAGES[stage])
                bars.update(tasks[stage], completed=done, total=total)

            yield show


class _Lines:
    def __init__(self) -> None:
        self._told_s = 0.0

    def show(self, stage: str, done: int, total: int) -> None:
        now_s = time.monotonic()
        if done == total or now_s - self._told_s >= LINE_EVERY_S:
            self._told_s = now_s
            share = done / total if total else 1.0
            print(f"{STAGES[stage]}: {share:.0%}", file=sys.stderr, flush=True)


def _tell(prepared: "Prepared", wall_s: float) -> None:
    from nanochat.batches.prepare_report import report_lines

    for line in report_lines(prepared.report):
        print(neutralize(line))
    read = prepared.report["read"]["tokens"]
    done = (
        "it was complete already"
        if prepared.was_there
        else f"{read:,} tokens read in {wall_s:.1f} s, {read / wall_s:,.0f} a second"
    )
    print(f"{prepared.directory}: {done}; train with nanochat pretrain --data {prepared.directory}")


def _result(prepared: "Prepared", wall_s: float) -> dict[str, Any]:
    return {
        "directory": str(prepared.directory),
        "train": _part(prepared.train),
        "validation": _part(prepared.validation),
        "report": prepared.report,
        "was_there": prepared.was_there,
        "wall_s": round(wall_s, 3),
    }


def _part(store: Any) -> dict[str, Any]:
    return {
        "num_documents": store.num_documents,
        "num_tokens": store.num_tokens,
        "fingerprint": store.fingerprint,
    }

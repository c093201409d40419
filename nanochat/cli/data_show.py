"""nanochat data show   in: paths and names   out: what is in them   who calls: cli.main

Read next: corpus/survey.py (what is looked at).
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from nanochat.cli.terminal import neutralize
from nanochat.common.config import CommonOptions
from nanochat.common.errors import ConfigError

if TYPE_CHECKING:
    from nanochat.batches.shards import PreparedStore
    from nanochat.corpus.survey import FileFacts

__all__ = ["Config", "run"]


@dataclass(frozen=True, kw_only=True)
class Config(CommonOptions):
    """What training would find in files: their formats, shapes, columns, sizes, first items; of a
    directory that `nanochat data prepare` wrote, what was removed and why."""

    paths: tyro.conf.Positional[tuple[str, ...]] = ()
    """Files, folders, globs, data:NAME, hf:org/dataset, addresses; with #column, that column."""
    all: bool = False
    """Read every file to its end, to count. Else only the first thousand items. Of a prepared
    directory, compare every shard with its hash."""
    examples: int = 2
    """So many items of each file; of a prepared directory, so many documents of each part."""
    text_column: str = "text"
    """The key or column that holds the text in JSON and tables. A prepared directory has none."""

    def __post_init__(self) -> None:
        if not self.paths:
            raise ConfigError("no path was given: expected files, folders, or data:NAME")
        if self.examples < 0:
            raise ConfigError(f"examples is {self.examples}, expected at least 0")


def run(config: Config) -> int:
    """0 if all of it can be read, else 2.

    Raises: DataError for paths that lead to nothing; ConfigError for a column of a prepared
            directory.
    """
    from nanochat.corpus.survey import SurveyOptions, survey

    if len(config.paths) == 1 and (directory := _prepared(config.paths[0])) is not None:
        return _show_prepared(directory, config)
    options = SurveyOptions(
        most_items=None if config.all else SurveyOptions().most_items,
        num_examples=config.examples,
        text_column=config.text_column,
        home=config.home,
    )
    found: list[FileFacts] = []
    for facts in survey(config.paths, options):
        found.append(facts)
        if not config.json:
            print(neutralize(_told(facts)), flush=True)
    num_bytes = sum(facts.num_bytes for facts in found)
    num_bad = sum(facts.problem is not None for facts in found)
    if config.json:
        print(json.dumps({"num_bytes": num_bytes, "files": [asdict(facts) for facts in found]}))
    else:
        print(neutralize(_total(found, num_bytes, num_bad)))
    return 2 if num_bad else 0


def _prepared(path: str) -> Path | None:
    from nanochat.batches.shards import is_prepared

    directory = Path(path).expanduser()
    return directory if is_prepared(directory) else None


def _show_prepared(directory: Path, config: Config) -> int:
    from nanochat.batches.prepare_report import report_lines
    from nanochat.batches.shards import PreparedStore
    from nanochat.common.files import read_json

    if config.text_column != "text":
        raise ConfigError(
            f"--text-column is {config.text_column!r}, but {directory} is prepared and has tokens "
            "instead of columns: leave it out"
        )
    report = read_json(directory / "report.json")
    parts = {part: PreparedStore.open(directory, part) for part in ("train", "validation")}
    if config.all:
        for store in parts.values():
            store.verify()
    fingerprints = {part: store.fingerprint for part, store in parts.items()}
    examples = {part: _examples(store, directory, config) for part, store in parts.items()}
    if config.json:
        told = {"report": report, "fingerprints": fingerprints, "examples": examples}
        print(json.dumps(told))
        return 0
    for line in report_lines(report):
        print(neutralize(line))
    for part, fingerprint in fingerprints.items():
        print(f"{part}: fingerprint {fingerprint}")
        for example in examples[part]:
            print(neutralize(f"  example  {example}"))
    if config.all:
        print("every shard is as it was written")
    return 0


def _examples(store: "PreparedStore", directory: Path, config: Config) -> list[str]:
    """The first documents, as what is trained on says them."""
    import numpy as np

    from nanochat.corpus.survey import SurveyOptions, shortened
    from nanochat.tokenizer.tokenizer import Tokenizer

    num_chars = SurveyOptions().example_chars
    most_tokens = 4 * num_chars + 1  # a character is four tokens at most, and <|bos|> is before it
    tokenizer = Tokenizer.load(directory / "tokenizer.json")
    documents = np.arange(min(config.examples, store.num_documents))
    ends = np.minimum(store.lengths(documents), most_tokens).tolist()
    texts = (
        tokenizer.decode(store.tokens(document, 1, end).tolist())
        for document, end in enumerate(ends)
    )
    return [shortened(text, num_chars) for text in texts]


def _told(facts: "FileFacts") -> str:
    from nanochat.common.download_bars import human_bytes

    parts = [human_bytes(facts.num_bytes), facts.format, _count(facts)]
    if facts.num_rows is not None:
        parts.append(f"{facts.num_rows:,} rows")
    lines = [f"{facts.path}: {', '.join(parts)}"]
    if facts.shapes:
        shapes = (f"{name} ({count:,})" for name, count in facts.shapes.items())
        lines.append(f"  shape    {', '.join(shapes)}")
    if facts.columns:
        columns = (f"{name} ({kind})" for name, kind in facts.columns.items())
        lines.append(f"  columns  {', '.join(columns)}")
    lines += [f"  {count:,} {reason}" for reason, count in sorted(facts.counts.items())]
    lines += [f"  example  {example}" for example in facts.examples]
    if facts.problem:
        lines.append(f"  PROBLEM  {facts.problem}")
    return "\n".join(lines)


def _count(facts: "FileFacts") -> str:
    return f"{facts.num_items:,}{'' if facts.is_counted else ' or more'} {facts.kind}"


def _total(found: "list[FileFacts]", num_bytes: int, num_bad: int) -> str:
    from nanochat.common.download_bars import human_bytes

    parts = [f"{len(found):,} files, {human_bytes(num_bytes)}"]
    for kind in ("documents", "conversations"):
        those = [facts for facts in found if facts.kind == kind]
        if those:
            is_counted = all(facts.is_counted for facts in those)
            total = sum(facts.num_items for facts in those)
            parts.append(f"{total:,}{'' if is_counted else ' or more'} {kind}")
    if not all(facts.is_counted or facts.problem for facts in found):
        parts.append("--all counts to the end")
    if num_bad:
        parts.append(f"{num_bad} cannot be read whole")
    return ", ".join(parts)

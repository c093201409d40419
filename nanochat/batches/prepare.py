"""Files -> a prepared corpus.   in: PrepareSettings, a directory, who does the work   out: Prepared
who calls: cli/data_prepare.py, bench/data.py   (imports no torch)

    tokenizer   the one that is named, or one learnt from the training text
    entries     of the evaluation sets, to be looked for
    pieces      read, clean, hash, tokenize                   prepare_piece.py, a task a piece
    duplicates  which documents stay                          prepare_duplicates.py, a task a band
    shards      shuffled over the whole                       prepare_shards.py, a task a shard
    index       index.json and report.json, then work/ goes
What is done is on the disk: the same command goes on after whatever stopped it, and is refused if
its settings are not those of the beginning.  The result does not depend on who did the work, on how
many, or on how large the pieces were.
Read next: shards.py (what comes out), docs/data.md.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from nanochat.batches.prepare_duplicates import Pieces, Removal, settle
from nanochat.batches.prepare_piece import (
    PieceFacts,
    PieceSettings,
    PieceTask,
    piece_facts,
    write_piece,
)
from nanochat.batches.prepare_place import check_place, check_settings
from nanochat.batches.prepare_report import CorpusFacts, build_report
from nanochat.batches.prepare_shards import shard_tasks, write_shard
from nanochat.batches.shards import (
    PREPARED_FORMAT,
    PreparedStore,
    Shard,
    TokenizerFacts,
    is_prepared,
    part_index,
)
from nanochat.common.errors import ConfigError, DataError
from nanochat.common.files import read_json, write_json_atomically
from nanochat.common.lock import locked
from nanochat.common.pool import Executor
from nanochat.corpus.documents import TEXT_FORMATS, Document, split_documents
from nanochat.corpus.pieces import Piece, cut_pieces
from nanochat.corpus.places import find_places
from nanochat.corpus.prepare.clean import CleanRules
from nanochat.corpus.prepare.contamination import EvaluationSets
from nanochat.corpus.prepare.entry_files import entry_files
from nanochat.corpus.prepare.near import NUM_BINS, band_rows
from nanochat.corpus.split import Split, SplitRule
from nanochat.tokenizer.load import load_tokenizer
from nanochat.tokenizer.tokenizer import Tokenizer
from nanochat.tokenizer.train import train_tokenizer

__all__ = ["PrepareSettings", "Prepared", "ProgressOf", "prepare"]

VERSION = 1  # raised when the same settings would give other tokens
TOKENIZER_CHARS = 100_000_000  # of the training text are enough for a vocabulary
PARTS = ("train", "validation")

ProgressOf = Callable[[str, int, int], None]
"""Called with a stage, how much of it is done, and how much it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareSettings:
    """What decides the result.  Raises: ConfigError for what is out of range."""

    data: tuple[str, ...]
    """As corpus/places.py takes."""
    val_data: tuple[str, ...] = ()
    text_column: str = "text"
    tokenizer: Path | None = None
    """None: one is learnt."""
    vocab_size: int = 32_768
    """Of the one that is learnt."""
    rules: CleanRules = CleanRules()
    duplicates: Literal["remove", "equal", "keep"] = "remove"
    """Remove what is equal or alike, what is equal, or nothing."""
    threshold: float = 0.8
    """Documents at least so alike are duplicates."""
    evaluation: tuple[Path, ...] = ()
    """Folders and files of questions."""
    removes_contaminated: bool = False
    seed: int = 0
    shard_tokens: int = 64_000_000
    """About so many in a shard."""
    piece_bytes: int = 64_000_000
    """About so many in a piece; the result does not depend on it."""
    home: Path | None = None

    def __post_init__(self) -> None:
        problems = []
        if not self.data:
            problems.append("no data was named: expected files, folders, or data:NAME")
        if not 0.3 <= self.threshold <= 1.0:
            problems.append(f"threshold is {self.threshold}, expected 0.3 to 1")
        for name, least in (("shard_tokens", 1), ("piece_bytes", 1), ("seed", 0)):
            if getattr(self, name) < least:
                problems.append(f"{name} is {getattr(self, name)}, expected at least {least}")
        if self.removes_contaminated and not self.evaluation:
            problems.append(
                "contaminated documents are to be removed, but no evaluation sets are here: name a "
                "folder with --decontaminate"
            )
        if problems:
            raise ConfigError("; ".join(problems))


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What there is in the end."""

    directory: Path
    train: PreparedStore
    validation: PreparedStore
    report: dict[str, Any]
    was_there: bool
    """Whether it was complete before."""


def prepare(
    settings: PrepareSettings,
    directory: Path,
    executor: Executor,
    progress: ProgressOf = lambda stage, done, total: None,
) -> Prepared:
    """The corpus, cleaned, without duplicates, tokenized and shuffled, in the directory.

    Raises: DataError for what cannot be read, or where nothing is left; ConfigError where the
            directory holds something else, or was begun with other settings.
    """
    check_place(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory / ".lock", f"prepares {directory}"):
        return _Preparation(settings, directory, executor, progress).run()


class _Preparation:
    def __init__(
        self, settings: PrepareSettings, directory: Path, executor: Executor, progress: ProgressOf
    ) -> None:
        self._settings = settings
        self._directory = directory
        self._work = directory / "work"
        self._executor = executor
        self._progress = progress
        self._columns = _columns(settings)
        self._seconds: dict[str, float] = {}

    def run(self) -> Prepared:
        split = _split(self._settings)
        settings = _identity(self._settings, split, self._columns)
        check_settings(self._directory, settings)
        was_there = is_prepared(self._directory)
        if not was_there:
            self._make(split, settings)
        shutil.rmtree(self._work, ignore_errors=True)
        return Prepared(
            directory=self._directory,
            train=PreparedStore.open(self._directory, "train"),
            validation=PreparedStore.open(self._directory, "validation"),
            report=read_json(self._directory / "report.json"),
            was_there=was_there,
        )

    def _make(self, split: Split[Document], settings: dict[str, Any]) -> None:
        self._clear_halves()
        write_json_atomically(self._directory / "settings.json", settings)
        tokenizer = self._timed("tokenizer", lambda: self._tokenizer(split))
        facts = TokenizerFacts(
            vocab_size=tokenizer.vocab_size,
            bos=tokenizer.bos,
            content_hash=tokenizer.content_hash,
        )
        entries = self._timed("entries", self._entries)
        pieces = cut_pieces(_files(split), self._settings.piece_bytes)
        each = self._timed("pieces", lambda: self._pieces(split, pieces, entries))
        counts = Pieces(self._work, [piece.num_documents for piece in each])
        if not counts.num_documents:
            raise DataError(f"{pieces[0].spans[0].path}: nothing is left of the text{_why(each)}")
        removal = self._timed("duplicates", lambda: self._duplicates(counts))
        shards = self._timed("shards", lambda: self._shards(counts, facts))
        corpus = CorpusFacts(
            rule=split.rule,
            pieces=pieces,
            facts=each,
            tokenizer=tokenizer,
            evaluation=EvaluationSets.load(entries) if entries else None,
            evaluation_left_out=entry_files(self._settings.evaluation).left_out,
            removes_contaminated=self._settings.removes_contaminated,
            threshold=self._settings.threshold,
            duplicates=self._settings.duplicates,
        )
        report = build_report(corpus, counts, removal, shards)
        report["seconds"] = self._seconds
        report["piece_seconds"] = _summed([facts.seconds for facts in each])
        report["workers"] = self._executor.name
        write_json_atomically(self._directory / "report.json", report)
        index = {
            "format": PREPARED_FORMAT,
            "tokenizer": asdict(facts),
            "settings": settings,
            "parts": {part: part_index(shards[part], facts.content_hash) for part in PARTS},
        }
        write_json_atomically(self._directory / "index.json", index)

    def _tokenizer(self, split: Split[Document]) -> Tokenizer:
        path = self._directory / "tokenizer.json"
        if path.is_file():
            return Tokenizer.load(path)
        if self._settings.tokenizer is not None:
            tokenizer = load_tokenizer(self._settings.tokenizer)
        else:
            texts = (document.text for document in split.train())
            tokenizer = train_tokenizer(
                texts, self._settings.vocab_size, max_chars=TOKENIZER_CHARS, doc_cap=50_000
            )
        tokenizer.save(path)
        return tokenizer

    def _entries(self) -> Path | None:
        if not self._settings.evaluation:
            return None
        place, temporary = self._work / "entries", self._work / "entries.tmp"
        if not place.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
            read = EvaluationSets.read(self._settings.evaluation, self._executor.map)
            read.save(temporary)
            temporary.rename(place)
        return place

    def _pieces(
        self, split: Split[Document], pieces: Sequence[Piece], entries: Path | None
    ) -> list[PieceFacts]:
        settings = self._settings
        is_by_hash = split.limit is not None
        piece_settings = PieceSettings(
            rules=settings.rules,
            tokenizer=self._directory / "tokenizer.json",
            text_column=settings.text_column,
            columns=self._columns,
            held_out_files=frozenset(
                path.absolute() for path in split.validation_files if not is_by_hash
            ),
            held_out_limit=split.limit,
            evaluation=entries,
            band_rows=band_rows(settings.threshold) if settings.duplicates == "remove" else None,
        )
        found = [piece_facts(self._work, piece.number) for piece in pieces]
        total = sum(piece.num_bytes for piece in pieces)
        missing = [piece for piece, facts in zip(pieces, found, strict=True) if facts is None]
        done = total - sum(piece.num_bytes for piece in missing)
        self._progress("pieces", done, total)
        tasks = [
            PieceTask(piece=piece, settings=piece_settings, work=self._work) for piece in missing
        ]
        for piece, facts in zip(missing, self._executor.map(write_piece, tasks), strict=True):
            found[piece.number] = facts
            done += piece.num_bytes
            self._progress("pieces", done, total)
        return [facts for facts in found if facts is not None]

    def _duplicates(self, pieces: Pieces) -> Removal:
        self._progress("duplicates", 0, 1)
        settings = self._settings
        is_near = settings.duplicates == "remove"
        removal = settle(
            pieces,
            self._executor,
            removes_contaminated=settings.removes_contaminated,
            removes_equal=settings.duplicates != "keep",
            threshold=settings.threshold,
            num_bands=NUM_BINS // band_rows(settings.threshold) if is_near else 0,
        )
        self._progress("duplicates", 1, 1)
        return removal

    def _shards(self, pieces: Pieces, facts: TokenizerFacts) -> dict[str, list[Shard]]:
        settings = self._settings
        tasks = {
            part: shard_tasks(
                pieces, self._directory, part, settings.shard_tokens, settings.seed, facts
            )
            for part in PARTS
        }
        for part, found in tasks.items():
            if not found:
                raise DataError(
                    f"no document is left for {part}: give more text, or --val-data, or keep "
                    "duplicates"
                )
        every = [task for part in PARTS for task in tasks[part]]
        shards: list[Shard] = []
        for shard in self._executor.map(write_shard, every):
            shards.append(shard)
            self._progress("shards", len(shards), len(every))
        num_train = len(tasks["train"])
        return {"train": shards[:num_train], "validation": shards[num_train:]}

    def _clear_halves(self) -> None:
        """What a process that was killed has left; nobody else is here, we have the lock."""
        parents = [self._work / "pieces", *(self._directory / part for part in PARTS)]
        for half in (path for parent in parents for path in parent.glob(".*.tmp")):
            shutil.rmtree(half, ignore_errors=True)

    def _timed(self, stage: str, work: Callable[[], Any]) -> Any:
        start_s = time.perf_counter()
        result = work()
        self._seconds[stage] = round(time.perf_counter() - start_s, 3)
        return result


def _split(settings: PrepareSettings) -> Split[Document]:
    rule = None
    if settings.val_data:
        rule = SplitRule(validation_files=tuple(Path(path) for path in settings.val_data))
    return split_documents(
        (*settings.data, *settings.val_data),
        rule,
        text_column=settings.text_column,
        home=settings.home,
    )


def _columns(settings: PrepareSettings) -> dict[Path, str]:
    """Where one is named for a file, which then is read instead of `text_column`."""
    places = find_places(TEXT_FORMATS, (*settings.data, *settings.val_data), settings.home)
    return {path.absolute(): column for path, column in places.columns.items()}


def _files(split: Split[Document]) -> list[Path]:
    """In the order of the corpus: what is held out comes last, so that of two duplicates the one
    that is trained on stays.  Other processes, and other machines, may be elsewhere."""
    every = (*split.train_files, *split.validation_files)
    return list(dict.fromkeys(path.absolute() for path in every))


def _identity(
    settings: PrepareSettings, split: Split[Document], columns: Mapping[Path, str]
) -> dict[str, Any]:
    """What decides the result, as JSON; the files by size and time, which cost nothing, and by the
    column that is read of them, where that is not `text_column`."""
    entries = entry_files(settings.evaluation).paths
    tokenizer = f"learnt, {settings.vocab_size} tokens"
    if settings.tokenizer is not None:
        tokenizer = load_tokenizer(settings.tokenizer).content_hash
    named = {field.name: getattr(settings, field.name) for field in fields(settings)}
    for name in ("home", "data", "val_data", "vocab_size", "evaluation"):
        del named[name]
    identity = {
        "version": VERSION,
        **named,
        "rules": asdict(settings.rules),
        "tokenizer": tokenizer,
        "held_out": split.rule,
        "files": [
            [*_state_of(path), *_other_column(columns.get(path), settings.text_column)]
            for path in _files(split)
        ],
        "evaluation": [_state_of(path) for path in entries],
    }
    plain: dict[str, Any] = json.loads(json.dumps(identity))
    return plain


def _state_of(path: Path) -> list[Any]:
    state = path.stat()
    return [path.name, state.st_size, state.st_mtime_ns]


def _other_column(column: str | None, text_column: str) -> list[str]:
    return [] if column in (None, text_column) else [column]


def _summed(seconds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of all processes together."""
    names = dict.fromkeys(name for each in seconds for name in each)
    return {name: round(sum(each.get(name, 0.0) for each in seconds), 3) for name in names}


def _why(pieces: Sequence[PieceFacts]) -> str:
    reasons: dict[str, int] = {}
    for piece in pieces:
        for reason, count in piece.left_out.items():
            reasons[reason] = reasons.get(reason, 0) + count
    return "".join(f"; {count:,} {reason}" for reason, count in reasons.items())

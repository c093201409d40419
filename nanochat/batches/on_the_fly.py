"""Text -> what training reads, at once.   in: Texts, a tokenizer   out: OpenText
who calls: cli/pretrain.py

A text of up to CHAPTER_CHARS characters is one store, as it always was.  Of a longer one only the
first chapter is tokenized here; a process in the background writes the others while training runs,
and first of all the text to validate on: the beginning of what is held out, because a hundredth of
600 GB would take longer to find than most runs last.  Both are in the cache of token stores: the
next run finds them.
Read next: chapters.py (what a chapter is), background.py (who writes them), sources.py (Texts).
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from nanochat.batches.background import Background, Job
from nanochat.batches.chapter_writer import ChapterWriter, ending_of
from nanochat.batches.chapters import (
    AHEAD,
    CHAPTER_CHARS,
    Chapters,
    StoreToCome,
    chapters_fingerprint,
)
from nanochat.batches.sources import Texts, text_stores
from nanochat.batches.store import Store, TokenStore
from nanochat.batches.store_cache import cache_place, kept_store
from nanochat.common.files import home_dir
from nanochat.corpus.files import ReadReport
from nanochat.tokenizer.tokenizer import Tokenizer

__all__ = ["OpenText", "open_text"]

VALIDATION_CHARS = 8_000_000  # about 1.7 million tokens: six times what is validated on by default
# A token has 4 to 5 characters, and rows that begin where a document begins lose a third of them.
CHARS_PER_EVAL_TOKEN = 8


@dataclass(frozen=True, kw_only=True)
class OpenText:
    """What training reads.  It is closed when training ends."""

    train: Store | Chapters
    validation: Store
    helper: Background | None = None
    """Who writes what is not there yet."""

    def lines(self) -> list[str]:
        """What to show the user."""
        if not isinstance(self.train, Chapters):
            return [
                f"tokens: {self.train.num_tokens:,} to train on, "
                f"{self.validation.num_tokens:,} held out"
            ]
        num_written = self.train.num_written
        return [
            f"tokens: about {self.train.num_tokens:,} to train on, in chapters that are tokenized "
            f"while training runs ({num_written:,} {'is' if num_written == 1 else 'are'} there)"
        ]

    def left_out(self) -> list[str]:
        """What was left out of the chapters that are there: a line for each reason."""
        counts = self.train.left_out() if isinstance(self.train, Chapters) else {}
        return [f"{count:,} {reason}" for reason, count in sorted(counts.items())]

    def close(self) -> None:
        """Nobody goes on writing."""
        if self.helper is not None:
            self.helper.close()


class _IsLong(Exception):
    """The text has more than one chapter."""


def open_text(
    texts: Texts,
    tokenizer: Tokenizer,
    home: Path | None,
    *,
    chapter_chars: int | None = None,
    eval_tokens: int = 0,
    report: ReadReport | None = None,
    is_writer: bool = True,
) -> OpenText:
    """The tokens to train on and to validate on, of which the first are there.

    `is_writer`: of several processes that train together on this machine, one writes.
    Raises: DataError for what cannot be read.
    """
    chapter_chars = chapter_chars or CHAPTER_CHARS
    root, identity = home_dir(home) / "data" / "tokens", texts.identity("train")
    fingerprint = chapters_fingerprint(identity, tokenizer, chapter_chars)
    directory = root / fingerprint[:24]
    writer = ChapterWriter(directory, texts.onward, tokenizer, chapter_chars)

    def write(place: Path) -> TokenStore:
        writer.write(0)
        ending = ending_of(directory, 0)
        if report is not None:
            report.counts.update(ending.left_out)
        if ending.next is not None:
            raise _IsLong
        (directory / "00000").rename(place)
        shutil.rmtree(directory)
        return TokenStore.open(place, tokenizer)

    try:
        whole = kept_store(cache_place(root, identity, tokenizer), tokenizer, write)
        is_long = whole.num_characters > chapter_chars and whole.num_documents > 1
    except _IsLong:
        is_long = True
    if not is_long:
        train, held_out = text_stores(texts, tokenizer, home, report)
        return OpenText(train=train, validation=held_out)
    writer.write(0)
    num_chars = max(VALIDATION_CHARS, CHARS_PER_EVAL_TOKEN * eval_tokens)
    held_out_identity = json.dumps(["beginning", num_chars, texts.identity("validation")])
    validation = cache_place(root, held_out_identity, tokenizer)
    tokenizer.save(directory / "tokenizer.json")
    job = Job(
        recipe=texts.recipe,
        tokenizer=str(directory / "tokenizer.json"),
        chapters=str(directory),
        chapter_chars=chapter_chars,
        validation=str(validation),
        validation_chars=num_chars,
    )
    helper = Background(job) if is_writer else None
    if helper is not None and not validation.exists():
        helper.want(AHEAD)
    num_bytes = texts.num_bytes
    return OpenText(
        train=Chapters(
            directory, tokenizer, fingerprint=fingerprint, num_bytes=num_bytes, helper=helper
        ),
        validation=StoreToCome(validation, tokenizer, helper),
        helper=helper,
    )

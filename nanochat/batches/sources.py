"""Files, or the built-in world -> token stores.   in: paths or none, a tokenizer   out: TokenStore
who calls: cli (pretrain, midtrain, sft, demo)

Stores are kept under `<home>/data/tokens`, by the text and the tokenizer they were made from: a
second run of the
same text starts at once.
Read next: store.py (what is written), corpus/split.py (what is held out), corpus/world (the text
there is without
any file).
"""

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from nanochat.batches.chapter_writer import BEGINNING, Place
from nanochat.batches.mixture import Mixture, Source, TokenizedStore
from nanochat.batches.store import TokenStore
from nanochat.batches.store_cache import cached_store
from nanochat.batches.store_writer import tokenize_conversations, tokenize_corpus
from nanochat.common.files import home_dir, sha256_of_file
from nanochat.common.messages import Conversation
from nanochat.corpus import world
from nanochat.corpus.conversations import split_conversations
from nanochat.corpus.documents import Document, split_documents
from nanochat.corpus.files import ReadReport
from nanochat.corpus.split import Split, SplitRule
from nanochat.corpus.sums import KnownSums
from nanochat.tokenizer.chat import render_training
from nanochat.tokenizer.tokenizer import Tokenizer

__all__ = ["Chats", "Part", "Texts", "chat_store", "mixed", "text_stores"]

WORLD_VERSION = 4  # raised when the built-in world writes other texts from the same seed
WORLD_VALIDATION_CHARS = 200_000
VALIDATION_SEED = 10**9  # far from every training seed

Part = Literal["train", "validation"]


@dataclass(frozen=True, slots=True)
class Texts:
    """Where documents come from; nothing is read before it is asked for."""

    documents: Callable[[Part, ReadReport | None], Iterator[Document]]
    identity: Callable[[Part], str]
    """What decides the documents of a part, for the cache."""
    rule: str
    """A line for the plan: what is held out."""
    onward: Callable[[Place], tuple[Iterator[tuple[Place, Document]], ReadReport]]
    """The training documents from a place on, with their places; and what is left out meanwhile."""
    recipe: str
    """JSON of which `from_recipe` makes the same in another process."""
    num_bytes: int
    """Of the training files."""

    @classmethod
    def from_recipe(cls, recipe: str) -> "Texts":
        """What another process has."""
        kind, arguments = json.loads(recipe)
        if kind == "world":
            return cls.from_world(*arguments)
        data, val_data, text_column, home = arguments
        return cls.from_files(data, val_data, text_column, Path(home) if home else None)

    @classmethod
    def from_files(
        cls,
        data: Sequence[str],
        val_data: Sequence[str] = (),
        text_column: str = "text",
        home: Path | None = None,
    ) -> "Texts":
        """The documents of paths and names (corpus/places.py); validation is `val_data`, else what
        a data set holds out, else a hundredth by hash.

        Raises: DataError if nothing is there.
        """
        rule = (
            SplitRule(validation_files=tuple(Path(path) for path in val_data)) if val_data else None
        )
        split: Split[Document] = split_documents(
            (*data, *val_data), rule, text_column=text_column, home=home
        )

        def documents(part: Part, report: ReadReport | None) -> Iterator[Document]:
            return split.train(report) if part == "train" else split.validation(report)

        sums = KnownSums(home_dir(home) / "data" / "sums.json")

        def identity(part: Part) -> str:
            with sums:
                return split.identity(part, sums.sha256)

        recipe = json.dumps(["files", [[*data], [*val_data], text_column, home and str(home)]])
        return cls(
            documents,
            identity,
            split.rule,
            lambda place: _onward(split, place),
            recipe,
            sum(path.stat().st_size for path in split.train_files),
        )

    @classmethod
    def from_world(cls, num_chars: int, seed: int = 0) -> "Texts":
        """The built-in world's prose."""
        sizes = {
            "train": (num_chars, seed),
            "validation": (WORLD_VALIDATION_CHARS, VALIDATION_SEED),
        }

        def documents(part: Part, report: ReadReport | None) -> Iterator[Document]:
            texts = world.prose(*sizes[part])
            return (Document(text, "the built-in world", index) for index, text in enumerate(texts))

        def onward(place: Place) -> tuple[Iterator[tuple[Place, Document]], ReadReport]:
            whole = ((Place(0, text.position), text) for text in documents("train", None))
            return (each for each in whole if each[0] >= place), ReadReport()

        return cls(
            documents,
            lambda part: json.dumps(["world", WORLD_VERSION, *sizes[part]]),
            f"{num_chars:,} characters of the built-in world; validation is written with another "
            "seed",
            onward,
            json.dumps(["world", [num_chars, seed]]),
            num_chars,
        )


@dataclass(frozen=True, slots=True)
class Chats:
    """Where conversations come from."""

    conversations: Callable[[Part, ReadReport | None], Iterator[Conversation]]
    identity: Callable[[Part], str]
    rule: str
    """A line for the plan: what is held out."""

    @classmethod
    def from_files(cls, chats: Sequence[str], home: Path | None = None) -> "Chats":
        """The conversations of paths and names, held out what a data set holds out, else a
        hundredth by hash.

        Raises: DataError if nothing is there.
        """
        split: Split[Conversation] = split_conversations(chats, home=home)

        def conversations(part: Part, report: ReadReport | None) -> Iterator[Conversation]:
            return split.train(report) if part == "train" else split.validation(report)

        sum_of = functools.cache(sha256_of_file)  # both parts may be of the same files
        return cls(conversations, lambda part: split.identity(part, sum_of), split.rule)

    @classmethod
    def from_world(cls, stage: world.Stage, num_conversations: int, seed: int = 0) -> "Chats":
        """The built-in world's conversations for a stage."""
        seeds = {"train": seed, "validation": VALIDATION_SEED}
        counts = {"train": num_conversations, "validation": -(-num_conversations // 100)}

        def conversations(part: Part, report: ReadReport | None) -> Iterator[Conversation]:
            return world.conversations(stage, seeds[part], counts[part])

        return cls(
            conversations,
            lambda part: json.dumps(["world", WORLD_VERSION, stage, counts[part], seeds[part]]),
            f"{num_conversations:,} of the built-in world; {counts['validation']:,} for validation "
            "are written with another seed",
        )


def text_stores(
    texts: Texts, tokenizer: Tokenizer, home: Path | None, report: ReadReport | None = None
) -> tuple[TokenStore, TokenStore]:
    """The tokens of the training and of the validation documents."""
    train, validation = (
        _text_store(texts, part, tokenizer, home, report) for part in ("train", "validation")
    )
    return train, validation


def chat_store(
    chats: Chats,
    part: Part,
    tokenizer: Tokenizer,
    home: Path | None,
    report: ReadReport | None = None,
) -> TokenStore:
    """The rendered conversations of one part, with what is trained."""

    def write(directory: Path) -> TokenStore:
        conversations = chats.conversations(part, report)
        return tokenize_conversations(
            conversations,
            lambda conversation: render_training(conversation, tokenizer),
            tokenizer,
            directory,
        )

    return cached_store(_root(home), chats.identity(part), tokenizer, write)


def mixed(chats: TokenizedStore, texts: TokenizedStore | None, text_share: float) -> TokenizedStore:
    """Conversations with so many tokens of plain text among them that they are `text_share` of all.

    Text goes in at most once; a share of 0, or no text, leaves the conversations alone.
    """
    if texts is None or text_share <= 0:
        return chats
    wanted_tokens = chats.num_tokens * text_share / (1 - text_share)
    epochs = min(1.0, wanted_tokens / max(1, texts.num_tokens))
    sources = [Source(name="conversations", store=chats)]
    if isinstance(chats, Mixture):
        sources = [*chats.sources]
    return Mixture([*sources, Source(name="text", store=texts, epochs=epochs)])


def _onward(
    split: Split[Document], place: Place
) -> tuple[Iterator[tuple[Place, Document]], ReadReport]:
    """Files before the place are not opened; of its own file the beginning is read again."""
    files = split.train_files[place.file :]
    numbers = {str(path): place.file + index for index, path in enumerate(files)}
    # A rest without any text is no fault, a corpus without any is.
    report = ReadReport(num_kept=0 if place == BEGINNING else 1)

    def placed() -> Iterator[tuple[Place, Document]]:
        for document in replace(split, train_files=files).train(report):
            here = Place(numbers[document.source], document.position)
            if here >= place:
                yield here, document

    return placed(), report


def _text_store(
    texts: Texts, part: Part, tokenizer: Tokenizer, home: Path | None, report: ReadReport | None
) -> TokenStore:
    def write(directory: Path) -> TokenStore:
        return tokenize_corpus(texts.documents(part, report), tokenizer, directory)

    return cached_store(_root(home), texts.identity(part), tokenizer, write)


def _root(home: Path | None) -> Path:
    return home_dir(home) / "data" / "tokens"

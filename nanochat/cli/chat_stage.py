"""What `nanochat midtrain` and `nanochat sft` share.   in: a config, a stage's function   out: an
exit code
who calls: cli/midtrain.py, cli/sft.py

Read next: batches/sources.py (where conversations come from).
"""

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from nanochat.corpus.files import ReadReport
from nanochat.train.config import MidtrainConfig

if TYPE_CHECKING:
    from nanochat.batches.mixture import TokenizedStore
    from nanochat.batches.sources import Chats
    from nanochat.batches.store import Store
    from nanochat.tokenizer.tokenizer import Tokenizer
    from nanochat.train.display import Display
    from nanochat.train.stages import Finished
    from nanochat.train.validation import HeldOut

__all__ = ["run_chat_stage"]

C = TypeVar("C", bound=MidtrainConfig)
Train = Callable[[C, "Store", "Store | None", "Display", "Sequence[HeldOut]"], "Finished"]


def run_chat_stage(stage: Literal["midtrain", "sft"], config: C, train: Train[C]) -> int:
    """0 once the stage's model is saved."""
    from nanochat.common.dist import current_world

    with current_world().together():
        return _run(stage, config, train)


def _run(stage: Literal["midtrain", "sft"], config: C, train: Train[C]) -> int:
    from nanochat.batches.mixture import Mixture
    from nanochat.batches.prepared import open_prepared
    from nanochat.batches.sources import Texts, mixed, text_stores
    from nanochat.checkpoint.resolve import read, resolve
    from nanochat.common.dist import current_world
    from nanochat.train.display import Display

    start_s = time.monotonic()
    world = current_world()
    display = Display(log_every=config.log_every, is_quiet=not world.is_first)
    tokenizer = read(resolve(config.model, config.home)).tokenizer
    chats = _chats(stage, config)
    if config.chats:
        prepared = open_prepared(config.data, (), tokenizer.content_hash)
        is_raw = config.data and prepared is None
        texts = Texts.from_files(config.data, home=config.home) if is_raw else None
    else:
        texts, prepared = Texts.from_world(config.world_chars, config.seed + 1), None
    report = ReadReport()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) if config.dry_run else config.home  # a dry run leaves nothing behind
        with world.first_alone():
            store = _store(chats, config.epochs, tokenizer, home, report)
            held_out = _held_out(chats, store, tokenizer, home)
            text: TokenizedStore | None = None
            validation: TokenizedStore | None = None
            if texts is not None:
                text, validation = text_stores(texts, tokenizer, home)
            elif prepared is not None:
                text, validation = prepared.train, prepared.validation
        for line in report.lines():
            display.note(f"  {line}")
        for name, each in chats.items():
            display.note(f"{name}: {each.rule}")
        num_held_out = sum(each.store.num_documents for each in held_out)
        display.note(
            f"conversations: {store.num_documents:,}, {store.num_tokens:,} tokens; "
            f"{num_held_out:,} held out"
        )
        rows = mixed(store, text, config.text_share)
        for share in rows.shares() if isinstance(rows, Mixture) else ():
            display.note(f"  {share}")
        finished = train(config, rows, validation, display, held_out)
    if config.dry_run or not world.is_first:
        return 0
    result = {
        "run": finished.run,
        "checkpoint": str(finished.checkpoint),
        "val_bpb": finished.val_bpb,
        "wall_s": round(time.monotonic() - start_s, 1),
    }
    print(json.dumps(result) if config.json else f"saved {finished.checkpoint}")
    return 0


def _chats(stage: Literal["midtrain", "sft"], config: MidtrainConfig) -> dict[str, "Chats"]:
    """Where conversations come from, by name: one place, or one for each number of epochs."""
    from nanochat.batches.sources import Chats

    if not config.chats:
        world = Chats.from_world(stage, config.num_conversations, config.seed)
        return {"conversations": world}
    if not config.epochs:
        return {"conversations": Chats.from_files(config.chats, config.home)}
    return {name: Chats.from_files([name], config.home) for name in config.chats}


def _store(
    chats: dict[str, "Chats"],
    epochs: Sequence[float],
    tokenizer: "Tokenizer",
    home: Path | None,
    report: ReadReport,
) -> "TokenizedStore":
    """The rendered conversations, each place's as often as its epochs say."""
    from nanochat.batches.mixture import Mixture, Source
    from nanochat.batches.sources import chat_store

    stores = {
        name: chat_store(each, "train", tokenizer, home, report) for name, each in chats.items()
    }
    if not epochs:
        return next(iter(stores.values()))
    return Mixture(
        [
            Source(name=name, store=store, epochs=number)
            for (name, store), number in zip(stores.items(), epochs, strict=True)
        ]
    )


def _held_out(
    chats: dict[str, "Chats"],
    store: "TokenizedStore",
    tokenizer: "Tokenizer",
    home: Path | None,
) -> "list[HeldOut]":
    """What each place holds out, with the tokens that are trained of it."""
    from nanochat.batches.mixture import Mixture
    from nanochat.batches.sources import chat_store
    from nanochat.train.validation import HeldOut

    trained = (
        {share.name: share.num_tokens for share in store.shares()}
        if isinstance(store, Mixture)
        else {}
    )
    return [
        HeldOut(
            name=name,
            store=chat_store(each, "validation", tokenizer, home),
            weight=trained.get(name, 1),
        )
        for name, each in chats.items()
    ]

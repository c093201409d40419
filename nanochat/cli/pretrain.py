"""nanochat pretrain   in: text, or the built-in world   out: a base model in a run   who calls:
cli.main, cli/demo.py

Read next: train/pretrain.py (what happens), train/plan.py (why these numbers).
"""

import contextlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat.corpus.files import ReadReport
from nanochat.train.config import PretrainConfig as Config

if TYPE_CHECKING:
    from nanochat.batches.on_the_fly import OpenText
    from nanochat.batches.prepared import PreparedText
    from nanochat.batches.sources import Texts
    from nanochat.tokenizer.tokenizer import Tokenizer

    Text = Texts | PreparedText

__all__ = ["Config", "run"]


def run(config: Config) -> int:
    """0 once the base model is saved.

    Raises: DataError for the text, TokenizerError for the vocabulary, ConfigError for the plan.
    """
    from nanochat.common.dist import current_world

    with current_world().together():
        return _run(config)


def _run(config: Config) -> int:
    from nanochat.common.dist import current_world
    from nanochat.train.display import Display
    from nanochat.train.pretrain import plan_of, pretrain_on, scale_of_run
    from nanochat.train.stages import dry_run
    from nanochat.train.texts import TextSource

    start_s = time.monotonic()
    world = current_world()
    display = Display(log_every=config.log_every, is_quiet=not world.is_first)
    names, texts = _texts(config)
    for name, text in zip(names, texts, strict=True):
        display.note(f"{name}: {text.rule}")
    if config.dry_run:
        model_config, plan = plan_of(config, _vocab_size(config, texts))
        scale = None
        if config.plan_world_size is not None:
            scale = scale_of_run(config, model_config, plan)
        dry_run(config, plan, model_config, display, scale)
        if config.json and world.is_first:
            told = {"plan": plan.to_json(), "scale": scale.to_json() if scale else None}
            print(json.dumps(told))
        return 0
    report = ReadReport()
    with contextlib.ExitStack() as stack:
        with world.first_alone():
            tokenizer = _tokenizer(config, texts)
            opened = [
                stack.enter_context(contextlib.closing(_opened(config, text, tokenizer, report)))
                for text in texts
            ]
        for line in (*(f"  {line}" for line in report.lines()), *_lines(opened)):
            display.note(line)
        sources = [
            TextSource(name=name, train=text.train, validation=text.validation, weight=weight)
            for name, text, weight in zip(names, opened, config.weights or [1.0], strict=True)
        ]
        finished = pretrain_on(config, tokenizer, sources, display)
        for line in [line for text in opened for line in text.left_out()]:
            display.note(f"  {line}")
    result = {
        "run": finished.run,
        "checkpoint": str(finished.checkpoint),
        "val_bpb": finished.val_bpb,
        "wall_s": round(time.monotonic() - start_s, 1),
    }
    if world.is_first:
        print(
            json.dumps(result)
            if config.json
            else f"saved {finished.checkpoint}, val bpb {finished.val_bpb:.4f}"
        )
    return 0


def _texts(config: Config) -> tuple[list[str], list["Text"]]:
    """The texts by name, raw or prepared: one, or one for each weight."""
    from nanochat.batches.prepared import open_prepared
    from nanochat.batches.sources import Texts

    if not config.data:
        return ["text"], [Texts.from_world(config.world_chars, config.seed)]
    known_hash = _hash_of(config.tokenizer)

    def text(data: Sequence[str]) -> "Text":
        nonlocal known_hash  # prepared texts have to agree on one
        prepared = open_prepared(data, config.val_data, known_hash)
        if prepared is not None:
            known_hash = known_hash or _hash_of(prepared.tokenizer)
            return prepared
        return Texts.from_files(data, config.val_data, config.text_column, config.home)

    if not config.weights:
        return ["text"], [text(config.data)]
    return list(config.data), [text([path]) for path in config.data]


def _opened(config: Config, text: "Text", tokenizer: "Tokenizer", report: ReadReport) -> "OpenText":
    from nanochat.batches.on_the_fly import OpenText, open_text
    from nanochat.batches.prepared import PreparedText
    from nanochat.common.dist import current_world

    if isinstance(text, PreparedText):
        return OpenText(train=text.train, validation=text.validation)
    return open_text(
        text,
        tokenizer,
        config.home,
        chapter_chars=config.chapter_chars,
        eval_tokens=config.eval_tokens,
        report=report,
        is_writer=current_world().local_rank == 0,
    )


def _lines(opened: Sequence["OpenText"]) -> list[str]:
    return [line for text in opened for line in text.lines()]


def _vocab_size(config: Config, texts: Sequence["Text"]) -> int:
    from nanochat.tokenizer.load import load_tokenizer

    path = _tokenizer_path(config, texts)
    return config.vocab_size if path is None else load_tokenizer(path).vocab_size


def _tokenizer(config: Config, texts: Sequence["Text"]) -> "Tokenizer":
    """That of `_tokenizer_path`, or one learnt from the texts, of each as much."""
    from nanochat.batches.sources import Texts
    from nanochat.batches.vocabulary import learnt_tokenizer
    from nanochat.tokenizer.load import load_tokenizer

    if (path := _tokenizer_path(config, texts)) is not None:
        return load_tokenizer(path)
    raw = [text for text in texts if isinstance(text, Texts)]
    return learnt_tokenizer(raw, config.vocab_size, config.home)


def _tokenizer_path(config: Config, texts: Sequence["Text"]) -> Path | None:
    """The one named, that of the prepared text, or an imported model's; None where one is to be
    trained."""
    from nanochat.batches.prepared import PreparedText
    from nanochat.checkpoint.format import TOKENIZER
    from nanochat.train.pretrain import imported_checkpoint

    if config.tokenizer is not None:
        return Path(config.tokenizer)
    if prepared := next((text.tokenizer for text in texts if isinstance(text, PreparedText)), None):
        return prepared
    imported = imported_checkpoint(config)
    return None if imported is None else imported / TOKENIZER


def _hash_of(tokenizer: str | Path | None) -> str | None:
    from nanochat.tokenizer.load import load_tokenizer

    return None if tokenizer is None else load_tokenizer(Path(tokenizer)).content_hash

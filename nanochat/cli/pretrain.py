"""nanochat pretrain   in: text, or the built-in world   out: a base model in a run   who calls:
cli.main, cli/demo.py

Read next: train/pretrain.py (what happens), train/plan.py (why these numbers).
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat.corpus.files import ReadReport
from nanochat.train.config import PretrainConfig as Config

if TYPE_CHECKING:
    from nanochat.batches.sources import Texts
    from nanochat.tokenizer.tokenizer import Tokenizer

__all__ = ["Config", "run"]

TOKENIZER_CHARS = 100_000_000  # of the training text are enough for a vocabulary


def run(config: Config) -> int:
    """0 once the base model is saved.

    Raises: DataError for the text, TokenizerError for the vocabulary, ConfigError for the plan.
    """
    from nanochat.common.dist import current_world

    with current_world().together():
        return _run(config)


def _run(config: Config) -> int:
    from nanochat.batches.sources import Texts, text_stores
    from nanochat.common.dist import current_world
    from nanochat.train.display import Display
    from nanochat.train.pretrain import plan_of, pretrain
    from nanochat.train.stages import dry_run

    start_s = time.monotonic()
    world = current_world()
    display = Display(log_every=config.log_every, is_quiet=not world.is_first)
    texts = (
        Texts.from_files(config.data, config.val_data, config.text_column, config.home)
        if config.data
        else Texts.from_world(config.world_chars, config.seed)
    )
    display.note(f"text: {texts.rule}")
    if config.dry_run:
        model_config, plan = plan_of(config, _vocab_size(config))
        dry_run(config, plan, model_config, display)
        return 0
    report = ReadReport()
    with world.first_alone():
        tokenizer = _tokenizer(config, texts)
        train, validation = text_stores(texts, tokenizer, config.home, report)
    for line in report.lines():
        display.note(f"  {line}")
    display.note(f"tokens: {train.num_tokens:,} to train on, {validation.num_tokens:,} held out")
    finished = pretrain(config, tokenizer, train, validation, display)
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


def _vocab_size(config: Config) -> int:
    from nanochat.tokenizer.load import load_tokenizer

    if config.tokenizer is None:
        return config.vocab_size
    return load_tokenizer(Path(config.tokenizer)).vocab_size


def _tokenizer(config: Config, texts: "Texts") -> "Tokenizer":
    """The one named, or one trained on the text, kept beside the run's stages."""
    from nanochat.tokenizer.load import load_tokenizer
    from nanochat.tokenizer.train import train_tokenizer

    if config.tokenizer is not None:
        return load_tokenizer(Path(config.tokenizer))
    documents: Iterator[str] = (document.text for document in texts.documents("train", None))
    return train_tokenizer(documents, config.vocab_size, max_chars=TOKENIZER_CHARS, doc_cap=50_000)

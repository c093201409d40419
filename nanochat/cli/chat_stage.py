"""What `nanochat midtrain` and `nanochat sft` share.   in: a config, a stage's function   out: an
exit code
who calls: cli/midtrain.py, cli/sft.py

Read next: batches/sources.py (where conversations come from).
"""

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypeVar

from nanochat.corpus.files import ReadReport
from nanochat.train.config import MidtrainConfig

if TYPE_CHECKING:
    from nanochat.batches.store import Store
    from nanochat.train.display import Display
    from nanochat.train.stages import Finished

__all__ = ["run_chat_stage"]

C = TypeVar("C", bound=MidtrainConfig)
Train = Callable[[C, "Store", "Store | None", "Display"], "Finished"]


def run_chat_stage(stage: Literal["midtrain", "sft"], config: C, train: Train[C]) -> int:
    """0 once the stage's model is saved."""
    from nanochat.batches.sources import Chats, Texts, chat_store, mixed, text_stores
    from nanochat.checkpoint.resolve import read, resolve
    from nanochat.train.display import Display

    start_s = time.monotonic()
    display = Display(log_every=config.log_every)
    tokenizer = read(resolve(config.model, config.home)).tokenizer
    report = ReadReport()
    if config.chats:
        chats = Chats.from_files(config.chats)
        texts = Texts.from_files(config.data) if config.data else None
    else:
        chats = Chats.from_world(stage, config.num_conversations, config.seed)
        texts = Texts.from_world(config.world_chars, config.seed + 1)
    store = chat_store(chats, "train", tokenizer, config.home, report)
    for line in report.lines():
        display.note(f"  {line}")
    train_text, validation = text_stores(texts, tokenizer, config.home) if texts else (None, None)
    rows = mixed(store, train_text, config.text_share)
    display.note(f"conversations: {store.num_documents:,}, {store.num_tokens:,} tokens")
    finished = train(config, rows, validation, display)
    result = {
        "run": finished.run,
        "checkpoint": str(finished.checkpoint),
        "val_bpb": finished.val_bpb,
        "wall_s": round(time.monotonic() - start_s, 1),
    }
    print(json.dumps(result) if config.json else f"saved {finished.checkpoint}")
    return 0

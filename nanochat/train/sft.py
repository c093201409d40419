"""A model that knows conversations -> one that answers.   in: SftConfig, conversations   out:
Finished
who calls: cli

One conversation a row, padded, and only what the assistant says is trained, its tools' output left
out.  The rate
falls linearly over the second half.
Source: karpathy/nanochat scripts/chat_sft.py at 3a5e0bc (rows) and 92d63d4 (schedule, rates,
        warm-started moments).
Read next: continuation.py (how a stage goes on from another).
"""

from collections.abc import Sequence

from nanochat.batches.store import Store
from nanochat.batches.stream import ConversationStream
from nanochat.train.config import SftConfig
from nanochat.train.continuation import ChatStage, epochs_of, train_on_conversations
from nanochat.train.display import Display
from nanochat.train.stages import Finished
from nanochat.train.validation import HeldOut

__all__ = ["DECAY_FRACTION", "sft"]

DECAY_FRACTION = 0.5  # of the run, at its end


def sft(
    config: SftConfig,
    chats: Store,
    validation: Store | None,
    display: Display,
    held_out: Sequence[HeldOut] = (),
) -> Finished:
    """The model of `config.model` after all conversations of `chats`, a row each, the assistant's
    words trained.

    `validation` holds text for bits per byte, `held_out` conversations; each may be left out.
    """
    stage = ChatStage(
        name="sft",
        decay_fraction=DECAY_FRACTION,
        is_padded=True,
        stream=lambda context_len: ConversationStream(
            chats, context_len, seed=config.seed, layout="padded", num_epochs=epochs_of(config)
        ),
    )
    return train_on_conversations(config, stage, validation, held_out, display)

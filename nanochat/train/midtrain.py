"""A base model -> one that knows the shape of conversations.   in: MidtrainConfig, conversations
out: Finished
who calls: cli

Conversations are packed into rows as long as the context and every token is trained, the user's
too: the model
goes on learning language.  All of the mixture once; the rate is constant and falls over the last
fifth.
Source: karpathy/nanochat scripts/mid_train.py at 3a5e0bc.
Read next: sft.py (the same start, other rows, other mask).
"""

from collections.abc import Sequence

from nanochat.batches.store import Store
from nanochat.batches.stream import ConversationStream
from nanochat.train.config import MidtrainConfig
from nanochat.train.continuation import ChatStage, epochs_of, train_on_conversations
from nanochat.train.display import Display
from nanochat.train.stages import Finished
from nanochat.train.validation import HeldOut

__all__ = ["DECAY_FRACTION", "midtrain"]

DECAY_FRACTION = 0.2  # of the run, at its end


def midtrain(
    config: MidtrainConfig,
    chats: Store,
    validation: Store | None,
    display: Display,
    held_out: Sequence[HeldOut] = (),
) -> Finished:
    """The model of `config.model` after all conversations of `chats`, packed, every token trained.

    `validation` holds text for bits per byte, `held_out` conversations; each may be left out.
    """
    stage = ChatStage(
        name="midtrain",
        decay_fraction=DECAY_FRACTION,
        is_padded=False,
        stream=lambda context_len: ConversationStream(
            chats, context_len, seed=config.seed, is_masked=False, num_epochs=epochs_of(config)
        ),
    )
    return train_on_conversations(config, stage, validation, held_out, display)

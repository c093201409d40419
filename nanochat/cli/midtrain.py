"""nanochat midtrain   in: a model, conversations   out: the model after midtrain, in its run   who
calls: cli.main

Read next: train/midtrain.py (what happens).
"""

from nanochat.cli.chat_stage import run_chat_stage
from nanochat.train.config import MidtrainConfig as Config

__all__ = ["Config", "run"]


def run(config: Config) -> int:
    """0 once the model is saved.

    Raises: ConfigError, CheckpointError for the model, DataError for the conversations.
    """
    from nanochat.train.midtrain import midtrain

    return run_chat_stage("midtrain", config, midtrain)

"""nanochat sft   in: a model, conversations   out: the model after sft, in its run   who calls:
cli.main

Read next: train/sft.py (what happens).
"""

from nanochat.cli.chat_stage import run_chat_stage
from nanochat.train.config import SftConfig as Config

__all__ = ["Config", "run"]


def run(config: Config) -> int:
    """0 once the model is saved.

    Raises: ConfigError, CheckpointError for the model, DataError for the conversations.
    """
    from nanochat.train.sft import sft

    return run_chat_stage("sft", config, sft)

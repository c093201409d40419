"""A depth -> files of a model with random weights.   in: a depth, a vocabulary's size
out: a run of ours, or what a peer's server loads   who calls: serve.py, peer_serve.py

Serving needs a vocabulary as well as weights.  This one is made up: the 256 bytes, then words of
one to four letters with and without a space before them, so that its text is text, and a prompt of
three-letter words has a token for each word here as in a real vocabulary.
Read next: serve.py; gguf.py (the same for llama.cpp).
"""

import itertools
import string
from collections.abc import Iterator
from pathlib import Path

import torch

from nanochat.checkpoint.format import Checkpoint, save_checkpoint, step_path
from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.model.init import initialize
from nanochat.tokenizer.tokenizer import SPECIAL_TOKENS, Tokenizer

__all__ = ["made_up_tokens", "random_weights", "write_random_run"]

STD = 0.02  # of every matrix, as bench decode has it


def made_up_tokens(vocab_size: int) -> list[bytes]:
    """The tokens of a vocabulary of that size, without the special ones; each but the bytes is two
    earlier ones put together."""
    num_tokens = vocab_size - len(SPECIAL_TOKENS)
    letters = string.ascii_lowercase

    def words() -> Iterator[str]:
        for start, length in ((" ", 1), ("", 2), (" ", 2), (" ", 3), ("", 3), (" ", 4)):
            for parts in itertools.product(letters, repeat=length):
                yield start + "".join(parts)

    singles = [bytes([byte]) for byte in range(256)]
    return [*singles, *(word.encode() for word in itertools.islice(words(), num_tokens - 256))]


def random_weights(config: GPTConfig, seed: int = 0) -> GPT:
    """A model whose matrices are noise.  Where every token is about as likely, one in some ten
    thousand ends an answer."""
    model = GPT(config).requires_grad_(False)
    initialize(model, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, STD, generator=generator)
    return model


def write_random_run(home: Path, config: GPTConfig) -> Path:
    """A run of random weights in a home; the folder of its last step, which can be served."""
    model = random_weights(config)
    path = step_path(home / "runs" / f"random_d{config.num_layers}" / "sft" / "checkpoints", 1)
    checkpoint = Checkpoint(
        config=config,
        weights={name: weight.float() for name, weight in model.named_parameters()},
        tokenizer=Tokenizer(made_up_tokens(config.vocab_size)),
        state={"stage": "sft", "step": 1},
    )
    save_checkpoint(path, checkpoint)
    return path

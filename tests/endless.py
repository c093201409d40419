"""A model whose answer does not end.   in: a tokenizer   out: weights that write for ever

For tests of what happens in the middle of an answer, however fast or slow the machine is.
"""

import dataclasses
from itertools import pairwise

import torch

from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.model.init import initialize
from nanochat.tokenizer.tokenizer import Tokenizer

__all__ = ["endless_model"]


def endless_model(tokenizer: Tokenizer) -> GPT:
    """Computes 6*7, and then writes "qj qj" for ever.

    Its blocks add nothing and each token has a direction of its own, so that the head says which
    token follows which.
    """
    special, letter = tokenizer.special, lambda text: tokenizer.encode(text)[0]
    start, end = special("<|python_start|>"), special("<|python_end|>")
    chain = [special("<|assistant_start|>"), start, *map(letter, "6*7"), end]
    loop = [special("<|output_end|>"), *map(letter, "qj q")]
    config = GPTConfig.from_depth(
        2, vocab_size=300, context_len=50_000, head_dim=32, aspect_ratio=160
    )
    model = GPT(dataclasses.replace(config, num_kv_heads=1))
    initialize(model)
    weight = model.embedding.weight
    assert weight.size(0) <= weight.size(1), "a direction for each token"
    weight.data = torch.eye(*weight.shape)
    model.head.weight.data.zero_()
    for before, after in (*pairwise(chain), *pairwise(loop)):
        model.head.weight.data[after, before] = 1
    return model.eval().requires_grad_(False)

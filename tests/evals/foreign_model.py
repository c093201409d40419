"""A model of transformers, tiny and random.   in: a folder   out: GPT-2's files in it"""

from pathlib import Path
from typing import Any

import torch

__all__ = ["write_foreign"]

NAMES = ["<s>", "one", "two", "three", "four", "A", "B"]


def write_foreign(folder: Path) -> Any:
    """The model that was written, of seven words and a context of 12; needs transformers."""
    from tokenizers import Tokenizer as Words
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    words = Words(WordLevel({name: index for index, name in enumerate(NAMES)}, unk_token="<s>"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="<s>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    size = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 12}
    ids = {"bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(NAMES), **size, **ids)).eval()
    model.save_pretrained(folder)
    return model

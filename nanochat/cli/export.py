"""nanochat export   in: a model   out: a directory for other programs   who calls: cli.main

Read next: checkpoint/huggingface_export.py (what is written), docs/interop.md (what differs).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from nanochat.common.config import CommonOptions

__all__ = ["Config", "run"]


@dataclass(frozen=True, kw_only=True)
class Config(CommonOptions):
    """Write a model as a directory that Hugging Face's transformers (5.0 or later) loads."""

    model: tyro.conf.Positional[str]
    """A run (d12, d12/sft, d12/sft@1500), hf:org/name, or a directory."""
    out: Path
    """Directory to write; what is already in it is never touched."""
    to: Literal["hf"] = "hf"
    """For whom: hf is Hugging Face."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What weights are written in. float32 loses nothing, bfloat16 takes half the space."""


def run(config: Config) -> int:
    """0 once the directory is written.

    Raises: CheckpointError for the model, or the place.
    """
    import torch

    from nanochat.checkpoint.fit import check_vocabulary, check_weights
    from nanochat.checkpoint.huggingface_export import export_huggingface
    from nanochat.checkpoint.resolve import read_newest

    path, checkpoint = read_newest(config.model, config.home)
    check_vocabulary(checkpoint.config, checkpoint.tokenizer.vocab_size, str(path))
    check_weights(checkpoint.config, checkpoint.weights, str(path))
    dtype = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
    written = export_huggingface(checkpoint, config.out.expanduser(), dtype=dtype)
    if config.json:
        result = {
            "directory": str(written.directory),
            "is_native": written.is_native,
            "notes": written.notes,
        }
        print(json.dumps(result))
        return 0
    how = (
        "transformers has this architecture itself"
        if written.is_native
        else "load it with trust_remote_code=True: its model file lies beside the weights"
    )
    print(f"wrote {written.directory}  ({how})")
    for note in written.notes:
        print(f"note: {note}")
    return 0

"""What runs inside karpathy/nanochat's process.   in: a setting as JSON   out: figures as JSON
who calls: data.py, with the user's own checkout on PYTHONPATH

Imports nothing of ours, and of theirs only the tokenizing loader and its tokenizer, with threads
and batches as its scripts/base_train.py at 92d63d4 has them.
"""

import base64
import json
import sys
import time
from pathlib import Path
from typing import Any

import tiktoken

__all__ = ["main"]


def main(setting: dict[str, Any]) -> dict[str, float]:
    """Seconds, tokens given out, and tokens that were encoded for them."""
    from nanochat import dataloader  # type: ignore[attr-defined, import-not-found, unused-ignore]
    from nanochat.tokenizer import (  # type: ignore[attr-defined, import-not-found, unused-ignore]
        RustBPETokenizer,
    )

    lines = Path(setting["ranks"]).read_text().splitlines()
    ranks = {base64.b64decode(line.split()[0]): int(line.split()[1]) for line in lines if line}
    encoding = tiktoken.Encoding(
        "bench",
        pat_str=setting["pattern"],
        mergeable_ranks=ranks,
        special_tokens=setting["special_tokens"],
    )
    tokenizer = RustBPETokenizer(encoding, "<|bos|>")
    num_encoded = 0
    encode = tokenizer.encode

    def counting(*args: Any, **kwargs: Any) -> Any:
        nonlocal num_encoded
        lists = encode(*args, **kwargs)
        num_encoded += sum(map(len, lists))
        return lists

    tokenizer.encode = counting
    loader = dataloader.tokenizing_distributed_data_loader_bos_bestfit(
        tokenizer, setting["rows"], setting["context_len"], split="train", device="cpu"
    )
    next(loader)  # fills its buffer of documents
    num_encoded, num_given = 0, 0
    start_s = time.perf_counter()
    while num_encoded < setting["tokens"]:
        num_given += next(loader)[0].numel()
    return {
        "wall_s": time.perf_counter() - start_s,
        "tokens": num_given,
        "encoded_tokens": num_encoded,
    }


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))

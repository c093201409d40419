"""What a lettered question costs, in forward passes of its prompt.   in: a tokenizer, the data
out: one JSON object   who calls: make bench-eval, or `python -m nanochat.bench.letters MODEL DATA`

MMLU's questions, asked as `nanochat eval` asks them, of a model with random weights; beside it, for
the same prompts one by one, the plain model's forward pass with the logits of the last token alone,
the least that any evaluation has to compute.  Both in float32, three rounds each, in turn; medians
are compared.  Every round of ours has an engine of its own, which knows no question yet.
Read next: core.py (CORE beside a peer); engine/groups.py (what is measured).
"""

import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nanochat.bench.load_model import random_weights
from nanochat.checkpoint.resolve import load
from nanochat.engine.engine import Engine
from nanochat.evals.data import DataFiles
from nanochat.evals.examinee import EngineExaminee
from nanochat.evals.runner import RunOptions, run_tasks
from nanochat.evals.task import Selection
from nanochat.evals.tasks.lettered import MMLU
from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.tokenizer.chat import render_prompt
from nanochat.tokenizer.tokenizer import Tokenizer

__all__ = ["LettersBench", "bench_letters", "main"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LettersBench:
    """What is measured."""

    tokenizer: Tokenizer
    data_dir: Path
    """Holds mmlu/test.jsonl."""
    depth: int = 12
    num_questions: int = 100
    num_passes: int = 3
    """Of each side."""


def bench_letters(bench: LettersBench) -> dict[str, Any]:
    """Seconds a question of both sides, and `forwards_per_question`, their ratio.

    Raises: DataError where the data is not there.
    """
    vocab_size = bench.tokenizer.vocab_size
    model = random_weights(GPTConfig.from_depth(bench.depth, vocab_size=vocab_size)).eval()
    source = DataFiles([bench.data_dir])
    prompts = _prompts(bench, source)
    options = RunOptions(source=source, limit=bench.num_questions)
    evals_s, forwards_s = [], []
    for _ in range(bench.num_passes):
        forwards_s.append(_forward_s(model, prompts))
        engine = Engine(model, bench.tokenizer, format="float32", kv_memory_bytes=1 << 28)
        backwards = prompts[0][::-1]  # no question begins so; operators are chosen
        engine.score_groups([[(backwards, len(backwards) - 1)]])
        start_s = time.perf_counter()
        run_tasks(EngineExaminee(name="bench", engine=engine), [MMLU], options)
        evals_s.append(time.perf_counter() - start_s)
    eval_s, forward_s = statistics.median(evals_s), statistics.median(forwards_s)
    return {
        "depth": bench.depth,
        "num_questions": len(prompts),
        "prompt_tokens": sum(len(prompt) for prompt in prompts),
        "passes": bench.num_passes,
        "seconds_per_question": eval_s / len(prompts),
        "seconds_per_forward": forward_s / len(prompts),
        "forwards_per_question": eval_s / forward_s,
    }


def _prompts(bench: LettersBench, source: DataFiles) -> list[list[int]]:
    samples = MMLU.load(Selection(source=source, limit=bench.num_questions))
    conversations = [each.prompt for each in samples if not isinstance(each.prompt, str)]
    assert len(conversations) == len(samples), "MMLU asks in conversations"
    return [list(render_prompt(each, bench.tokenizer)) for each in conversations]


def _forward_s(model: GPT, prompts: list[list[int]]) -> float:
    start_s = time.perf_counter()
    with torch.inference_mode():
        for prompt in prompts:
            model.logits(model.hidden(torch.tensor([prompt]))[:, -1:])
    return time.perf_counter() - start_s


def main(words: list[str]) -> int:
    """`MODEL DATA_DIR [DEPTH [QUESTIONS]]` -> the result as JSON on standard output; of MODEL only
    the tokenizer is used."""
    model, data_dir, *rest = words
    numbers = [int(word) for word in rest]
    bench = LettersBench(
        tokenizer=load(model).tokenizer,
        data_dir=Path(data_dir),
        **dict(zip(("depth", "num_questions"), numbers, strict=False)),
    )
    print(json.dumps(bench_letters(bench)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""A small folder of evaluation data, written by hand: every task has a few rows."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanochat.evals.core import CORE_TABLE

__all__ = ["CHOICE_ROWS", "CONTEXT_ROWS", "SCHEMA_ROWS", "write_bundle", "write_rows"]

COLOURS = ("red", "green", "blue", "grey")
CHOICE_ROWS = [
    {
        "query": f"Question: {n} and {n + 1}?",
        "choices": [f"{n} tons", f"{n * 2 + 1}"],
        "gold": n % 2,
    }
    for n in range(14)
]
SCHEMA_ROWS = [
    {
        "context_options": [f"The cat {n} saw the dog because the cat", f"The cat {n} saw the dog"],
        "continuation": "was near.",
        "gold": n % 2,
    }
    for n in range(13)
]
CONTEXT_ROWS = [
    {"context": f"  Say {COLOURS[n % 4]} {n}. ", "continuation": COLOURS[n % 4]} for n in range(12)
]
ROWS = {
    "multiple_choice": CHOICE_ROWS,
    "schema": SCHEMA_ROWS,
    "language_modeling": CONTEXT_ROWS,
}


def write_rows(path: Path, rows: Sequence[Any], *, is_packed: bool = False) -> None:
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if is_packed else content)


def write_bundle(folder: Path, *, without: Sequence[str] = ()) -> Path:
    """Rows for all of CORE but `without`, ARC, MMLU, GSM8K, HumanEval, words and a text."""
    for entry in CORE_TABLE:
        if entry.label not in without:
            path = folder / "eval_bundle/eval_data" / f"{entry.path}.jsonl"
            write_rows(path, ROWS[entry.kind])
    arc = [
        {
            "question": f"What comes after {n}?",
            "choices": {"text": [f"{n + 1}", f"{n}", "none"], "label": ["A", "B", "C"]},
            "answerKey": "A",
        }
        for n in range(5)
    ]
    write_rows(folder / "arc/ARC-Easy/test.jsonl.gz", arc, is_packed=True)
    write_rows(folder / "arc/ARC-Challenge/test.jsonl", arc[:3])
    mmlu = [
        {"question": f"Which is {each}?", "choices": list(COLOURS), "answer": n, "subject": "hues"}
        for n, each in enumerate(COLOURS)
    ]
    write_rows(folder / "mmlu/test.jsonl", mmlu)
    gsm8k = [
        {"question": f"{n} and 3?", "answer": f"It is <<{n}+3={n + 3}>>{n + 3}.\n#### {n + 3}"}
        for n in range(3)
    ]
    write_rows(folder / "gsm8k/test.jsonl", gsm8k)
    double = {
        "task_id": "HumanEval/0",
        "prompt": 'def double(x):\n    """Twice x."""\n',
        "entry_point": "double",
        "canonical_solution": "    return 2 * x\n",
        "test": "def check(candidate):\n    assert candidate(2) == 4\n",
    }
    write_rows(folder / "humaneval/HumanEval.jsonl", [double])
    words = folder / "spellingbee/words_alpha.txt"
    words.parent.mkdir(parents=True)
    words.write_bytes(b"apple\r\nbanana\r\ncherry")
    (folder / "text").mkdir()
    (folder / "text/valid.txt").write_text("A short text.\n<|endoftext|>\nAnother one.\n")
    return folder

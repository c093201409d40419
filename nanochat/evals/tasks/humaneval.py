"""HumanEval: functions to write, tested in the sandbox.   in: humaneval/HumanEval.jsonl   out: Task
who calls: tasks/__init__.py   (imports no torch)

The user's message is the beginning of a program.
Source: Chen et al., arXiv:2107.03374; karpathy/nanochat tasks/humaneval.py at 92d63d4.
Read next: code.py (how a completion becomes a program and a verdict).
"""

from nanochat.common.messages import Message
from nanochat.evals.data import checked_row, permuted
from nanochat.evals.task import Sample, Selection, Task

__all__ = ["HUMANEVAL"]

SHUFFLE_SEED = 42


def _load(selection: Selection) -> list[Sample]:
    rows = selection.source.rows(
        "humaneval/HumanEval.jsonl", limit=selection.limit, order=permuted(SHUFFLE_SEED)
    )
    samples = []
    for row in rows:
        item = checked_row(row, task_id=str, prompt=str, entry_point=str, test=str)
        samples.append(
            Sample(
                sample_id=item["task_id"],
                prompt=(Message("user", item["prompt"]),),
                gold="",
                extra={
                    "prompt": item["prompt"],
                    "entry_point": item["entry_point"],
                    "tests": f"{item['test']}\ncheck({item['entry_point']})",
                },
            )
        )
    return samples


HUMANEVAL = Task(
    name="HumanEval", version="1", kind="generative", load=_load, tools=True, runs_code=True,
    notes=("by default the prompt stands before the program; karpathy/nanochat gives its imports",),
)  # fmt: skip

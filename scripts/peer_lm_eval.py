"""What runs inside lm-evaluation-harness's process.   in: a JSON file that says what to ask
out: a JSON file with what came of it   who calls: agree_lm_eval.py

    {"folder": ..., "labels": [...], "model_args": {...}}  ->
    {label: {"acc": ..., "sums": [[an option's log-likelihood, ...] for each question]}}
Its thousands of own tasks are not indexed: that takes twenty seconds.
"""

import json
import sys
from pathlib import Path
from typing import Any

__all__ = ["main"]


def main(asked: Path, answered: Path) -> int:
    """0 once the answers are written."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    settings: dict[str, Any] = json.loads(asked.read_text())
    found = simple_evaluate(
        model="local-completions",
        model_args=settings["model_args"],
        tasks=settings["labels"],
        task_manager=TaskManager(include_path=settings["folder"], include_defaults=False),
        batch_size=8,
        bootstrap_iters=0,
        log_samples=True,
    )
    results = {}
    for label in settings["labels"]:
        rows = sorted(found["samples"][label], key=lambda row: row["doc_id"])
        results[label] = {
            "acc": found["results"][label]["acc,none"],
            "sums": [[float(response[0]) for response in row["filtered_resps"]] for row in rows],
        }
    answered.write_text(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))

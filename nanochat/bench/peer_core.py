"""What runs inside karpathy/nanochat's process.   in: a setting as JSON   out: seconds as JSON
who calls: core.py, with the user's own checkout on PYTHONPATH

Imports nothing of ours; calls their evaluate_task on each task of CORE, as scripts/base_eval.py at
92d63d4 does, data read and shuffled within the time that is taken.
"""

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

__all__ = ["main"]


def main(setting: dict[str, Any]) -> dict[str, Any]:
    """{"seconds", "cpu_seconds", "accuracy": {label: share}}."""
    import torch

    from nanochat.checkpoint_manager import build_model  # type: ignore[attr-defined, import-not-found, import-untyped, unused-ignore]
    from nanochat.core_eval import evaluate_task  # type: ignore[attr-defined, import-not-found, import-untyped, unused-ignore]

    torch.set_num_threads(setting["num_threads"])
    device = torch.device("cpu")
    model, tokenizer, _ = build_model(setting["checkpoint"], setting["step"], device, phase="eval")
    accuracy = {}
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    for task in setting["tasks"]:
        with Path(task["path"]).open(encoding="utf-8") as file:
            data = [json.loads(line) for line in file]
        random.Random(1337).shuffle(data)
        meta = {
            "task_type": task["kind"],
            "num_fewshot": task["num_shots"],
            "continuation_delimiter": task["delimiter"],
        }
        accuracy[task["label"]] = evaluate_task(
            model, tokenizer, data[: setting["limit"]], device, meta
        )
    return {
        "seconds": time.perf_counter() - start_s,
        "cpu_seconds": time.process_time() - start_cpu_s,
        "accuracy": accuracy,
    }


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))

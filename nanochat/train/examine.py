"""Tasks between two steps.   in: a model that is being trained   out: scores for metrics.jsonl
who calls: stages.py

The weights are copied into an engine, asked, and let go; nothing of training changes.  Samples and
summary of each time are in the stage's evals/.
Read next: evals/runner.py, loop.py (when this is called).
"""

import math
from collections.abc import Callable
from pathlib import Path

from nanochat.common.dist import current_world
from nanochat.common.files import home_dir
from nanochat.model.gpt import GPT
from nanochat.tokenizer.tokenizer import Tokenizer
from nanochat.train.config import StageConfig
from nanochat.train.display import Display

__all__ = ["examiner"]


def examiner(
    config: StageConfig,
    whole: Callable[[], GPT],
    tokenizer: Tokenizer,
    directory: Path,
    display: Display,
) -> Callable[[int], dict[str, float]] | None:
    """Step -> {"eval/task": accuracy, "eval/composite": value}; None where no task is named.

    `whole` gives the model as it is then.  A task that fails is said and left out.
    Raises: ConfigError for a name that is no task's, before anything is trained.
    """
    if not config.eval_tasks:
        return None
    from nanochat.evals.data import DataFiles
    from nanochat.evals.download import Downloader
    from nanochat.evals.runner import RunOptions
    from nanochat.evals.tasks import named_tasks

    tasks = named_tasks(config.eval_tasks)
    world, home = current_world(), home_dir(config.home)
    place = home / "data" / "eval"
    folders = [place] if config.eval_data is None else [config.eval_data.expanduser(), place]
    options = RunOptions(
        source=DataFiles(folders, Downloader(place)),
        limit=config.eval_limit,
        keep=home / "cache" / "eval" if world.size > 1 else None,
        processes=world,
    )

    def examine(step: int) -> dict[str, float]:
        from nanochat.engine.engine import Engine
        from nanochat.evals.chatcore import all_composites
        from nanochat.evals.examinee import EngineExaminee, weights_hash
        from nanochat.evals.results import EvalResult, write_results
        from nanochat.evals.runner import run_tasks

        model = whole()
        is_cpu = model.embedding.weight.device.type == "cpu"
        engine = Engine(
            model, tokenizer, format="float32" if is_cpu else "bfloat16", home=config.home
        )
        name = f"{directory.parent.name}/{directory.name}@{step}"
        examinee = EngineExaminee(name=name, engine=engine, model_hash=weights_hash(model))
        found = run_tasks(examinee, tasks, options)
        composites = all_composites(found)
        for each in found.values():
            if each.error is not None:
                display.note(f"  {each.label} could not be asked: {each.error}")
        if world.is_first:
            settings = {"model_sha256": examinee.model_hash, **examinee.settings}
            result = EvalResult(
                model=name,
                tasks=found,
                composites=composites,
                settings={**settings, "limit": config.eval_limit},
            )
            write_results(directory / "evals" / f"step_{step:06d}", result)
        scores = {
            label: each.bits_per_byte if each.kind == "bits_per_byte" else each.accuracy
            for label, each in found.items()
        }
        scores |= {name: each.value for name, each in composites.items()}
        return {f"eval/{name}": score for name, score in scores.items() if math.isfinite(score)}

    return examine

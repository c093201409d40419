"""Tasks between two steps.   in: a model that is being trained   out: scores for metrics.jsonl
who calls: stages.py

The weights are copied into an engine, asked, and let go; nothing of training changes.  Samples,
summary and reports of each time are in the stage's evals/, as `nanochat eval` writes them.  What an
examination needs is there before the first step, or training does not begin; in the middle of it
nothing is loaded from the network, and what goes wrong is one line.
Read next: evals/runner.py, loop.py (when this is called).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat.common.dist import current_world
from nanochat.common.errors import ConfigError, NanochatError
from nanochat.common.files import home_dir
from nanochat.model.gpt import GPT
from nanochat.tokenizer.tokenizer import Tokenizer
from nanochat.train.config import StageConfig
from nanochat.train.display import Display
from nanochat.train.keeper import check_alike

if TYPE_CHECKING:
    from nanochat.evals.examinee import EngineExaminee
    from nanochat.evals.results import EvalResult
    from nanochat.evals.task import Selection, Task

__all__ = ["examiner"]

TASK_FILES = (".toml", ".py")  # those that say everything about a task themselves


def examiner(
    config: StageConfig,
    whole: Callable[[], GPT],
    tokenizer: Tokenizer,
    directory: Path,
    display: Display,
) -> Callable[[int], dict[str, float]] | None:
    """Step -> {"eval/task": accuracy, "eval/composite": value}; None where no task is named.

    `whole` gives the model as it is then.  A task that fails is said and left out.
    Raises: before anything is trained, ConfigError for a name that is no task's, for data that is
            neither here nor to be had, and for ranks that have other data or tasks; SandboxError
            where a task's programs cannot be run.
    """
    if not config.eval_tasks:
        return None
    from nanochat.evals.chatcore import all_composites
    from nanochat.evals.data import DataFiles
    from nanochat.evals.download import Downloader
    from nanochat.evals.results import EvalResult
    from nanochat.evals.runner import RunOptions, run_tasks, settings_of
    from nanochat.evals.task import Selection

    world, home = current_world(), home_dir(config.home)
    place = home / "data" / "eval"
    folders = [place] if config.eval_data is None else [config.eval_data.expanduser(), place]
    source = DataFiles(folders, Downloader(place))
    tasks = _tasks(config)
    _prepare(tasks, Selection(source=source, limit=config.eval_limit))
    # Other questions would be shared out otherwise, and the ranks wait for each other.
    check_alike(world, {"eval_data": source.sha256, "tasks": {t.name: t.version for t in tasks}})
    options = RunOptions(
        source=replace(source, fetch=None),
        limit=config.eval_limit,
        keep=home / "cache" / "eval" if world.size > 1 else None,
        processes=world,
    )

    def examine(step: int) -> dict[str, float]:
        name = f"{directory.parent.name}/{directory.name}@{step}"
        examinee = _examinee(name, whole, tokenizer, config, display)
        if world.largest(int(examinee is None)) or examinee is None:
            display.note(f"  not examined at step {step}: its copy could not be made")
            return {}
        found = run_tasks(examinee, tasks, options)
        for each in found.values():
            if each.error is not None:
                display.note(f"  {each.label} could not be asked: {each.error}")
        result = EvalResult(
            model=name,
            tasks=found,
            composites=all_composites(found),
            settings=settings_of(examinee, options),
        )
        if world.is_first:
            _write(directory / "evals" / f"step_{step:06d}", result, display)
        return _scores(result)

    return examine


def _tasks(config: StageConfig) -> "list[Task]":
    """Those that are named, and those of files that say everything about a task themselves."""
    from nanochat.evals.custom import load_task
    from nanochat.evals.tasks import named_tasks

    words = [part.strip() for word in config.eval_tasks for part in word.split(",")]
    files = [word for word in words if word.endswith(TASK_FILES) or ".py:" in word]
    return named_tasks(
        [word for word in words if word not in files], [load_task(file) for file in files]
    )


def _prepare(tasks: "Sequence[Task]", selection: "Selection") -> None:
    """Data is here, loaded and in order; the sandbox holds, where programs will be run.

    Raises: ConfigError naming every task that could not be asked; SandboxError.
    """
    problems = []
    for task in tasks:
        try:
            task.load(selection)
        except NanochatError as error:
            problems.append(f"{task.name}: {error}")
    if problems:
        raise ConfigError(
            f"eval_tasks cannot be asked: {'; '.join(problems)}.  Name other tasks, or say with "
            "--eval-data where their data is"
        )
    if any(task.runs_code for task in tasks):
        from nanochat.common.sandbox.box import Sandbox

        Sandbox().close()


def _examinee(
    name: str,
    whole: Callable[[], GPT],
    tokenizer: Tokenizer,
    config: StageConfig,
    display: Display,
) -> "EngineExaminee | None":
    """The model as it is, in an engine; None where that fails, for whatever reason."""
    from nanochat.engine.engine import Engine
    from nanochat.evals.examinee import EngineExaminee, weights_hash

    try:
        model = whole()
        is_cpu = model.embedding.weight.device.type == "cpu"
        engine = Engine(
            model, tokenizer, format="float32" if is_cpu else "bfloat16", home=config.home
        )
        return EngineExaminee(name=name, engine=engine, model_hash=weights_hash(model))
    except Exception as error:  # training is worth more than its examination
        display.note(f"  {name} cannot be examined: {type(error).__name__}: {error}")
        return None


def _write(directory: Path, result: "EvalResult", display: Display) -> None:
    """Summary, samples and reports; a disk that is full is said."""
    from nanochat.evals.report_eval import write_reports
    from nanochat.evals.results import write_results

    try:
        write_results(directory, result)
        write_reports(result, directory)
    except OSError as error:
        display.note(f"  the examination cannot be written to {directory}: {error}")


def _scores(result: "EvalResult") -> dict[str, float]:
    """What goes into metrics.jsonl: numbers only."""
    scores = {
        label: each.bits_per_byte if each.kind == "bits_per_byte" else each.accuracy
        for label, each in result.tasks.items()
    }
    scores |= {name: each.value for name, each in result.composites.items()}
    return {f"eval/{name}": score for name, score in scores.items() if math.isfinite(score)}

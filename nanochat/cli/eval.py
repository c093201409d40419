"""nanochat eval   in: a model, tasks   out: scores, samples, reports   who calls: cli.main

Under torchrun every process takes its share, and the first tells and writes.
Read next: evals/runner.py, evals/results.py (the files), docs/evaluate.md.
"""

import json
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from nanochat.cli.terminal import neutralize, notice
from nanochat.common.config import CommonOptions
from nanochat.common.env import api_key_from_env
from nanochat.common.errors import ConfigError, EvalError
from nanochat.common.files import home_dir
from nanochat.evals.custom import TaskFileOptions, load_task
from nanochat.evals.questions import told_flags
from nanochat.evals.task import Mode, Task

if TYPE_CHECKING:
    from nanochat.common.dist import World
    from nanochat.common.sandbox.box import Sandbox
    from nanochat.evals.examinee import Examinee
    from nanochat.evals.results import EvalResult
    from nanochat.evals.runner import RunOptions

__all__ = ["Config", "chosen_tasks", "run"]

MAX_ROWS = 64
USUAL_TOP_K = 50  # as karpathy/nanochat's evaluation
SAMPLED_TEMPERATURE = 0.8  # of several answers, which greedily would all be one


@dataclass(frozen=True, kw_only=True)
class Config(CommonOptions, TaskFileOptions):
    """Examine a model: CORE, ARC, MMLU, GSM8K, HumanEval, spelling, bits per byte, the built-in
    world's questions, or tasks of your own.

    A run that was stopped goes on where it was.  What was judged before is not asked again, unless
    nobody knows whether the model is the same: with --url a run that came to its end is forgotten.
    """

    model: tyro.conf.Positional[str] = ""
    """A run (d12, d12/sft, d12/sft@1500), hf:org/name[@revision], or a directory: ours, one of
    karpathy/nanochat's, or one for transformers. With --url: the model's name there."""
    tasks: tuple[str, ...] = ()
    """Names with * and ?, and the groups core, chatcore and all. None: core for a base model,
    chatcore for one that chats."""
    limit: int | None = None
    """Questions of each task, after the task's own shuffle. None: all."""
    compat: Literal["none", "nanochat"] = "none"
    """nanochat: karpathy/nanochat's procedure bit by bit, its defects included."""
    dtype: Literal["auto", "float32", "bfloat16", "int8", "int4"] = "auto"
    """What weights are kept in. auto: float32 on a CPU, bfloat16 on a GPU."""
    samples: int = 1
    """Answers to each question that is answered in writing; above 1, pass@k is told, unbiased."""
    temperature: float | None = None
    """Of written answers. None: 0, and with several answers 0.8."""
    top_k: int | None = None
    """Written answers take only the k likeliest tokens; 0: all. None: 50; with --url nothing is
    sent of it, since OpenAI's servers refuse what they do not know."""
    max_tokens: int | None = None
    """Most tokens of a written answer. None: what each task says."""
    seed: int = 0
    """Equal seeds give equal answers."""
    data_dir: Path | None = None
    """A folder that holds eval_bundle/, arc/, mmlu/, gsm8k/, humaneval/, spellingbee/, text/, plain
    or as .gz or .zst. What it lacks is looked for in $NANOCHAT_HOME/data/eval, then downloaded, but
    for text/."""
    mirror: str | None = None
    """An address to load data from, in place of the public ones."""
    offline: bool = False
    """Load nothing."""
    out: Path | None = None
    """Where summary.json, samples.jsonl and the reports go. None: the run's evals/ folder."""
    url: str | None = None
    """Examine a model behind an OpenAI-compatible address, such as http://127.0.0.1:8000/v1."""
    api_key_env: str | None = None
    """The environment variable with the key for --url. None: $NANOCHAT_API_KEY, if it is set."""
    device: str | None = None
    """cpu, cuda, cuda:1 or mps. None: the fastest there is."""
    verify: bool = True
    """Compare every file of the model with its SHA-256 first."""
    cache: bool = True
    """Use and keep verdicts on the same weights, vocabulary, task and parameters; with --url until
    a run comes to its end."""
    sandbox: Literal["auto", "linux", "landlock", "bubblewrap", "container"] = "auto"
    """What keeps the programs of HumanEval in."""
    sandbox_image: str | None = None
    """With --sandbox container: an image with Python 3.11 or later. None: python:3.12-slim."""
    unsafe_code: bool = False
    """Run them even where not every wall of the sandbox holds."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.model:
            raise ConfigError(
                "there is no model: name a run, a directory or hf:org/name; with --url the model's "
                "name there"
            )
        for name, least in (("limit", 1), ("samples", 1), ("max_tokens", 1), ("top_k", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} is {value}, expected at least {least}")
        if self.temperature is not None and not self.temperature >= 0:
            raise ConfigError(f"temperature is {self.temperature}, expected at least 0")
        if self.samples > 1 and self.temperature == 0:
            raise ConfigError(
                f"samples is {self.samples} at temperature 0, where all are alike: expected a "
                f"temperature above 0, such as --temperature {SAMPLED_TEMPERATURE}"
            )
        if useless := self._useless():
            raise ConfigError(f"{'; '.join(useless)}: leave it out")

    def _useless(self) -> list[str]:
        """What is said and would change nothing."""
        found = []
        if self.task_file is None and (told := told_flags(self)):
            found.append(f"{', '.join(told)} say what is in a --task-file, and there is none")
        of_weights = {"dtype": "auto", "device": None, "verify": True}
        told = [f"--{name}" for name, usual in of_weights.items() if getattr(self, name) != usual]
        if self.url is not None and told:
            found.append(f"{', '.join(told)} is the server's own affair with --url")
        if self.url is None and self.api_key_env is not None:
            found.append("--api-key-env is the key for --url, and there is none")
        if self.sandbox_image is not None and self.sandbox != "container":
            found.append(f"--sandbox-image is for --sandbox container, this is {self.sandbox}")
        return found

    @property
    def mode(self) -> Mode:
        """How the tasks are run."""
        return "nanochat" if self.compat == "nanochat" else "default"


def run(config: Config) -> int:
    """0 once at least one task was scored.

    Raises: ConfigError for tasks that do not exist, CheckpointError for the model; EvalError where
            no task could be scored, with the reason of the first; TrainingError naming the process
            that another one's failure was.
    """
    # What is wrong is told before weights are read.
    chosen = chosen_tasks(config, is_chat=None)
    _check(config, chosen)
    if config.url is not None:
        return _run(config, chosen, None)
    from nanochat.common.dist import current_world

    world = current_world()
    with world.together():
        return _run(config, chosen, world)


def _check(config: Config, chosen: list[Task]) -> None:
    """Raises: ConfigError for a --data-dir that is none, for several answers where none is written,
    and for what torchrun cannot have."""
    if config.samples > 1 and chosen and all(task.kind != "generative" for task in chosen):
        raise ConfigError(
            f"samples is {config.samples}, and no task that is named is answered in writing: leave "
            "it out, or name one that is, such as GSM8K"
        )
    if config.data_dir is not None and not config.data_dir.expanduser().is_dir():
        raise ConfigError(f"--data-dir {config.data_dir} is not a directory")
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    if num_processes == 1:
        return
    if config.url is not None:
        raise ConfigError(
            "--url under torchrun would ask the server everything once in every process: start "
            "it without torchrun, requests go out in parallel anyway"
        )
    if not config.cache:
        raise ConfigError(
            f"--no-cache under torchrun: {num_processes} processes tell each other their verdicts "
            "through the cache: leave it out, or start one process"
        )


def _run(config: Config, chosen: list[Task], world: "World | None") -> int:
    from nanochat.evals.chatcore import all_composites
    from nanochat.evals.results import EvalResult, write_results
    from nanochat.evals.runner import run_tasks, settings_of

    examinee, is_chat, out = _opened(config)
    tasks = chosen or chosen_tasks(config, is_chat=is_chat)
    options = _options(config, world)
    found = run_tasks(examinee, tasks, options)
    result = EvalResult(
        model=examinee.name,
        tasks=found,
        composites=all_composites(found),
        mode=config.mode,
        settings=settings_of(examinee, options),
    )
    if world is not None and not world.is_first:
        return 0
    write_results(out, result)
    _report(config, result, out)
    if not any(each.is_scored for each in found.values()):
        reasons = [each.error for each in found.values() if each.error]
        raise EvalError(f"no task was scored: {reasons[0]}")
    return 0


def chosen_tasks(config: Config, *, is_chat: bool | None) -> list[Task]:
    """The tasks that the flags name, in their order; of a model that may chat, the usual ones.

    None of them where nothing is named and is_chat is None.
    Raises: ConfigError for a name that matches none.
    """
    from nanochat.evals.tasks import named_tasks

    own = [load_task(config.task_file, config)] if config.task_file is not None else []
    names = list(config.tasks)
    if not names and not own:
        if is_chat is None:
            return []
        names = ["chatcore" if is_chat else "core"]
    return named_tasks(names, own)


def _opened(config: Config) -> "tuple[Examinee, bool, Path]":
    """Who is examined, whether it chats, and where results go."""
    from nanochat.evals.results import folder_name

    home = home_dir(config.home)
    folder = home / "evals" / folder_name(config.model)
    if config.url is not None:
        from nanochat.evals.remote import RemoteExaminee

        remote = RemoteExaminee(
            name=config.model, url=config.url, api_key=api_key_from_env(config.api_key_env)
        )
        return remote, True, _out(config, folder)
    from nanochat.evals.foreign import ForeignExaminee, is_foreign

    path = Path(config.model).expanduser()
    if path.is_dir() and is_foreign(path):
        if config.dtype in ("int8", "int4"):
            raise ConfigError(f"dtype is {config.dtype}: of transformers, float32 or bfloat16")
        if not config.verify:
            raise ConfigError("--no-verify: a model for transformers has no sums to compare with")
        dtype = "float32" if config.dtype == "auto" else config.dtype
        foreign = ForeignExaminee(path, device=config.device, dtype=dtype)
        return foreign, False, _out(config, folder)
    return _ours(config, home, folder)


def _ours(config: Config, home: Path, folder: Path) -> "tuple[Examinee, bool, Path]":
    from nanochat.checkpoint.resolve import load
    from nanochat.common.device import best_device, compute_dtype
    from nanochat.engine.engine import Engine
    from nanochat.evals.examinee import EngineExaminee, weights_hash

    device = best_device(config.device)
    format = config.dtype
    if format == "auto":
        format = "float32" if device.type == "cpu" else "bfloat16"
    loaded = load(
        config.model,
        home=config.home,
        device=device,
        dtype=compute_dtype(device, "bfloat16" if format == "bfloat16" else "float32"),
        with_hashes=config.verify,
    )
    engine = Engine(
        loaded.model, loaded.tokenizer, max_rows=MAX_ROWS, format=format, home=config.home
    )
    path = Path(config.model).expanduser()
    name = path.resolve().name if path.is_dir() else config.model
    examinee = EngineExaminee(name=name, engine=engine, model_hash=weights_hash(loaded.model))
    if home / "runs" in loaded.path.parents:
        folder = loaded.path.parents[1] / "evals" / loaded.path.name
    return examinee, loaded.is_chat, _out(config, folder)


def _out(config: Config, folder: Path) -> Path:
    if config.out is not None:
        return config.out.expanduser()
    return folder / time.strftime("%Y%m%d-%H%M%S")


def _options(config: Config, world: "World | None") -> "RunOptions":
    from nanochat.evals.data import DataFiles
    from nanochat.evals.download import Downloader
    from nanochat.evals.progress import EvalDisplay
    from nanochat.evals.runner import RunOptions

    home = home_dir(config.home)
    place = home / "data" / "eval"
    folders = [config.data_dir.expanduser(), place] if config.data_dir is not None else [place]
    fetch = None if config.offline else Downloader(place, config.mirror)
    temperature = config.temperature
    if temperature is None:
        temperature = SAMPLED_TEMPERATURE if config.samples > 1 else 0.0
    options = RunOptions(
        source=DataFiles(folders, fetch),
        limit=config.limit,
        mode=config.mode,
        num_samples=config.samples,
        temperature=temperature,
        top_k=_top_k(config),
        seed=config.seed,
        max_tokens=config.max_tokens,
        keep=home / "cache" / "eval" if config.cache else None,
        reporter=EvalDisplay(
            is_quiet=world is not None and not world.is_first,
            num_processes=1 if world is None else world.size,
        ),
        open_sandbox=lambda: _sandbox(config),
        unsafe_code=config.unsafe_code,
    )
    return options if world is None else replace(options, processes=world)


def _top_k(config: Config) -> int | None:
    """Of our own models None is all of them; of a server's, nothing said."""
    if config.url is not None:
        return config.top_k
    return USUAL_TOP_K if config.top_k is None else config.top_k or None


def _sandbox(config: Config) -> "Sandbox":
    from nanochat.common.sandbox.box import Sandbox
    from nanochat.common.sandbox.drivers import IMAGE

    return Sandbox(config.sandbox, unsafe=config.unsafe_code, image=config.sandbox_image or IMAGE)


def _report(config: Config, result: "EvalResult", out: Path) -> None:
    from nanochat.evals.report_eval import write_reports

    try:
        write_reports(result, out)
    finally:  # hours of asking are worth more than a page that cannot be written
        if config.json:
            print(json.dumps({**result.to_json(), "out": str(out)}, allow_nan=False), flush=True)
    if config.json:
        return
    for composite in result.composites.values():
        low, high = composite.interval
        print(f"{composite.name:<34}{composite.value:>8.4f}  ({low:.4f} to {high:.4f})")
    for task in result.tasks.values():
        for note in task.notes:
            notice(neutralize(f"{task.label}: {note}"))
    print(f"mode {result.mode}; summary, samples and report.html are in {out}")

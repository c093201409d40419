"""What pretraining, mid-training and SFT have in common.   in: a config, a model   out: Finished
who calls: pretrain.py, midtrain.py, sft.py

Opens the stage's place in the run, writes config.json and plan.json, trains, saves.
Read next: pretrain.py.
"""

import json
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import nanochat
from nanochat.checkpoint.format import STATE, find_steps, is_finished
from nanochat.checkpoint.lineage import import_in, is_import
from nanochat.checkpoint.manifest import read_object
from nanochat.checkpoint.resolve import STAGES, run_directory
from nanochat.checkpoint.saver import Retention, Saver
from nanochat.common.config import to_json_dict
from nanochat.common.device import (
    best_device,
    compute_dtype,
    find_compiler,
    peak_flops,
    total_memory_bytes,
)
from nanochat.common.dist import current_world
from nanochat.common.errors import ConfigError
from nanochat.common.files import write_json_atomically
from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.tokenizer.tokenizer import Tokenizer
from nanochat.train.config import StageConfig
from nanochat.train.display import Display
from nanochat.train.estimate import estimate_lines
from nanochat.train.examine import examiner
from nanochat.train.keeper import RunKeeper, check_alike
from nanochat.train.loop import Stage, Stream, fit
from nanochat.train.optim import Optimizer
from nanochat.train.plan import Hardware, Plan
from nanochat.train.progress import Progress
from nanochat.train.recipes import OptimizerRecipe
from nanochat.train.rows import writing
from nanochat.train.scale import Scale

if TYPE_CHECKING:
    from nanochat.train.fsdp import ShardedOptimizer

__all__ = [
    "Finished",
    "StageWork",
    "dry_run",
    "hardware_of",
    "open_stage",
    "prepared",
    "train_stage",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """What a stage leaves."""

    run: str
    stage: str
    checkpoint: Path
    metrics: list[dict[str, float]]
    model: GPT
    tokenizer: Tokenizer

    @property
    def val_bpb(self) -> float | None:
        """Bits per byte at the end, where there was validation text."""
        return next((row["val_bpb"] for row in reversed(self.metrics) if "val_bpb" in row), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class StageWork:
    """What one stage brings to `train_stage`."""

    name: str
    run: str
    model: GPT
    tokenizer: Tokenizer
    optimizer: "Optimizer | ShardedOptimizer"
    stream: Stream
    plan: Plan
    validate: Callable[[], float | Mapping[str, float]] | None
    validation: str
    """What decides the numbers of `validate` beside the model: the same on all ranks."""
    is_padded: bool = False
    parent: str | None = None
    """The checkpoint this stage started from."""

    @property
    def parent_name(self) -> str | None:
        """Its run, stage and step: what stays when a home is moved."""
        return self.parent and "/".join(Path(self.parent).parts[-4:])


def hardware_of(config: StageConfig) -> Hardware:
    """The machine as a plan sees it."""
    device, world = best_device(config.device), current_world()
    sharing = world.num_local if device.type == "cpu" else 1
    return Hardware(
        device_type=device.type,
        memory_bytes=total_memory_bytes(device) // sharing,
        has_compiler=find_compiler() is not None,
        num_ranks=world.size,
    )


def prepared(
    config: StageConfig, plan: Plan, model: GPT, recipe: OptimizerRecipe
) -> "Optimizer | ShardedOptimizer":
    """The model made ready to be trained as the plan says, and its optimizer.

    A model that is to be sharded is still in host memory; any other is on its device.
    """
    device, world = best_device(config.device), current_world()
    dtype = compute_dtype(device, config.dtype)
    model.recompute(plan.recomputes)
    if not plan.is_sharded:
        return Optimizer(model, recipe, lr_scale=plan.lr_scale, compute_dtype=dtype, world=world)
    from nanochat.train.fsdp import ShardedOptimizer, shard_model

    shard_model(model, world, device, dtype)
    return ShardedOptimizer(model, recipe, world, lr_scale=plan.lr_scale, compute_dtype=dtype)


def open_stage(config: StageConfig, run: str, stage: str) -> Path:
    """The stage's directory.  With --overwrite it is empty, and the stages that went on from it are
    gone.

    Raises: ConfigError if it has been finished, and neither --overwrite nor --resume was given.
    """
    directory = run_directory(config.home, run) / stage
    world = current_world()
    with world.first_alone():
        # torchrun starts the same command again after a failure: what it wrote is gone on with.
        replaced = f"replaced {directory}"
        if config.overwrite and world.is_first and not world.has_done(replaced):
            for later in STAGES[STAGES.index(stage) :]:
                shutil.rmtree(directory.with_name(later), ignore_errors=True)
            world.remember(replaced)
        (directory / "checkpoints").mkdir(parents=True, exist_ok=True)
    if not config.resume and not world.num_restarts and _is_over(directory):
        raise ConfigError(
            f"run {run} has finished {stage} already: choose another --run, or pass --overwrite"
        )
    return directory


def _is_over(directory: Path) -> bool:
    """Whether nothing is left to do in a stage; pretraining goes on from an imported model."""
    imported = import_in(directory) if directory.name == STAGES[0] else None
    if imported is not None and is_import(read_object(imported / STATE)):
        return False
    return is_finished(directory)


def train_stage(config: StageConfig, work: StageWork, display: Display) -> Finished:
    """Train and save, from where an earlier part of the run has come to.

    log.txt is added to by the first rank, log.rank1.txt by the next, and so on.
    """
    directory, world = run_directory(config.home, work.run) / work.name, current_world()
    with world.together(display.note):
        if world.size > 1:  # before anything is deleted, and before anything is waited for
            check_alike(world, _facts(config, work))
        # It looks for its data, which may be nowhere.
        examine = examiner(config, lambda: _whole(work), work.tokenizer, directory, display)
    open_stage(config, work.run, work.name)  # last: with --overwrite it deletes
    log = "log.txt" if world.is_first else f"log.rank{world.rank}.txt"
    with display.logging_to(directory / log), world.together(display.note):
        return _train(config, work, directory, display, examine)


def _train(
    config: StageConfig,
    work: StageWork,
    directory: Path,
    display: Display,
    examine: Callable[[int], dict[str, float]] | None,
) -> Finished:
    world, plan = current_world(), work.plan
    retention = Retention(keep_last=config.keep_last, keep_every=config.keep_every)
    keeper = RunKeeper(
        directory=directory,
        model=work.model,
        tokenizer=work.tokenizer,
        optimizer=work.optimizer,
        about={
            "stage": work.name,
            "parent": work.parent,
            "batch_tokens": plan.batch_tokens,
        },
        identity=_identity(config, work),
        saver=Saver(directory / "checkpoints", retention),
        world=world,
        display=display,
    )
    progress = keeper.resume(allow_changed=config.allow_changed)
    if world.size > 1:
        check_alike(world, _state(work, progress))
    _tell(config, work, directory, progress, display)
    metrics = fit(
        Stage(
            name=work.name,
            model=work.model,
            optimizer=work.optimizer,
            stream=work.stream,
            plan=plan,
            validate=work.validate,
            examine=examine,
            keeper=keeper,
            is_padded=work.is_padded,
            metrics_path=directory / "metrics.jsonl",
            display=display,
            progress=progress or Progress(),
            max_skips=config.max_skips,
            world=world,
            replanned=lambda plan: _write_plan(directory, plan),
        )
    )
    world.wait()  # until the first rank has saved
    return Finished(
        run=work.run,
        stage=work.name,
        checkpoint=find_steps(directory)[plan.num_steps],
        metrics=metrics,
        model=work.model,
        tokenizer=work.tokenizer,
    )


def _whole(work: StageWork) -> GPT:
    """The model, put together where it is sharded."""
    if not work.optimizer.is_sharded:
        return work.model
    with torch.device(work.model.embedding.weight.device):
        whole = GPT(work.model.config)
    whole.load_state_dict(dict(work.optimizer.masters()))
    return whole.to(work.optimizer.compute_dtype).eval()


def _tell(
    config: StageConfig,
    work: StageWork,
    directory: Path,
    progress: Progress | None,
    display: Display,
) -> None:
    """What is about to happen, on the screen and in config.json and plan.json."""
    world = current_world()
    if world.size > 1:
        display.note(f"  {world.name} of {world.size}, start {world.num_restarts + 1}")
    if world.is_first:
        with writing(directory / "config.json"):
            write_json_atomically(directory / "config.json", _provenance(config, work))
        _write_plan(directory, work.plan)
    _show(work.plan.lines(), display)
    if progress is not None:
        display.note(f"  going on after step {progress.step} of {work.plan.num_steps}")


def dry_run(
    config: StageConfig,
    plan: Plan,
    model_config: GPTConfig,
    display: Display,
    scale: Scale | None = None,
) -> None:
    """The plan with what it will take, here or on the ranks of `scale`, printed; nothing is
    written."""
    if scale is not None:
        _show([*plan.lines(), *scale.lines()], display)
        return
    device = best_device(config.device)
    estimates = estimate_lines(
        model_config,
        flops_per_token=plan.flops_per_token,
        num_tokens=plan.num_steps * plan.batch_tokens,
        device_tokens=plan.device_batch_rows * plan.context_len,
        flops_per_s=peak_flops(device, compute_dtype(device, config.dtype)),
        num_ranks=current_world().size,
        is_sharded=plan.is_sharded,
        recomputes=plan.recomputes,
    )
    _show([*plan.lines(), *estimates], display)


def _show(lines: Sequence[tuple[str, str, str]], display: Display) -> None:
    for name, value, reason in lines:
        display.note(f"  {name:<16}{value}" + (f"   ({reason})" if reason else ""))


def _write_plan(directory: Path, plan: Plan) -> None:
    if current_world().is_first:
        with writing(directory / "plan.json"):
            write_json_atomically(directory / "plan.json", plan.to_json())


def _identity(config: StageConfig, work: StageWork) -> dict[str, object]:
    """What decides the numbers of a run, and so must be the same when it goes on."""
    plan = work.plan
    identity = {
        "model": work.model.config.to_json(),
        "tokenizer": work.tokenizer.content_hash,
        "data": work.stream.fingerprint,
        "parent": work.parent_name,
        "seed": config.seed,
        "dtype": str(work.optimizer.compute_dtype).removeprefix("torch."),
        "plan": {
            "num_steps": plan.num_steps,
            "batch_rows": plan.batch_rows,
            "lr_scale": plan.lr_scale,
            "schedule": to_json_dict(plan.schedule),
        },
    }
    plain: dict[str, object] = json.loads(json.dumps(identity))  # as it comes back from state.json
    return plain


def _facts(config: StageConfig, work: StageWork) -> dict[str, object]:
    """What must be the same on all ranks: they would train different models, or wait for each other
    in different places."""
    settings = to_json_dict(config)
    for name in ("home", "device"):  # may lie elsewhere on another machine
        settings.pop(name, None)
    return {
        **_identity(config, work),
        "settings": settings,
        "validation": work.validation,
        "first weights": work.optimizer.digest(),
        "nanochat": nanochat.__version__,
        "torch": torch.__version__,
    }


def _state(work: StageWork, progress: Progress | None) -> dict[str, object]:
    """What must be the same once every rank has looked for a checkpoint to go on from."""
    return {
        "resumes after step": progress.step if progress else 0,
        "weights": work.optimizer.digest(),
    }


def _provenance(config: StageConfig, work: StageWork) -> dict[str, object]:
    return {
        "stage": work.name,
        "settings": to_json_dict(config),
        "model": work.model.config.to_json(),
        "tokenizer_hash": work.tokenizer.content_hash,
        "parent": work.parent,
        "nanochat": nanochat.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.platform(),
    }

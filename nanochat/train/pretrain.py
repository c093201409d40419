"""Text -> a base model.   in: PretrainConfig, token stores   out: Finished   who calls: cli

Read next: loop.py, plan.py.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from nanochat.batches.chapters import Chapters
from nanochat.batches.store import Store
from nanochat.checkpoint.format import CONFIG, TOKENIZER
from nanochat.checkpoint.lineage import import_in
from nanochat.checkpoint.manifest import read_object
from nanochat.checkpoint.resolve import run_directory
from nanochat.common.device import best_device, compute_dtype, peak_flops, total_memory_bytes
from nanochat.common.dist import current_world
from nanochat.common.errors import ConfigError
from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.model.init import initialize
from nanochat.tokenizer.tokenizer import Tokenizer
from nanochat.train.config import PretrainConfig
from nanochat.train.display import Display
from nanochat.train.fleet import Fleet, fleet_here, fleet_named
from nanochat.train.plan import Hardware, Plan, plan_pretrain
from nanochat.train.recipes import RECIPES, generation_of
from nanochat.train.scale import Scale, scale_of
from nanochat.train.stages import Finished, StageWork, hardware_of, prepared, train_stage
from nanochat.train.texts import TextSource, source_lines, stream_of, validator_of
from nanochat.train.validation import identity_of

__all__ = [
    "imported_checkpoint",
    "model_config_of",
    "plan_of",
    "pretrain",
    "pretrain_on",
    "scale_of_run",
]


def imported_checkpoint(config: PretrainConfig) -> Path | None:
    """The newest checkpoint of a run that began with an import; None of any other run."""
    if config.overwrite and not current_world().num_restarts:
        return None
    return import_in(run_directory(config.home, _run_of(config)) / "pretrain")


def model_config_of(config: PretrainConfig, vocab_size: int) -> GPTConfig:
    """The model that a pretraining config asks for; in a run that was imported, the model that is
    there.

    Raises: ConfigError if an imported model has another depth or vocabulary.
    """
    if (path := imported_checkpoint(config)) is not None:
        return _imported_model(config, path, vocab_size)
    pattern = config.window_pattern
    if pattern is None and config.generation != "v1" and _hardware(config).device_type != "cuda":
        pattern = (
            "L"  # short contexts gain nothing from windows, and plain attention has a fused kernel
        )
    return GPTConfig.from_depth(
        config.depth,
        vocab_size=vocab_size,
        context_len=config.context_len,
        head_dim=config.head_dim,
        aspect_ratio=config.aspect_ratio,
        window_pattern=pattern,
        generation=config.generation,
    )


def plan_of(config: PretrainConfig, vocab_size: int) -> tuple[GPTConfig, Plan]:
    """The model and all numbers of the run, on this machine or those it is planned for."""
    model_config = model_config_of(config, vocab_size)
    return model_config, plan_pretrain(config, model_config, _hardware(config))


def scale_of_run(config: PretrainConfig, model_config: GPTConfig, plan: Plan) -> Scale:
    """What each of the processes that the run is planned for holds, sends and waits for."""
    assert config.plan_world_size is not None, "planned for no number of processes"
    fleet = _fleet(config)
    return scale_of(
        model_config,
        plan,
        fleet,
        config.plan_world_size,
        compute_bytes=_planned_dtype(config).itemsize,
    )


def pretrain(
    config: PretrainConfig,
    tokenizer: Tokenizer,
    train: Store | Chapters,
    validation: Store,
    display: Display,
) -> Finished:
    """A base model trained from nothing on the documents of `train`."""
    source = TextSource(name="text", train=train, validation=validation)
    return pretrain_on(config, tokenizer, [source], display)


def pretrain_on(
    config: PretrainConfig, tokenizer: Tokenizer, sources: Sequence[TextSource], display: Display
) -> Finished:
    """A base model trained from nothing on a text, or on several by weight."""
    model_config, plan = plan_of(config, tokenizer.vocab_size)
    generation = generation_of(model_config)
    with torch.device("cpu" if plan.is_sharded else best_device(config.device)):
        model = GPT(model_config)
    initialize(model, generation, config.seed)
    work = StageWork(
        name="pretrain",
        run=_run_of(config),
        model=model,
        tokenizer=tokenizer,
        optimizer=prepared(config, plan, model, RECIPES[generation]),
        stream=stream_of(sources, config, plan),
        plan=plan,
        validate=validator_of(sources, config, plan, model, tokenizer.token_bytes),
        validation=identity_of([source.validation for source in sources]),
    )
    if imported_checkpoint(config) is not None:
        display.note(
            f"  run {work.run} began with an import: width, heads, windows, context and generation "
            "are the imported model's"
        )
    for line in source_lines(sources, plan):
        display.note(f"  {line}")
    return train_stage(config, work, display)


def _run_of(config: PretrainConfig) -> str:
    return config.run or f"d{config.depth}"


def _imported_model(config: PretrainConfig, path: Path, vocab_size: int) -> GPTConfig:
    """Windows, heads and all else as in the checkpoint: no flag can say everything there is."""
    model_config = GPTConfig.from_json(read_object(path / CONFIG))
    if model_config.num_layers != config.depth:
        raise ConfigError(
            f"run {_run_of(config)} has an imported model of {model_config.num_layers} layers, "
            f"--depth is {config.depth}: pass --depth {model_config.num_layers} to go on with it, "
            "--overwrite to begin anew, or another --run"
        )
    if model_config.vocab_size != vocab_size:
        raise ConfigError(
            f"run {_run_of(config)} has an imported model of {model_config.vocab_size} tokens, the "
            f"tokenizer has {vocab_size}: pass --tokenizer {path / TOKENIZER}"
        )
    return model_config


def _hardware(config: PretrainConfig) -> Hardware:
    """The machine, or one of those that the run is planned for."""
    here = hardware_of(config)
    if config.plan_world_size is None:
        return here
    fleet = _fleet(config)
    return replace(
        here,
        device_type=fleet.device_type,
        memory_bytes=fleet.memory_bytes,
        num_ranks=config.plan_world_size,
    )


def _fleet(config: PretrainConfig) -> Fleet:
    device = best_device(config.device)
    dtype = _planned_dtype(config)
    link = None if config.plan_link_gb_s is None else config.plan_link_gb_s * 1e9
    here = None
    if config.plan_device == "here":
        here = fleet_here(device.type, total_memory_bytes(device), peak_flops(device, dtype))
    return fleet_named(
        config.plan_device,
        here=here,
        is_narrow=dtype == torch.bfloat16,
        between_bytes_per_s=link,
    )


def _planned_dtype(config: PretrainConfig) -> torch.dtype:
    """Named devices multiply bfloat16 fast, whatever this machine does."""
    if config.plan_device == "here":
        return compute_dtype(best_device(config.device), config.dtype)
    return torch.float32 if config.dtype == "float32" else torch.bfloat16

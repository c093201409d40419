"""A stage that goes on from another.   in: a model reference, conversations   out: Finished
who calls: midtrain.py, sft.py

Weights and, where they were saved, the optimizer's moments are taken over; rates and schedule are
the stage's own.
Read next: stages.py, plan.py (plan_chat_stage).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nanochat.batches.store import Store
from nanochat.batches.stream import ConversationStream, validation_batches
from nanochat.checkpoint.resolve import read, resolve, restore
from nanochat.common.device import best_device
from nanochat.common.errors import ConfigError
from nanochat.train.config import MidtrainConfig
from nanochat.train.display import Display
from nanochat.train.loss import bits_per_byte
from nanochat.train.plan import REFERENCE_BATCH_TOKENS, plan_chat_stage
from nanochat.train.recipes import RECIPES, generation_of
from nanochat.train.stages import Finished, StageWork, dry_run, hardware_of, prepared, train_stage

__all__ = ["ChatStage", "epochs_of", "run_of", "train_on_conversations"]

VALIDATION_ROWS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatStage:
    """What tells mid-training and SFT apart."""

    name: str
    decay_fraction: float
    is_padded: bool
    stream: Callable[[int], ConversationStream]
    """The rows, for a context length."""


def epochs_of(config: MidtrainConfig) -> int | None:
    """Times through the conversations; None, as often as it takes, where the steps are given."""
    return config.num_epochs if config.num_steps is None else None


def train_on_conversations(
    config: MidtrainConfig, stage: ChatStage, validation: Store | None, display: Display
) -> Finished:
    """Train the model of `config.model` on the stage's rows.

    With --dry-run the plan is printed, and what is returned is the model as it was.
    Raises: CheckpointError if it is not there; ConfigError if it is a directory and no --run is
            named.
    """
    path = resolve(config.model, config.home, before=stage.name, with_optimizer=True)
    checkpoint = read(path, with_optimizer=True)
    run = config.run or run_of(config.model)
    tokenizer = checkpoint.tokenizer
    model = restore(checkpoint, str(path))
    stream = stage.stream(model.config.context_len)
    display.note(f"  {stream.report()}")
    plan = plan_chat_stage(
        config,
        model.config,
        hardware_of(config),
        stream.num_rows_per_epoch * config.num_epochs,
        batch_tokens=int(checkpoint.state.get("batch_tokens", REFERENCE_BATCH_TOKENS)),
        decay_fraction=stage.decay_fraction,
    )
    if config.dry_run:
        dry_run(config, plan, model.config, display)
        return Finished(
            run=run, stage=stage.name, checkpoint=path, metrics=[], model=model, tokenizer=tokenizer
        )
    if not plan.is_sharded:
        model = model.to(best_device(config.device))
    optimizer = prepared(config, plan, model, RECIPES[generation_of(model.config)])
    if checkpoint.optimizer is not None:
        optimizer.load_state(checkpoint.optimizer)

    def validate() -> float:
        assert validation is not None, "validate is only handed on with validation text"
        batches = validation_batches(
            validation, plan.context_len, config.eval_tokens, VALIDATION_ROWS
        )
        return bits_per_byte(model, batches, tokenizer.token_bytes)

    work = StageWork(
        name=stage.name,
        run=run,
        model=model,
        tokenizer=tokenizer,
        optimizer=optimizer,
        stream=stream,
        plan=plan,
        validate=validate if validation is not None else None,
        is_padded=stage.is_padded,
        parent=str(path),
    )
    return train_stage(config, work, display)


def run_of(reference: str) -> str:
    """The run that a reference such as d12/midtrain@500 belongs to.

    Raises: ConfigError for a directory or a Hub repository, which have none.
    """
    if reference.startswith("hf:"):
        raise ConfigError(f"model {reference!r} belongs to no run here: name one with --run")
    run = reference.split("@")[0].split("/")[0]
    if not run or Path(reference).expanduser().is_dir():
        raise ConfigError(f"model {reference!r} is a directory: name the run to write with --run")
    return run

"""A stage that goes on from another.   in: a model reference, conversations   out: Finished
who calls: midtrain.py, sft.py

Weights and, where they were saved, the optimizer's moments are taken over; rates and schedule are
the stage's own.
Read next: stages.py, plan.py (plan_chat_stage), validation.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nanochat.batches.store import Store
from nanochat.batches.stream import ConversationStream
from nanochat.checkpoint.resolve import read, resolve, restore
from nanochat.common.device import best_device
from nanochat.common.errors import ConfigError
from nanochat.train.config import MidtrainConfig
from nanochat.train.display import Display
from nanochat.train.plan import REFERENCE_BATCH_TOKENS, plan_chat_stage
from nanochat.train.recipes import RECIPES, generation_of
from nanochat.train.stages import Finished, StageWork, dry_run, hardware_of, prepared, train_stage
from nanochat.train.validation import HeldOut, Meter, identity_of, mean_of, named

__all__ = ["ChatStage", "epochs_of", "run_of", "train_on_conversations"]


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
    config: MidtrainConfig,
    stage: ChatStage,
    validation: Store | None,
    held_out: Sequence[HeldOut],
    display: Display,
) -> Finished:
    """Train the model of `config.model` on the stage's rows.

    Validated are the text `validation`, as val_bpb, and conversations, as val_bpb/NAME; without
    text their mean is val_bpb.
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

    meter = Meter(model=model, context_len=plan.context_len, token_bytes=tokenizer.token_bytes)
    measured = _measured(held_out, meter, config, display)
    work = StageWork(
        name=stage.name,
        run=run,
        model=model,
        tokenizer=tokenizer,
        optimizer=optimizer,
        stream=stream,
        plan=plan,
        validate=_validator(validation, measured, meter, config.eval_tokens),
        validation=identity_of(
            [*([] if validation is None else [validation]), *(each.store for each in held_out)]
        ),
        is_padded=stage.is_padded,
        parent=str(path),
    )
    return train_stage(config, work, display)


def _measured(
    held_out: Sequence[HeldOut], meter: Meter, config: MidtrainConfig, display: Display
) -> list[HeldOut]:
    """Those that say anything within the context; the others are named."""
    measured = []
    for source in held_out:
        if meter.can_measure(source, config.eval_tokens):
            measured.append(source)
        else:
            display.note(
                f"  {source.name}: no answer that is held out begins within {meter.context_len} "
                "tokens: it is not validated"
            )
    return measured


def _validator(
    text: Store | None, chats: Sequence[HeldOut], meter: Meter, num_tokens: int
) -> Callable[[], dict[str, float]] | None:
    """What measures the text on so many tokens, and the conversations together on as many; None
    where there is neither."""
    if text is None and not chats:
        return None

    def validate() -> dict[str, float]:
        each = meter.each(chats, num_tokens)
        if text is not None:
            return {"val_bpb": meter.bits_per_byte(text, num_tokens), **named(each)}
        return {"val_bpb": mean_of(chats, each), **named(each)}

    return validate


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

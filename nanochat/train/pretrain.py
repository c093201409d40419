"""Text -> a base model.   in: PretrainConfig, token stores   out: Finished   who calls: cli

Read next: loop.py, plan.py.
"""

from typing import Literal

import torch

from nanochat.batches.store import Store
from nanochat.batches.stream import PackedStream, validation_batches
from nanochat.common.device import best_device
from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.model.init import initialize
from nanochat.tokenizer.tokenizer import Tokenizer
from nanochat.train.config import PretrainConfig
from nanochat.train.display import Display
from nanochat.train.loss import bits_per_byte
from nanochat.train.plan import Plan, plan_pretrain
from nanochat.train.recipes import RECIPES
from nanochat.train.stages import Finished, StageWork, hardware_of, prepared, train_stage

__all__ = ["model_config_of", "plan_of", "pretrain"]

VALIDATION_ROWS = 8


def model_config_of(config: PretrainConfig, vocab_size: int) -> GPTConfig:
    """The model that a pretraining config asks for."""
    pattern = config.window_pattern
    if pattern is None and config.generation != "v1" and hardware_of(config).device_type != "cuda":
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
    """The model and all numbers of the run, on this machine."""
    model_config = model_config_of(config, vocab_size)
    return model_config, plan_pretrain(config, model_config, hardware_of(config))


def pretrain(
    config: PretrainConfig, tokenizer: Tokenizer, train: Store, validation: Store, display: Display
) -> Finished:
    """A base model trained from nothing on the documents of `train`."""
    run = config.run or f"d{config.depth}"
    model_config, plan = plan_of(config, tokenizer.vocab_size)
    with torch.device("cpu" if plan.is_sharded else best_device(config.device)):
        model = GPT(model_config)
    initialize(model, config.generation, config.seed)
    optimizer = prepared(config, plan, model, RECIPES[config.generation])

    def validate() -> float:
        batches = validation_batches(
            validation, plan.context_len, config.eval_tokens, VALIDATION_ROWS
        )
        return bits_per_byte(model, batches, tokenizer.token_bytes)

    work = StageWork(
        name="pretrain",
        run=run,
        model=model,
        tokenizer=tokenizer,
        optimizer=optimizer,
        stream=PackedStream(
            train, plan.context_len, seed=config.seed, remainders=_remainders(config, train, plan)
        ),
        plan=plan,
        validate=validate,
    )
    return train_stage(config, work, display)


def _remainders(config: PretrainConfig, train: Store, plan: Plan) -> Literal["drop", "reuse"]:
    if config.remainders is not None:
        return config.remainders
    # Rows that begin where a document begins train better on the same kind of rows (-0.014 bpb at
    # 300 steps of depth 4); best fit drops a third to a half of the tokens for it.
    return "drop" if train.num_tokens >= 2 * plan.num_steps * plan.batch_tokens else "reuse"

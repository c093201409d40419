"""Texts -> what pretraining reads and validates on.   in: TextSource   out: a stream, a validator
who calls: pretrain.py

Read next: batches/stream.py (one text), batches/mixing.py (several by weight), validation.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from nanochat.batches.chapters import Chapters
from nanochat.batches.mixing import Ingredient, MixedStream
from nanochat.batches.store import Store
from nanochat.batches.stream import PackedStream
from nanochat.model.gpt import GPT
from nanochat.train.config import PretrainConfig
from nanochat.train.plan import Plan
from nanochat.train.validation import HeldOut, Meter, mean_of, named, parts_of

__all__ = ["TextSource", "source_lines", "stream_of", "validator_of"]


@dataclass(frozen=True, kw_only=True)
class TextSource:
    """A text to train on, and what is held out of it."""

    name: str
    train: Store | Chapters
    validation: Store
    weight: float = 1.0
    """Its share of the tokens of a run, compared with the others'."""


def stream_of(
    sources: Sequence[TextSource], config: PretrainConfig, plan: Plan
) -> PackedStream | MixedStream:
    """The stream of the only source, or of several by their weights."""
    streams = [
        PackedStream(
            source.train,
            plan.context_len,
            seed=config.seed,
            remainders=config.remainders or _remainders(source.train, share * _tokens_of(plan)),
        )
        for source, share in zip(sources, _shares(sources), strict=True)
    ]
    if len(streams) == 1:
        return streams[0]
    ingredients = [
        Ingredient(name=source.name, stream=stream, weight=source.weight)
        for source, stream in zip(sources, streams, strict=True)
    ]
    return MixedStream(ingredients, seed=config.seed)


def source_lines(sources: Sequence[TextSource], plan: Plan) -> list[str]:
    """What each of several sources contributes to a run: a line for the user."""
    if len(sources) == 1:
        return []
    return [
        f"{source.name}: {share:.1%} of the tokens, "
        f"{share * _tokens_of(plan) / source.train.num_tokens:.2f} times through it"
        for source, share in zip(sources, _shares(sources), strict=True)
    ]


def validator_of(
    sources: Sequence[TextSource],
    config: PretrainConfig,
    plan: Plan,
    model: GPT,
    token_bytes: Sequence[int],
) -> Callable[[], dict[str, float]]:
    """What measures bits per byte of the text that is held out.

    Of several sources each one's too, as val_bpb/NAME; val_bpb is their mean by weight.  Of several
    prepared directories, which are one source, the same names share a second `eval_tokens`.
    """
    meter = Meter(model=model, context_len=plan.context_len, token_bytes=token_bytes)
    parts = parts_of(sources[0].validation) if len(sources) == 1 else []
    parts = [part for part in parts if meter.can_measure(part, config.eval_tokens)]
    held_out = [
        HeldOut(name=source.name, store=source.validation, weight=source.weight)
        for source in sources
    ]

    def validate() -> dict[str, float]:
        each = {
            source.name: meter.bits_per_byte(source.store, config.eval_tokens)
            for source in held_out
        }
        if len(each) == 1:
            beside = meter.each(parts, config.eval_tokens)
            return {"val_bpb": next(iter(each.values())), **named(beside)}
        return {"val_bpb": mean_of(held_out, each), **named(each)}

    return validate


def _shares(sources: Sequence[TextSource]) -> list[float]:
    total = sum(source.weight for source in sources)
    return [source.weight / total for source in sources]


def _tokens_of(plan: Plan) -> int:
    return plan.num_steps * plan.batch_tokens


def _remainders(train: Store | Chapters, num_tokens: float) -> Literal["drop", "reuse"]:
    # Rows that begin where a document begins train better on the same kind of rows (-0.014 bpb at
    # 300 steps of depth 4); best fit drops a third to a half of the tokens for it.
    return "drop" if train.num_tokens >= 2 * num_tokens else "reuse"

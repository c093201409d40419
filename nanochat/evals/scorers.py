"""Samples -> token regions; log-likelihoods -> verdicts.   in: Sample, an encoder   out: Prepared,
Verdict   who calls: examinee.py, remote.py   (imports no torch)

What is scored of a text, with <|bos|> in front:

    kind               --compat nanochat                        default
    multiple_choice    from where the options' tokens differ    the whole continuation
    schema             the tokens that all texts end with       the same
    language_modeling  what follows the stripped prompt         the same
    letter_choice      the letter after the rendered chat       the same
The lowest mean loss wins, the first where several tie; a continuation counts when every token of it
is the likeliest.  Where karpathy/nanochat has a defect, nanochat mode has it too and default mode
does not: an option that begins all others has an empty region (NaN), of identical options only the
first can be right, a token that spans prompt and continuation ends the run, a text beyond the
context is not cut.
Source: karpathy/nanochat nanochat/core_eval.py at 92d63d4.
Read next: core.py (the texts), engine/groups.py (who computes the likelihoods).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from nanochat.common.errors import EvalError
from nanochat.common.messages import Conversation
from nanochat.common.prefix import num_shared
from nanochat.evals.task import Kind, Mode, Sample, Verdict

__all__ = ["FLAGS", "Encoder", "Prepared", "Scored", "num_common", "prepare", "verdict"]

FLAGS = {
    "empty_region": "an option begins all others, so its loss is NaN as karpathy/nanochat has it",
    "identical": "the winner has the same text as the right option, and counts as right",
    "differs": "karpathy/nanochat's procedure gives another verdict (--compat nanochat)",
    "separate": "the prompt's last token spans the continuation: both were encoded apart",
    "cut": "the text is longer than the context, and lost its beginning",
    "parts": "the document is longer than the server's context, and was asked in parts",
    "no_tools": "answered without the calculator that the task offers, so the score may be lower",
    "fewer_shots": "so few rows are asked (limit) that fewer examples than the task's stand before",
    "timeout": "a program ran out of time, perhaps on a busy machine; the next run judges again",
}
"""What may be particular about a sample, as a note counts it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoder:
    """How one model reads texts."""

    bos: int
    encode_batch: Callable[[Sequence[str]], list[list[int]]]
    render: Callable[[Conversation], list[int]]
    """A conversation up to where the answer begins."""
    context_len: int
    can_slide: bool = True
    """Whether the model goes on beyond its context, as karpathy/nanochat's does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """One sample as tokens."""

    sample: Sample
    kind: Kind
    mode: Mode
    texts: list[list[int]]
    """One for each choice."""
    places: list[int]
    """The first scored token of each; its length where nothing is scored."""
    compat_places: list[int]
    """The same as karpathy/nanochat has it."""
    flags: tuple[str, ...] = ()


class Scored(NamedTuple):
    """The scored tokens of one text: how likely, which they are, and which would be likeliest."""

    logprobs: list[float]
    actual: Sequence[int | str]
    best: Sequence[int | str]
    margins: list[float]

    @property
    def mean_loss(self) -> float:
        """Nats per token; NaN of nothing."""
        return -sum(self.logprobs) / len(self.logprobs) if self.logprobs else math.nan


def prepare(samples: Sequence[Sample], kind: Kind, mode: Mode, encoder: Encoder) -> list[Prepared]:
    """Every sample as tokens and regions.

    Raises: EvalError for a letter that is not one token, and in nanochat mode for a prompt that is
            no beginning of its text's tokens.
    """
    if kind == "letter_choice":
        found = [_letters(sample, mode, encoder) for sample in samples]
    else:
        wanted = [text for sample in samples for text in (*sample.texts, _before(sample, kind))]
        encoded = iter(encoder.encode_batch(wanted))
        found = []
        for sample in samples:
            texts = [[encoder.bos, *next(encoded)] for _ in sample.choices]
            made = _PREPARERS[kind](sample, mode, texts, [encoder.bos, *next(encoded)])
            found.append(_apart(made, encoder) if "separate" in made.flags else made)
    return [_fitted(each, encoder) for each in found]


def verdict(prepared: Prepared, scored: Sequence[Scored]) -> Verdict:
    """Who wins, and whether that is right."""
    if prepared.kind == "language_modeling":
        return _exact_match(prepared, scored[0])
    return _likeliest(prepared, scored)


# -------------------------------------------------------------------------------------- regions


def num_common(texts: Sequence[list[int]], *, from_end: bool = False) -> int:
    """How many tokens all texts begin with, or end with."""
    return num_shared([text[::-1] for text in texts] if from_end else texts)


def _before(sample: Sample, kind: Kind) -> str:
    """The text before the continuation; schema needs none."""
    if kind == "schema":
        return ""
    assert isinstance(sample.prompt, str), "a likelihood of a conversation"
    return sample.prompt.strip() if kind == "language_modeling" else sample.prompt


def _multiple_choice(
    sample: Sample, mode: Mode, texts: list[list[int]], before: list[int]
) -> Prepared:
    compat = [num_common(texts)] * len(texts)
    places = compat
    if mode == "default":
        # Where a token spans prompt and choice the region begins with it; it is never empty.
        places = [min(num_common([before, text]), len(text) - 1) for text in texts]
    is_empty = any(place == len(text) for place, text in zip(places, texts, strict=True))
    flags = ("empty_region",) if is_empty else ()
    return Prepared(
        sample=sample, kind="multiple_choice", mode=mode, texts=texts, places=places,
        compat_places=compat, flags=flags,
    )  # fmt: skip


def _schema(sample: Sample, mode: Mode, texts: list[list[int]], before: list[int]) -> Prepared:
    num_last = num_common(texts, from_end=True)
    # A text that is all suffix has nothing before its first token to predict it.
    nothing = mode == "nanochat"
    places = [len(text) - num_last or (len(text) if nothing else 1) for text in texts]
    return Prepared(
        sample=sample, kind="schema", mode=mode, texts=texts, places=places, compat_places=places
    )


def _language_modeling(
    sample: Sample, mode: Mode, texts: list[list[int]], before: list[int]
) -> Prepared:
    [text] = texts
    flags: tuple[str, ...] = ()
    if not (len(before) < len(text) and text[: len(before)] == before):
        if mode == "nanochat":
            raise EvalError(
                f"sample {sample.sample_id}: the {len(before)} tokens of the prompt do not begin "
                f"the {len(text)} of the whole text, where karpathy/nanochat ends with an "
                "assertion: run without --compat nanochat"
            )
        flags = ("separate",)
    return Prepared(
        sample=sample, kind="language_modeling", mode=mode, texts=[text], places=[len(before)],
        compat_places=[len(before)], flags=flags,
    )  # fmt: skip


def _apart(prepared: Prepared, encoder: Encoder) -> Prepared:
    """A text whose prompt and continuation are encoded one after the other."""
    sample = prepared.sample
    before = _before(sample, "language_modeling")
    parts = encoder.encode_batch([before, sample.texts[0][len(before) :]])
    text = [encoder.bos, *parts[0], *parts[1]]
    return replace(prepared, texts=[text], places=[1 + len(parts[0])])


def _letters(sample: Sample, mode: Mode, encoder: Encoder) -> Prepared:
    assert not isinstance(sample.prompt, str), "lettered answers to a text"
    prompt = encoder.render(sample.prompt)
    encoded = encoder.encode_batch(sample.choices)
    for letter, tokens in zip(sample.choices, encoded, strict=True):
        if len(tokens) != 1:
            raise EvalError(
                f"the letter {letter!r} is {len(tokens)} tokens in this vocabulary, expected one: "
                "its task cannot be scored by the likeliest letter"
            )
    places = [len(prompt)] * len(encoded)
    return Prepared(
        sample=sample, kind="letter_choice", mode=mode,
        texts=[[*prompt, *tokens] for tokens in encoded], places=places, compat_places=places,
    )  # fmt: skip


_PREPARERS: dict[str, Callable[[Sample, Mode, list[list[int]], list[int]], Prepared]] = {
    "multiple_choice": _multiple_choice,
    "schema": _schema,
    "language_modeling": _language_modeling,
}


def _fitted(prepared: Prepared, encoder: Encoder) -> Prepared:
    """Texts within the context; a model that can slide is given all of them in nanochat mode.

    karpathy/nanochat cuts each text by itself, and with it <|bos|>; by default all texts of a
    sample lose the same tokens, and what begins every text stays.
    """
    longest = max(len(text) for text in prepared.texts)
    num_cut = longest - encoder.context_len
    if num_cut <= 0 or (prepared.mode == "nanochat" and encoder.can_slide):
        return prepared
    if prepared.mode == "nanochat":
        cuts = [max(0, len(text) - encoder.context_len) for text in prepared.texts]
        texts = [text[cut:] for text, cut in zip(prepared.texts, cuts, strict=True)]
    else:
        num_kept = 2 if prepared.kind == "letter_choice" else 1  # bos, user_start
        cuts = [num_cut] * len(prepared.texts)
        texts = [text[:num_kept] + text[num_kept + num_cut :] for text in prepared.texts]
    places = [max(1, place - cut) for place, cut in zip(prepared.places, cuts, strict=True)]
    if any(place > len(text) for place, text in zip(places, texts, strict=True)):
        raise EvalError(
            f"sample {prepared.sample.sample_id}: its texts differ by more than the context of "
            f"{encoder.context_len}: it cannot be scored"
        )
    return replace(
        prepared, texts=texts, places=places, compat_places=places, flags=(*prepared.flags, "cut")
    )


# ------------------------------------------------------------------------------------- verdicts


def _exact_match(prepared: Prepared, scored: Scored) -> Verdict:
    wrong = [
        (actual, best)
        for actual, best in zip(scored.actual, scored.best, strict=True)
        if actual != best
    ]
    return Verdict(
        sample_id=prepared.sample.sample_id,
        score=float(not wrong),
        choice_logprobs=(sum(scored.logprobs),),
        choice_tokens=(len(scored.logprobs),),
        explanation=""
        if not wrong
        else f"{len(wrong)} of {len(scored.actual)} tokens are not the likeliest",
        details={
            "predicted": list(scored.best),
            "actual": list(scored.actual),
            "margins": [round(margin, 6) for margin in scored.margins],
            "num_prompt_tokens": prepared.places[0],
            **_flagged(prepared.flags),
        },
    )


def _likeliest(prepared: Prepared, scored: Sequence[Scored]) -> Verdict:
    sample, flags = prepared.sample, prepared.flags
    losses = [each.mean_loss for each in scored]
    # As it stands in the reference: with NaN in it the smallest depends on the order.
    choice = losses.index(min(losses))
    is_correct = choice == sample.gold
    if prepared.mode == "default":
        if not is_correct and sample.choices[choice] == sample.choices[int(sample.gold)]:
            is_correct, flags = True, (*flags, "identical")
        if "cut" not in flags and is_correct != (_compat_choice(prepared, scored) == sample.gold):
            flags = (*flags, "differs")
    return Verdict(
        sample_id=sample.sample_id,
        score=float(is_correct),
        choice=choice,
        output=sample.choices[choice],
        choice_logprobs=tuple(sum(each.logprobs) for each in scored),
        choice_tokens=tuple(len(each.logprobs) for each in scored),
        explanation="" if is_correct else f"chose {choice}, right is {sample.gold}",
        details={
            "mean_losses": [round(loss, 7) for loss in losses],
            "num_tokens": [len(text) for text in prepared.texts],
            **_flagged(flags),
        },
    )


def _compat_choice(prepared: Prepared, scored: Sequence[Scored]) -> int:
    """What wins where karpathy/nanochat scores, a part of what is scored by default."""
    losses = []
    for each, place, compat in zip(scored, prepared.places, prepared.compat_places, strict=True):
        tail = each.logprobs[max(0, compat - place) :]
        losses.append(-sum(tail) / len(tail) if tail else math.nan)
    return losses.index(min(losses))


def _flagged(flags: Sequence[str]) -> dict[str, list[str]]:
    return {"flags": list(flags)} if flags else {}

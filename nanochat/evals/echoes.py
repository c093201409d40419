"""A server's echo of a text -> how likely it is.   in: a completion with echo and logprobs
out: Echo, Verdict   who calls: remote.py   (imports no torch)

The tokens are the server's own, told as text with the place where each begins.
Read next: remote.py (who asks), scorers.py (what is scored of a text).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nanochat.common.errors import EvalError
from nanochat.evals.examinee import bits_verdict
from nanochat.evals.scorers import Prepared, Scored, num_common, verdict
from nanochat.evals.task import Kind, Mode, Sample, Verdict

__all__ = ["Echo", "echo_bits", "echo_of", "echo_verdict"]


@dataclass(frozen=True, slots=True)
class Echo:
    """One text as the server reads it: its tokens, where each begins in the text, how likely."""

    tokens: list[str]
    offsets: list[int]
    logprobs: list[float | None]
    best: list[str]


def echo_of(text: str, choice: Mapping[str, Any], url: str) -> Echo:
    """The text's own tokens: without what was generated after it, or stands before it.

    Raises: EvalError for a server that does not echo.
    """
    told = choice.get("logprobs")
    begin = str(choice.get("text", "")).find(text)
    if not told or begin < 0:
        raise EvalError(
            f"{url} does not echo a prompt with its likelihoods (echo, logprobs): likelihood tasks "
            "cannot be asked there, generative ones can"
        )
    offsets = [offset - begin for offset in told["text_offset"]]
    kept = [index for index, offset in enumerate(offsets) if 0 <= offset < len(text)]
    tops = told.get("top_logprobs") or []
    return Echo(
        tokens=[str(told["tokens"][index]) for index in kept],
        offsets=[offsets[index] for index in kept],
        logprobs=[told["token_logprobs"][index] for index in kept],
        best=[_best(told, tops, index) for index in kept],
    )


def _best(told: Mapping[str, Any], tops: Sequence[Any], index: int) -> str:
    """The likeliest token in a place; the token itself where nothing is likelier."""
    own, token = told["token_logprobs"][index], str(told["tokens"][index])
    top = tops[index] if index < len(tops) and tops[index] else {}
    if own is None or not top or own >= max(top.values()):
        return token
    return str(max(top, key=lambda each: top[each]))


def echo_verdict(
    sample: Sample, kind: Kind, mode: Mode, echoes: Sequence[Echo], flags: tuple[str, ...] = ()
) -> Verdict:
    """Who wins, by the server's own tokens; the regions are those of scorers.py.

    Raises: EvalError where a token without likelihood, such as a text's first, would be scored.
    """
    places = _places(sample, kind, mode, echoes)
    scored = []
    for echo, place in zip(echoes, places, strict=True):
        logprobs = echo.logprobs[place:]
        if any(each is None for each in logprobs):
            raise EvalError(f"sample {sample.sample_id}: a token without likelihood is scored")
        scored.append(
            Scored(
                [each for each in logprobs if each is not None],
                echo.tokens[place:],
                echo.best[place:],
                [],
            )
        )
    compat = places if kind != "multiple_choice" else [_common(echoes)] * len(echoes)
    prepared = Prepared(
        sample=sample,
        kind=kind,
        mode=mode,
        texts=[list(range(len(echo.tokens))) for echo in echoes],
        places=places,
        compat_places=compat,
        flags=flags,
    )
    return verdict(prepared, scored)


def _places(sample: Sample, kind: Kind, mode: Mode, echoes: Sequence[Echo]) -> list[int]:
    if kind == "schema":
        numbered = _numbered(echoes)
        num_last = num_common(numbered, from_end=True)
        return [max(1, len(echo.tokens) - num_last) for echo in echoes]
    if kind == "multiple_choice" and mode == "nanochat":
        return [_common(echoes)] * len(echoes)
    prompt = str(sample.prompt)
    length = len(prompt.rstrip()) if kind == "language_modeling" else len(prompt)
    return [_place_of(echo, length) for echo in echoes]


def _place_of(echo: Echo, length: int) -> int:
    """The token that reaches beyond the first `length` characters; never none."""
    ends = [*echo.offsets[1:], math.inf]
    place = next(index for index, end in enumerate(ends) if end > length)
    return min(place, len(echo.tokens) - 1)


def _common(echoes: Sequence[Echo]) -> int:
    return num_common(_numbered(echoes))


def _numbered(echoes: Sequence[Echo]) -> list[list[int]]:
    """Equal tokens, equal numbers."""
    numbers: dict[str, int] = {}
    return [[numbers.setdefault(token, len(numbers)) for token in each.tokens] for each in echoes]


def echo_bits(sample: Sample, parts: Sequence[tuple[str, Echo]]) -> Verdict:
    """Of all tokens that have a likelihood; without <|bos|> the first of each part has none and is
    left out."""
    nats, num_bytes, num_tokens = 0.0, 0, 0
    for text, echo in parts:
        known = [index for index, logprob in enumerate(echo.logprobs) if logprob is not None]
        begin = echo.offsets[known[0]] if known else len(text)
        nats -= math.fsum(logprob for logprob in echo.logprobs if logprob is not None)
        num_bytes += len(text[begin:].encode())
        num_tokens += len(known)
    found = bits_verdict(sample, nats, num_bytes, num_tokens)
    if len(parts) == 1:
        return found
    return replace(found, details={**found.details, "flags": ["parts"], "num_parts": len(parts)})

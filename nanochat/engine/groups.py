"""Texts that begin alike -> how likely they are.   in: groups of texts   out: TextScore
who calls: engine.py (score_groups)

What the texts of a group share is computed once, and groups are laid end to end, so that no matrix
is padded and none is small.  Nothing is kept: there are no blocks of memory, nothing is scheduled.
The last token of a text is never fed, and the last layer computes only what is asked about: the
likelihood of one token after a prompt costs less than the prompt's own forward pass.
Read next: forward.py (trunk), attend_text.py; scoring.py (the same beside running requests).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from nanochat.common.prefix import num_shared
from nanochat.common.transfer import send
from nanochat.engine.attend_text import attend_masked, attend_text
from nanochat.engine.forward import Forward
from nanochat.engine.kvmemory import Window
from nanochat.engine.request import NO_TOKEN

__all__ = ["Group", "TextScore", "score_groups"]

BATCH_TOKENS = {"cpu": 1024, "cuda": 16384, "mps": 4096}  # on a CPU what its caches hold
SCORED_AT_ONCE = 256  # rows of logits: 32 MiB at a vocabulary of 32,768

Group = Sequence[tuple[Sequence[int], int]]
"""(tokens, place of the first token that is scored) of texts that begin alike."""


class TextScore(NamedTuple):
    """How likely the last tokens of a text are, each after all before it."""

    logprobs: list[float]
    best: list[int]
    """The likeliest token in the place of each."""
    margins: list[float]
    """By how much it is likelier than the second, in nats."""


@dataclass(eq=False, slots=True)
class _Laid:
    """One group as rows: the stem, then what each distinct text has beyond it."""

    texts: list[tuple[tuple[int, ...], int]]
    num_stem: int
    offsets: list[int]
    """The row of each text's first token beyond the stem."""
    num_rows: int
    wanted: list[int]
    """Rows whose logits are needed, rising."""
    tokens: list[int] = field(default_factory=list)
    """Of every row."""
    previous: list[int] = field(default_factory=list)
    """The token before it, or NO_TOKEN."""
    positions: list[int] = field(default_factory=list)
    branches: list[int] = field(default_factory=list)
    """Which text it belongs to; -1: all of them."""
    masks: dict[tuple[Window, bool], Tensor] = field(default_factory=dict)

    def row(self, text: int, position: int) -> int:
        """Where a text's token lies."""
        if position < self.num_stem:
            return position
        return self.offsets[text] + position - self.num_stem

    def add(self, text: Sequence[int], begin: int, end: int, branch: int) -> None:
        """Rows for so many tokens of a text."""
        self.tokens += text[begin:end]
        self.previous += text[begin - 1 : end - 1] if begin else (NO_TOKEN, *text[: end - 1])
        self.positions += range(begin, end)
        self.branches += [branch] * (end - begin)


def score_groups(forward: Forward, groups: Sequence[Group]) -> list[list[TextScore]]:
    """The score of every text, in order; a place at a text's end scores nothing.

    Every text has at least two tokens; every place is at least 1.
    """
    results: list[list[TextScore]] = []
    for batch in _batches(groups, BATCH_TOKENS[forward.device.type]):
        laid = [_lay(group) for group in batch]
        found = _score(forward, laid)
        for group, one, scores in zip(batch, laid, found, strict=True):
            by_text = dict(zip(one.texts, scores, strict=True))
            results.append([by_text[tuple(tokens), place] for tokens, place in group])
    return results


def _batches(groups: Iterable[Group], most_tokens: int) -> Iterator[list[Group]]:
    batch: list[Group] = []
    num_tokens = 0
    for group in groups:
        size = max(len(tokens) for tokens, _ in group)
        if batch and num_tokens + size > most_tokens:
            yield batch
            batch, num_tokens = [], 0
        batch.append(group)
        num_tokens += size
    if batch:
        yield batch


def _lay(group: Group) -> _Laid:
    texts = list(dict.fromkeys((tuple(tokens), place) for tokens, place in group))
    num_stem = num_shared([tokens[:-1] for tokens, _ in texts])
    offsets, end = [], num_stem
    for tokens, _ in texts:
        offsets.append(end)
        end += len(tokens) - 1 - num_stem
    laid = _Laid(texts, num_stem, offsets, end, [])
    wanted = {
        laid.row(index, position)
        for index, (tokens, place) in enumerate(texts)
        for position in range(place - 1, len(tokens) - 1)
    }
    laid.wanted += sorted(wanted)
    if num_stem:
        laid.add(texts[0][0], 0, num_stem, -1)
    for index, (tokens, _) in enumerate(texts):
        if num_stem < len(tokens) - 1:
            laid.add(tokens, num_stem, len(tokens) - 1, index)
    return laid


@torch.inference_mode()
def _score(forward: Forward, batch: list[_Laid]) -> list[list[TextScore]]:
    starts = [0]
    for laid in batch:
        starts.append(starts[-1] + laid.num_rows)
    wanted = [
        start + row for laid, start in zip(batch, starts, strict=False) for row in laid.wanted
    ]
    if not wanted:
        return [[TextScore([], [], []) for _ in laid.texts] for laid in batch]
    config, device = forward.config, forward.device
    wanted_rows = send(wanted, device)

    def attend(layer: int, q_NHE: Tensor, k_NKE: Tensor, v_NKE: Tensor) -> Tensor:
        dtype, K = forward.dtype, config.num_kv_heads
        N, _, E = q_NHE.shape
        q_KNGE = q_NHE.to(dtype).reshape(N, K, -1, E).transpose(0, 1)
        k_KNE, v_KNE = k_NKE.to(dtype).transpose(0, 1), v_NKE.to(dtype).transpose(0, 1)
        is_last = layer == config.num_layers - 1
        parts = []
        for laid, start in zip(batch, starts, strict=False):
            span = slice(start, start + laid.num_rows)
            parts += _attend_group(
                laid, q_KNGE[:, span], k_KNE[:, span], v_KNE[:, span],
                window=config.windows[layer], scale=forward.scale, is_last=is_last,
            )  # fmt: skip
        return torch.cat(parts, dim=1).transpose(0, 1).flatten(1)

    tokens, previous, positions = (
        list(chain.from_iterable(getattr(laid, name) for laid in batch))
        for name in ("tokens", "previous", "positions")
    )
    hidden_ND = forward.trunk(tokens, previous, positions, attend, wanted_rows)
    return _read(forward, hidden_ND, batch)


def _attend_group(
    laid: _Laid,
    q_KNGE: Tensor,
    k_KNE: Tensor,
    v_KNE: Tensor,
    *,
    window: Window,
    scale: float,
    is_last: bool,
) -> list[Tensor]:
    """Shapes: -> parts (K, rows, G, E) that make up all rows, or with `is_last` the wanted ones."""
    num_stem = laid.num_stem
    if is_last and 2 * len(laid.wanted) < laid.num_rows:
        rows = laid.wanted
        if not rows:
            return []
        first = 0
        if rows[0] == rows[-1] and rows[0] < num_stem:  # one token of a stem sees what is before it
            stop = rows[0] + 1
            first = 0 if window is None else max(0, rows[0] - window)
            return [
                attend_masked(
                    q_KNGE[:, rows], k_KNE[:, first:stop], v_KNE[:, first:stop], None, scale
                )
            ]
        mask = _mask(laid, window, rows, 0, is_last, q_KNGE)
        return [attend_masked(q_KNGE[:, rows], k_KNE, v_KNE, mask, scale)]
    parts = []
    if num_stem:
        stem = (q_KNGE[:, :num_stem], k_KNE[:, :num_stem], v_KNE[:, :num_stem])
        parts += attend_text(*stem, window, scale)
    if laid.num_rows > num_stem:
        first = 0 if window is None else max(0, num_stem - window)
        mask = _mask(laid, window, range(num_stem, laid.num_rows), first, False, q_KNGE)
        parts.append(
            attend_masked(q_KNGE[:, num_stem:], k_KNE[:, first:], v_KNE[:, first:], mask, scale)
        )
    if is_last:
        return [torch.cat(parts, dim=1)[:, laid.wanted]]
    return parts


def _mask(
    laid: _Laid, window: Window, rows: Sequence[int], first: int, is_last: bool, like: Tensor
) -> Tensor:
    """What each of these rows sees of the rows from `first` on: 0, or minus infinity.

    Shapes: -> (rows, num_rows - first).
    """
    if (window, is_last) not in laid.masks:
        host = torch.device("cpu")
        branches, positions = send(laid.branches, host), send(laid.positions, host)
        picked = send(rows, host)
        distance = positions[picked, None] - positions[None, first:]
        is_seen = (distance >= 0) & (
            (branches[None, first:] < 0) | (branches[picked, None] == branches[None, first:])
        )
        if window is not None:
            is_seen &= distance <= window
        G = like.size(2)
        mask = torch.zeros(is_seen.shape).masked_fill_(~is_seen, float("-inf"))
        laid.masks[window, is_last] = mask.repeat_interleave(G, 0).to(like.device, like.dtype)
    return laid.masks[window, is_last]


def _read(forward: Forward, hidden: Tensor, batch: list[_Laid]) -> list[list[TextScore]]:
    """Every text's targets out of the wanted rows."""
    asked: list[tuple[int, int]] = []  # (wanted row, target)
    begin = 0
    for laid in batch:
        place_of = {row: begin + index for index, row in enumerate(laid.wanted)}
        begin += len(laid.wanted)
        asked += [
            (place_of[laid.row(index, position - 1)], tokens[position])
            for index, (tokens, place) in enumerate(laid.texts)
            for position in range(place, len(tokens))
        ]
    rows, targets = torch.tensor(asked, device=hidden.device).unbind(1)
    logprobs = torch.empty(len(asked), device=hidden.device)
    margins, best = [], []
    for start in range(0, hidden.size(0), SCORED_AT_ONCE):
        part = forward.logits(hidden[start : start + SCORED_AT_ONCE]).log_softmax(-1)
        here = (rows >= start) & (rows < start + SCORED_AT_ONCE)
        logprobs[here] = part[rows[here] - start, targets[here]]
        top, winners = part.topk(2)
        margins.append(top[:, 0] - top[:, 1])
        best.append(winners[:, 0])
    return _dealt(
        batch, logprobs.tolist(), torch.cat(best)[rows].tolist(), torch.cat(margins)[rows].tolist()
    )


def _dealt(
    batch: list[_Laid], logprobs: list[float], best: list[int], margins: list[float]
) -> list[list[TextScore]]:
    """To each text its own."""
    scores, at = [], 0
    for laid in batch:
        of_group = []
        for tokens, place in laid.texts:
            end = at + len(tokens) - place
            of_group.append(TextScore(logprobs[at:end], best[at:end], margins[at:end]))
            at = end
        scores.append(of_group)
    return scores

"""Sequences -> what follows them, step by step.   in: a Scheduler, a Forward   out: Fed
who calls: engine.py

A step is planned (scheduler.py), computed (forward.py over kvmemory.py) and reported.  Knows
tensors and sequences, and nothing of requests.
Read next: scheduler.py, forward.py; engine.py (what follows from a step).
"""

from collections.abc import Sequence as Items
from typing import NamedTuple

import torch
from torch import Tensor

from nanochat.engine.forward import Forward, Piece
from nanochat.engine.kvmemory import KVMemory
from nanochat.engine.late import Chosen
from nanochat.engine.request import NO_TOKEN
from nanochat.engine.scheduler import Scheduler
from nanochat.engine.sequence import Chunk, Copies, Sequence, StepPlan

__all__ = ["Fed", "Scored", "Steps"]

SCORED_AT_ONCE = 64  # rows of logits: 8 MiB at a vocabulary of 32,768


class Scored(NamedTuple):
    """How likely tokens of a text were, each after all before it."""

    sequence: Sequence
    first: int
    """The place of the first of them."""
    logprobs_N: Tensor
    top_logprobs_NC: Tensor
    """The likeliest tokens' in falling order; C as asked for, at least 1."""
    top_tokens_NC: Tensor


class Fed(NamedTuple):
    """What a step has brought."""

    plan: StepPlan
    ready: list[Sequence]
    """Sequences all of whose tokens have been read."""
    logits_BV: Tensor | None
    """Of the token after each of them."""
    scored: list[Scored]


class Steps:
    """Computes the steps of one scheduler."""

    def __init__(self, forward: Forward, memory: KVMemory, scheduler: Scheduler) -> None:
        self.forward, self.memory, self.scheduler = forward, memory, scheduler
        self.scored_from: dict[Sequence, tuple[int, int]] = {}
        """For sequences whose own tokens are asked about: the place of the first of them, at least
        1, and how many of the likeliest are told."""

    @torch.inference_mode()
    def run(self, chosen: Chosen | None = None) -> Fed:
        """Plan and compute one step; nothing in it if nothing could be planned.

        `chosen` has the tokens of the step before, if nobody has read them yet.
        """
        plan = self.scheduler.plan()
        scored_chunks = [c for c in plan.prefill if self._is_scored(c)]
        other_chunks = [c for c in plan.prefill if not self._is_scored(c)]
        hidden: list[Tensor] = []
        ready: list[Sequence] = []
        scored: list[Scored] = []
        if plan.decode:
            hidden.append(self._decode(plan.decode, chosen))
            ready += plan.decode
        if other_chunks:
            last_ND = self.forward.prefill(
                [_piece(chunk) for chunk in other_chunks], self.memory, last_only=True
            )
            complete = [n for n, chunk in enumerate(other_chunks) if _is_complete(chunk)]
            hidden.append(last_ND[complete])
            ready += [other_chunks[n].sequence for n in complete]
        for chunk in scored_chunks:
            hidden_ND = self.forward.prefill([_piece(chunk)], self.memory)
            scored.append(self._score(chunk, hidden_ND))
            if _is_complete(chunk):
                hidden.append(hidden_ND[-1:])
                ready.append(chunk.sequence)
        self.scheduler.fed(plan)
        logits_BV = self.forward.logits(torch.cat(hidden)) if ready else None
        return Fed(plan, ready, logits_BV, scored)

    def copy(self, copies: Copies) -> None:
        """Copy blocks, as a fork asks for."""
        for window, pairs in copies.items():
            self.memory.copy_blocks(window, pairs)

    def _decode(self, sequences: Items[Sequence], chosen: Chosen | None) -> Tensor:
        late = chosen.late(sequences) if chosen else None
        unread = set(late.rows) if late else ()
        return self.forward.decode(
            [0 if row in unread else each.tokens[-1] for row, each in enumerate(sequences)],
            [_before(sequence, len(sequence.tokens) - 1) for sequence in sequences],
            [len(sequence.tokens) - 1 for sequence in sequences],
            [sequence.tables for sequence in sequences],
            self.memory,
            late,
        )

    def _is_scored(self, chunk: Chunk) -> bool:
        first = self.scored_from.get(chunk.sequence)
        return first is not None and chunk.stop >= first[0]

    def _score(self, chunk: Chunk, hidden_ND: Tensor) -> Scored:
        """The tokens that the chunk's tokens are followed by."""
        first, num_top = self.scored_from[chunk.sequence]
        tokens = chunk.sequence.tokens
        begin = max(chunk.start, first - 1)
        end = min(chunk.stop, len(tokens) - 1)
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for start in range(begin, end, SCORED_AT_ONCE):
            stop = min(end, start + SCORED_AT_ONCE)
            logits_NV = self.forward.logits(hidden_ND[start - chunk.start : stop - chunk.start])
            logprobs_NV = logits_NV.log_softmax(dim=-1)
            wanted_N1 = torch.tensor(tokens[start + 1 : stop + 1], device=logits_NV.device)[:, None]
            top_NC, top_tokens_NC = logprobs_NV.topk(max(num_top, 1))
            parts.append((logprobs_NV.gather(1, wanted_N1)[:, 0], top_NC, top_tokens_NC))
        if not parts:
            nothing = hidden_ND.new_empty(0)
            return Scored(chunk.sequence, end + 1, nothing, nothing[:, None], nothing[:, None])
        logprobs, top, top_tokens = (torch.cat(column) for column in zip(*parts, strict=True))
        return Scored(chunk.sequence, begin + 1, logprobs, top, top_tokens)


def _piece(chunk: Chunk) -> Piece:
    sequence = chunk.sequence
    return Piece(
        tokens=sequence.tokens[chunk.start : chunk.stop],
        previous=_before(sequence, chunk.start),
        start=chunk.start,
        tables=sequence.tables,
    )


def _before(sequence: Sequence, place: int) -> int:
    return sequence.tokens[place - 1] if place else NO_TOKEN


def _is_complete(chunk: Chunk) -> bool:
    return chunk.stop == len(chunk.sequence.tokens)

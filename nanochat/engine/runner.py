"""Rows -> their next tokens: the two ways of feeding the model.   in: Row   out: Sampled
who calls: engine.py

    prefill   many tokens of a prompt at once: bound by arithmetic
    decode    one token of every row: bound by reading the weights
Both feed (token, previous token, position), so pieces and neighbours change nothing but rounding.
Read next: cache.py (where the rows' past is kept), sampling.py.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nanochat.engine.cache import ContiguousCache
from nanochat.engine.request import FinishReason, Request, TokenEvent
from nanochat.engine.sampling import Chooser, Sampled, sample
from nanochat.model.gpt import GPT, NO_TOKEN
from nanochat.tokenizer.stream import StreamDecoder

__all__ = ["Deliver", "PromptBatch", "Row", "decode", "new_cache", "prefill"]

Deliver = Callable[[TokenEvent | Exception], None]
"""Takes the events of a request, or the exception that ends it; the engine's thread calls it."""

PREFILL_TOKENS = 512  # a piece: long enough for full matrices, short enough not to hold others up

logger = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Row:
    """A request on its way."""

    request: Request
    deliver: Deliver
    tokens: list[int]
    """The prompt, and what has been generated."""
    limit: int
    """Most tokens this list may have."""
    decoder: StreamDecoder
    num_prompt: int = field(init=False)
    is_cancelled: bool = False
    is_finished: bool = False

    def __post_init__(self) -> None:
        self.num_prompt = len(self.tokens)

    @property
    def num_generated(self) -> int:
        """Tokens sampled so far."""
        return len(self.tokens) - self.num_prompt

    def add(self, token: int) -> FinishReason | None:
        """Append a token; why the request ends with it, or None."""
        self.tokens.append(token)
        sampling = self.request.sampling
        if token in sampling.stop_tokens:
            return "stop"
        if self.num_generated >= sampling.max_tokens or len(self.tokens) >= self.limit:
            return "length"
        return None

    def send(self, event: TokenEvent | Exception) -> None:
        """Deliver; a reader that fails loses its own request and disturbs no other."""
        try:
            self.deliver(event)
        except Exception as error:
            self.is_cancelled = True
            logger.warning("the reader of %s failed: %r", self.request.request_id, error)


@dataclass(slots=True)
class PromptBatch:
    """Prompts that are being read: several short ones, or one in pieces."""

    rows: list[Row]
    cache: ContiguousCache
    num_read: int = 0


def new_cache(model: GPT, *, max_positions: int, num_rows: int = 0) -> ContiguousCache:
    """An empty cache of the model's shape, in the dtype and on the device of its weights."""
    weight = model.embedding.weight
    return ContiguousCache(
        model.config,
        num_rows=num_rows,
        max_positions=max_positions,
        dtype=weight.dtype,
        device=weight.device,
    )


def prefill(model: GPT, batch: PromptBatch) -> Sampled | None:
    """Read the next piece of the prompts; once all is read, the first token of each, else None."""
    rows, start = batch.rows, batch.num_read
    longest = max(len(row.tokens) for row in rows)
    stop = min(longest, start + PREFILL_TOKENS)
    assert len(rows) == 1 or (start, stop) == (0, longest), f"{len(rows)} rows in pieces"
    pieces = [row.tokens[start:stop] for row in rows]
    # Rows are padded at the right: nothing before sees it, and it is not counted below.
    padded = [piece + piece[-1:] * (stop - start - len(piece)) for piece in pieces]
    device = model.embedding.weight.device
    tokens_BT = torch.tensor(padded, device=device)
    previous = rows[0].tokens[start - 1] if start else NO_TOKEN
    previous_B = torch.full((len(rows),), previous, device=device)
    hidden_BTD = model.hidden(tokens_BT, previous_B=previous_B, cache=batch.cache)
    batch.cache.advance([len(piece) for piece in pieces])
    batch.num_read = stop
    if stop < longest:
        return None
    last_B = torch.tensor([len(piece) - 1 for piece in pieces], device=device)
    return _sample(model, hidden_BTD[torch.arange(len(rows), device=device), last_B], rows)


def decode(model: GPT, cache: ContiguousCache, rows: Sequence[Row]) -> Sampled:
    """The next token of every row, after feeding the one that was sampled last."""
    device = model.embedding.weight.device
    tokens_B = torch.tensor([row.tokens[-1] for row in rows], device=device)
    previous_B = torch.tensor([row.tokens[-2] for row in rows], device=device)
    hidden_BTD = model.hidden(tokens_B[:, None], previous_B=previous_B, cache=cache)
    cache.advance([1] * len(rows))
    return _sample(model, hidden_BTD[:, 0], rows)


def _sample(model: GPT, hidden_BD: Tensor, rows: Sequence[Row]) -> Sampled:
    logits_BV = model.logits(hidden_BD)
    return sample(logits_BV, [_chooser(row, logits_BV) for row in rows])


def _chooser(row: Row, logits_BV: Tensor) -> Chooser:
    prompt, answer = row.tokens[: row.num_prompt], row.tokens[row.num_prompt :]
    chooser = Chooser(
        row.request.sampling, prompt, vocab_size=logits_BV.size(1), device=logits_BV.device
    )
    for token in answer:
        chooser.add(token)
    return chooser

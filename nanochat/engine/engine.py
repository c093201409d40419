"""Requests -> tokens, many at once.   in: Request   out: TokenEvent
who calls: cli, server, evals, train

One worker thread steps the batch; whoever asks gets the events of its own request.  A step is:
drop who left, read a piece of the prompts that wait (prefill), give every running row one token
(decode).  A row that is done leaves at once and the next request takes its place; a long prompt is
read in pieces, so that nobody waits for it longer than a piece takes.

    waiting --prefill--> running --decode, decode, ...--> done
The thread lives while there is work: an idle engine holds no cache and needs no closing.
Read next: runner.py (the two paths), cache.py, sampling.py, request.py.
"""

import logging
import math
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch

from nanochat.common.errors import EngineError, NanochatError, RequestTooLong
from nanochat.engine.cache import ContiguousCache
from nanochat.engine.request import NO_TOKEN, FinishReason, Request, TokenEvent
from nanochat.engine.runner import (
    PREFILL_TOKENS,
    Deliver,
    PromptBatch,
    Row,
    decode,
    new_cache,
    prefill,
)
from nanochat.engine.sampling import Sampled
from nanochat.model.gpt import GPT
from nanochat.tokenizer.tokenizer import Tokenizer

__all__ = ["Engine", "TokenStream"]

# karpathy/nanochat's rotary table ends at ten contexts; past it there is nothing to agree with.
MAX_SLIDE_CONTEXTS = 10

logger = logging.getLogger(__name__)


class Engine:
    """Serves any number of requests from any number of threads, `max_rows` of them at a time.

    Example: Engine(model, tokenizer).generate([Request(request_id="a", prompt_tokens=(1, 2))])
    Raises:  EngineError if model and tokenizer do not belong together.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer, *, max_rows: int = 32) -> None:
        if tokenizer.vocab_size != model.config.vocab_size:
            raise EngineError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the model "
                f"{model.config.vocab_size}: expected those of one checkpoint"
            )
        if max_rows < 1:
            raise EngineError(f"max_rows is {max_rows}, expected at least 1")
        self.model, self.tokenizer, self.max_rows = model, tokenizer, max_rows
        self._special_tokens = frozenset(tokenizer.special_tokens.values())
        self._lock = threading.Lock()  # guards the next three
        self._active: dict[str, Row] = {}
        self._waiting: deque[Row] = deque()
        self._worker: threading.Thread | None = None
        # What follows belongs to the worker alone.
        self._reading: PromptBatch | None = None
        self._running: list[Row] = []
        self._cache = self._new_cache()

    @property
    def context_len(self) -> int:
        """Most tokens of prompt and answer together, unless a request slides."""
        return self.model.config.context_len

    @property
    def num_active(self) -> int:
        """Requests that wait or run."""
        return len(self._active)

    # --------------------------------------------------------------------------- ask

    def generate(self, requests: Sequence[Request]) -> list[list[TokenEvent]]:
        """The events of each request, all of them batched together.

        Raises: the exception of the first request that has one; then the others are cancelled.
        """
        streams: list[TokenStream] = []
        try:
            for request in requests:
                streams.append(self.stream(request))
            return [list(stream) for stream in streams]
        finally:
            for stream in streams:
                stream.close()

    def stream(self, request: Request) -> "TokenStream":
        """The events of one request as they come; closing the stream cancels the request.

        Raises: as `submit`, at once; what goes wrong later is raised by the stream.
        """
        events: queue.SimpleQueue[TokenEvent | Exception] = queue.SimpleQueue()
        self.submit(request, events.put)
        return TokenStream(events, lambda: self.cancel(request.request_id))

    def submit(self, request: Request, deliver: Deliver) -> None:
        """Have the events of a request delivered: the last has a finish_reason, or is an exception.

        `deliver` is called by the engine's thread and must not block it.
        Raises: RequestTooLong, TokenizerError for a token outside the vocabulary, EngineError for
                an identifier that is in use; nothing is delivered then.
        """
        row = self._admit(request, deliver)
        with self._lock:
            if request.request_id in self._active:
                raise EngineError(
                    f"request {request.request_id!r} is running already: give each its own id"
                )
            if self._worker is None:
                worker = threading.Thread(target=self._work, name="nanochat-engine")
                worker.start()  # it waits for the lock
                self._worker = worker
            self._active[request.request_id] = row
            self._waiting.append(row)

    def cancel(self, request_id: str) -> None:
        """End a request within one step, with finish_reason "abort"; unknown ids are ignored."""
        # Without the lock: a stream may be closed by the garbage collector, in any thread.
        if row := self._active.get(request_id):
            row.is_cancelled = True

    def _admit(self, request: Request, deliver: Deliver) -> Row:
        request.check_vocabulary(self.model.config.vocab_size)
        tokens = list(request.prompt_tokens) or [self.tokenizer.bos]
        is_sliding = request.beyond_context == "slide"
        limit = self.context_len * (MAX_SLIDE_CONTEXTS if is_sliding else 1)
        if len(tokens) + 1 > limit:
            raise RequestTooLong(
                f"the prompt has {len(tokens)} tokens but the context is {limit}, answer included: "
                "shorten the prompt"
            )
        return Row(request, deliver, tokens, limit, self.tokenizer.stream_decoder())

    # ------------------------------------------------------------------------ the worker

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._active:
                    self._cache = self._new_cache()
                    self._worker = None
                    return
            try:
                self._step()
            except Exception as error:  # whatever it is, nobody may be left waiting
                self._fail(error)

    @torch.inference_mode()
    def _step(self) -> None:
        self._drop_cancelled()
        self._read_prompts()
        if self._running:
            self._take(self._running, decode(self.model, self._cache, self._running))
            self._drop_finished()

    def _drop_cancelled(self) -> None:
        with self._lock:
            cancelled = [row for row in self._active.values() if row.is_cancelled]
            for row in cancelled:
                if row in self._waiting:
                    self._waiting.remove(row)
        for row in cancelled:
            self._release(row, _event(row, NO_TOKEN, "", 0.0, "abort"))
        if self._reading and all(row.is_finished for row in self._reading.rows):
            self._reading = None
        self._drop_finished()

    def _read_prompts(self) -> None:
        """Read one piece of the prompts whose turn it is; those that are read join the batch."""
        batch = self._reading or self._next_prompts()
        if batch is None:
            return
        self._reading = batch
        sampled = prefill(self.model, batch)
        if sampled is None:
            return
        self._reading = None
        self._cache.append(batch.cache)
        self._running += batch.rows
        self._take(batch.rows, sampled)
        self._drop_finished()

    def _next_prompts(self) -> PromptBatch | None:
        """The prompts that came first: one long one, or as many short ones as fit a piece."""
        chosen: list[Row] = []
        longest = 0
        with self._lock:
            while self._waiting and len(self._running) + len(chosen) < self.max_rows:
                longest = max(longest, len(self._waiting[0].tokens))
                if chosen and longest * (len(chosen) + 1) > PREFILL_TOKENS:
                    break
                chosen.append(self._waiting.popleft())
        return PromptBatch(chosen, self._new_cache(len(chosen))) if chosen else None

    def _take(self, rows: Sequence[Row], sampled: Sampled) -> None:
        """Hand each row its token; a row whose numbers are broken ends alone."""
        values = zip(rows, sampled.tokens_B.tolist(), sampled.logprobs_B.tolist(), strict=True)
        for row, token, logprob in values:
            if not math.isfinite(logprob):
                self._release(row, _overflowed(row))
                continue
            reason = row.add(token)
            event = _event(row, token, self._text(row, token, reason), logprob, reason)
            if reason is None:
                row.send(event)
            else:
                self._release(row, event)

    def _text(self, row: Row, token: int, reason: FinishReason | None) -> str:
        is_special = token in self._special_tokens
        text = "" if is_special else row.decoder.feed(token)
        return text + row.decoder.flush() if is_special or reason is not None else text

    def _release(self, row: Row, last: TokenEvent | Exception) -> None:
        """End a request; its id is free before the last event is out: it may be used again."""
        row.is_finished = True
        with self._lock:
            del self._active[row.request.request_id]
        row.send(last)

    def _drop_finished(self) -> None:
        for index in reversed(range(len(self._running))):
            if self._running[index].is_finished:
                self._cache.remove(index)
                last = self._running.pop()
                if index < len(self._running):
                    self._running[index] = last

    def _fail(self, error: Exception) -> None:
        """A step broke: those in it are told, memory is given back, those who wait go on."""
        logger.error("a step of the engine failed", exc_info=error)
        with self._lock:
            broken = [row for row in self._active.values() if row not in self._waiting]
            if not broken and self._waiting:  # choosing whom to serve is what failed
                broken = [self._waiting.popleft()]
        self._reading, self._running = None, []
        self._cache = self._new_cache()
        for row in broken:
            self._release(row, _explained(error))

    def _new_cache(self, num_rows: int = 0) -> ContiguousCache:
        max_positions = self.context_len * MAX_SLIDE_CONTEXTS
        return new_cache(self.model, max_positions=max_positions, num_rows=num_rows)


class TokenStream(Iterator[TokenEvent]):
    """The events of one request, to the one with a finish_reason; `close` cancels what is left."""

    def __init__(
        self, events: "queue.SimpleQueue[TokenEvent | Exception]", cancel: Callable[[], None]
    ) -> None:
        self._events, self._cancel, self._is_done = events, cancel, False

    def __next__(self) -> TokenEvent:
        if self._is_done:
            raise StopIteration
        event = self._events.get()
        self._is_done = isinstance(event, Exception) or event.finish_reason is not None
        if isinstance(event, Exception):
            raise event
        return event

    def close(self) -> None:
        """Cancel the request unless it has ended; harmless twice."""
        if not self._is_done:
            self._is_done = True
            self._cancel()

    def __del__(self) -> None:
        self.close()


def _event(
    row: Row, token: int, text: str, logprob: float, reason: FinishReason | None
) -> TokenEvent:
    return TokenEvent(
        request_id=row.request.request_id,
        token=token,
        text=text,
        logprob=logprob,
        finish_reason=reason,
    )


def _overflowed(row: Row) -> EngineError:
    return EngineError(
        f"the model's numbers overflowed after {len(row.tokens)} tokens: its weights may be "
        "damaged; try --dtype float32"
    )


def _explained(error: Exception) -> NanochatError:
    if isinstance(error, NanochatError):
        return error
    text = " ".join(str(error).split())[:200]
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in text:
        return EngineError(f"out of memory ({text}): ask for fewer tokens or fewer answers at once")
    return EngineError(f"the engine failed ({type(error).__name__}: {text}); other requests go on")

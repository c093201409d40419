"""Requests -> tokens, many at once.   in: Request   out: TokenEvent
who calls: cli, server, evals, train

One worker thread steps the batch; whoever asks gets the events of its own request.

    submit -> scheduler (who is fed what) -> forward (keys, values, logits) -> sampling -> events
                 ^------------------- the chosen tokens ----------------------|
A row that is done leaves at once; a long prompt is read in pieces beside the rows that run; equal
beginnings are read once.  The thread lives while there is work; keys of what was read stay, up to
the stated memory.
Read next: steps.py (one step), scheduler.py, answer.py, forward.py.
"""

import asyncio
import logging
import math
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from nanochat.common.errors import EngineError, NanochatError
from nanochat.common.transfer import send
from nanochat.engine.admission import Admission
from nanochat.engine.answer import Answer, Deliver
from nanochat.engine.blocks import BlockPool
from nanochat.engine.faults import Load, explained, overflowed
from nanochat.engine.forward import FormatName, Forward
from nanochat.engine.groups import Group, TextScore, score_groups
from nanochat.engine.kvmemory import KVMemory
from nanochat.engine.late import Chosen
from nanochat.engine.openmp import release_helpers
from nanochat.engine.prompt_scores import PromptScores
from nanochat.engine.request import NO_TOKEN, BeyondContext, Request, TokenEvent
from nanochat.engine.room import MEMORY_SHARE, blocks_for_rows, free_bytes
from nanochat.engine.sampling import sample
from nanochat.engine.scheduler import Scheduler
from nanochat.engine.scoring import Likelihood, Scoring, likelihood_of
from nanochat.engine.sequence import Sequence as Row
from nanochat.engine.stats import EngineStats
from nanochat.engine.steps import Fed, Steps
from nanochat.engine.streams import TokenStream, hand_over
from nanochat.model.gpt import GPT
from nanochat.tokenizer.tokenizer import Tokenizer

__all__ = ["Engine"]

STEP_TOKENS = 512  # long enough for full matrices, short enough not to hold running rows up

logger = logging.getLogger(__name__)


class Engine:
    """Serves any number of requests from any number of threads, `max_rows` of them at a time.

    Example: Engine(model, tokenizer).generate([Request(request_id="a", prompt_tokens=(1, 2))])
    Raises:  EngineError if model and tokenizer do not belong together, or the memory holds nothing.
    `runs_ahead`: the next step is sent off before the last one's tokens are read; None: on CUDA.
    Units:   kv_memory_bytes for keys and values; None: enough for `max_rows` full contexts, within
             a quarter of the memory there is.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        *,
        max_rows: int = 64,
        format: FormatName | None = None,
        kv_memory_bytes: int | None = None,
        step_tokens: int = STEP_TOKENS,
        home: Path | None = None,
        runs_ahead: bool | None = None,
    ) -> None:
        if tokenizer.vocab_size != model.config.vocab_size:
            raise EngineError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the model "
                f"{model.config.vocab_size}: expected those of one checkpoint"
            )
        if max_rows < 1:
            raise EngineError(f"max_rows is {max_rows}, expected at least 1")
        self.config, self.tokenizer, self.max_rows = model.config, tokenizer, max_rows
        weight = model.embedding.weight
        if format is None:
            format = "float32" if weight.dtype == torch.float32 else "bfloat16"
        self.forward = Forward(model, format=format, device=weight.device, home=home)
        dtype, device = self.forward.dtype, self.forward.device
        if kv_memory_bytes is None:
            kv_memory_bytes = int(MEMORY_SHARE * free_bytes(device))
        blocks = blocks_for_rows(
            model.config, dtype, kv_memory_bytes, max_rows=max_rows, step_tokens=step_tokens
        )
        memory = KVMemory(model.config, blocks, dtype=dtype, device=device)
        self.scheduler = Scheduler(
            [BlockPool(count, window) for window, count in blocks.items()],
            max_rows=max_rows,
            step_tokens=max(step_tokens, max_rows + 1),
        )
        self.steps = Steps(self.forward, memory, self.scheduler)
        self._admission = Admission(model.config, tokenizer, self.scheduler, self.forward.device)
        self._lock = threading.Lock()  # guards the next three
        self._active: dict[str, int] = {}  # answers that are not finished, by request
        self._arrived: deque[tuple[Answer | Scoring, int]] = deque()
        self._worker: threading.Thread | None = None
        self._cancelled: deque[str] = deque()
        # What follows belongs to the worker alone.
        self._jobs: dict[Row, Answer | Scoring] = {}
        self._prompt_scores = PromptScores()
        self._chosen: Chosen | None = None  # by the last step, and not read yet
        self._num_steps = self._num_fed_tokens = 0
        if runs_ahead is None:
            runs_ahead = self.forward.device.type == "cuda"
        self._runs_ahead = runs_ahead
        release_helpers()  # of the thread that loaded the model

    @property
    def context_len(self) -> int:
        """Most tokens of prompt and answer together, unless a request slides."""
        return self.config.context_len

    @property
    def num_active(self) -> int:
        """Requests that wait or run."""
        return len(self._active)

    def stats(self) -> EngineStats:
        """A look at it from outside; the numbers may be of two neighbouring steps."""
        scheduler, pools = self.scheduler, self.scheduler.pools.values()
        return EngineStats(
            num_waiting=scheduler.num_waiting + len(self._arrived),
            num_running=scheduler.num_running,
            num_blocks=sum(pool.num_blocks for pool in pools),
            num_free_blocks=sum(pool.num_free for pool in pools),
            num_steps=self._num_steps,
            num_fed_tokens=self._num_fed_tokens,
            num_hit_tokens=scheduler.num_hit_tokens,
            num_preemptions=scheduler.num_preemptions,
        )

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
        return TokenStream(events.get, lambda: self.cancel(request.request_id), request.num_samples)

    async def astream(self, request: Request) -> AsyncIterator[TokenEvent]:
        """The same on an event loop; leaving the iteration cancels the request."""
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[TokenEvent | Exception] = asyncio.Queue()
        self.submit(request, lambda event: hand_over(loop, events, event))
        num_left = request.num_samples
        try:
            while num_left:
                event = await events.get()
                if isinstance(event, Exception):
                    num_left = 0
                    raise event
                num_left -= event.finish_reason is not None
                yield event
        finally:
            if num_left:
                self.cancel(request.request_id)

    def score(self, texts: Sequence[tuple[Sequence[int], int]]) -> list[Likelihood]:
        """How likely the tokens from a place on are, for each (tokens, place).

        What texts begin with in common is read once.
        Raises: RequestTooLong, TokenizerError; EngineError for a place that is not in the text.
        """
        results: list[queue.SimpleQueue[Likelihood | Exception]] = []
        for tokens, place in texts:
            results.append(queue.SimpleQueue())
            scoring = self._admission.scoring(tokens, place, results[-1].put)
            self._start(scoring, scored_from=place)
        found = [result.get() for result in results]
        if error := next((each for each in found if isinstance(each, Exception)), None):
            raise error
        return [each for each in found if isinstance(each, Likelihood)]

    def score_groups(
        self, groups: Sequence[Group], *, beyond_context: BeyondContext = "refuse"
    ) -> list[list[TextScore]]:
        """How likely the tokens from a place on are, for each (tokens, place) of every group, and
        which would have been likelier.

        For many texts and nobody waiting: computed at once in the caller's thread, what the texts
        of a group begin with once.
        Raises: RequestTooLong, TokenizerError; EngineError for a place that is not in the text.
        """
        for group in groups:
            self._admission.group(group, beyond_context)
        try:
            return score_groups(self.forward, groups)
        finally:
            release_helpers()

    def submit(self, request: Request, deliver: Deliver) -> None:
        """Have the events of a request delivered: the last of every answer has a finish_reason, or
        an exception ends them all.

        `deliver` is called by the engine's thread and must not block it.  A schema is compiled
        before this returns: milliseconds, at most half a second.
        Raises: RequestTooLong, TokenizerError for a token outside the vocabulary, ConfigError for a
                schema, EngineError for an identifier in use; nothing is delivered then.
        """
        answer = self._admission.answer(request, deliver)
        asks = request.prompt_logprobs is not None
        self._start(answer, scored_from=1 if asks else 0, name=request.request_id)

    def cancel(self, request_id: str) -> None:
        """End a request within one step, with finish_reason "abort"; unknown ids are ignored."""
        # Without the lock: a stream may be closed by the garbage collector, in any thread.
        if request_id in self._active:
            self._cancelled.append(request_id)

    def _start(self, job: Answer | Scoring, *, scored_from: int, name: str | None = None) -> None:
        with self._lock:
            if name is not None:
                if name in self._active:
                    raise EngineError(f"request {name!r} is running already: give each its own id")
                self._active[name] = 1
            if self._worker is None:
                release_helpers()
                worker = threading.Thread(target=self._work, name="nanochat-engine")
                worker.start()  # it waits for the lock
                self._worker = worker
            self._arrived.append((job, scored_from))

    # ------------------------------------------------------------------------ the worker

    def _work(self) -> None:
        while True:
            with self._lock:
                if not (self._jobs or self._arrived):
                    self._cancelled.clear()
                    self._worker = None
                    return
            try:
                self._step()
            except Exception as error:  # whatever it is, nobody may be left waiting
                self._fail(error)

    def _step(self) -> None:
        self._receive()
        self._drop_cancelled()
        if self._chosen is not None and not self._chosen.may_be_fed():
            self._read_chosen()
        if not self._jobs:
            self._chosen = None
            return
        fed = self.steps.run(self._chosen)
        if not fed.plan.num_tokens:
            raise EngineError(f"nothing can go on though {len(self._jobs)} wait")
        self._num_steps += 1
        self._num_fed_tokens += fed.plan.num_tokens
        for scored in fed.scored:
            self._prompt_scores.note(scored, *self.steps.scored_from[scored.sequence])
        self._read_chosen()  # of the step before, while this one is computed
        self._chosen = self._choose(fed)
        if not self._runs_ahead:
            self._read_chosen()

    def _receive(self) -> None:
        while self._arrived:
            job, place = self._arrived.popleft()
            self._jobs[job.sequence] = job
            self.scheduler.add(job.sequence)
            if place:
                num_top = job.request.prompt_logprobs if isinstance(job, Answer) else 1
                self.steps.scored_from[job.sequence] = (place, num_top or 0)

    def _drop_cancelled(self) -> None:
        while self._cancelled:
            request_id = self._cancelled.popleft()
            for job in list(self._jobs.values()):
                if isinstance(job, Answer) and job.request.request_id == request_id:
                    self._finish(job, job.ended("abort"))

    @torch.inference_mode()
    def _choose(self, fed: Fed) -> Chosen | None:
        """Every sequence that has been read gets its next token; a prompt, one for each answer."""
        answers: list[Answer] = []
        rows: list[int] = []
        for row, sequence in enumerate(fed.ready):
            job = self._jobs.get(sequence)
            if job is None:  # the token it was fed, read since, was its last
                continue
            if isinstance(job, Scoring):
                self._finish(job, likelihood_of(self._prompt_scores.take(sequence)))
                continue
            group = [job, *self._forked(job)]
            answers += group
            rows += [row] * len(group)
        if not answers:
            return None
        assert fed.logits_BV is not None, "sequences without logits"
        logits_BV = fed.logits_BV
        masks = self._masks(answers)
        left = [place for place, each in enumerate(answers) if each.sequence in self._jobs]
        if not left:
            return None
        answers, rows = [answers[place] for place in left], [rows[place] for place in left]
        if rows != list(range(len(fed.ready))):
            logits_BV = logits_BV.index_select(0, send(rows, logits_BV.device))
        forbidden = {row: masks[each] for row, each in enumerate(answers) if each in masks}
        sampled = sample(logits_BV, [each.chooser for each in answers], forbidden)
        for answer in answers:
            answer.promise()
        return Chosen(answers, sampled)

    def _read_chosen(self) -> None:
        """The tokens of the last step, told to who asked."""
        if self._chosen is None:
            return
        chosen, self._chosen = self._chosen, None
        for answer, token, logprob, top in chosen.read():
            if answer.sequence not in self._jobs:  # cancelled since, or another answer broke
                continue
            if not math.isfinite(logprob):
                self._break(answer, overflowed(answer))
                continue
            try:
                self._tell(answer, answer.take(token, logprob, top))
                while answer.forced and answer.sequence in self._jobs:
                    self._tell(answer, answer.take(answer.forced.pop(0), 0.0, is_forced=True))
            except EngineError as error:  # a constraint that outgrew its limits
                self._break(answer, error)

    def _masks(self, answers: Sequence[Answer]) -> dict[Answer, torch.Tensor]:
        """What each answer that has to be JSON cannot go on with; one whose schema cannot be
        followed further ends here, and no other."""
        masks: dict[Answer, torch.Tensor] = {}
        for answer in answers:
            if answer.constraint is None or answer.sequence not in self._jobs:
                continue
            try:
                masks[answer] = answer.constraint.forbidden().to(self.forward.device)
            except EngineError as error:
                self._break(answer, error)
        return masks

    def _forked(self, answer: Answer) -> list[Answer]:
        """The further answers to a prompt that has just been read."""
        request = answer.request
        is_first = answer.num_chosen == 0 and answer.sequence.sample == 0
        if request.num_samples == 1 or not is_first:
            return []
        fork = self.scheduler.fork(answer.sequence, request.num_samples)
        self.steps.copy(fork.copies)
        with torch.inference_mode(False):  # what they have said is counted outside of it, too
            children = [self._admission.further(answer, sequence) for sequence in fork.children]
        self._jobs.update((child.sequence, child) for child in children)
        with self._lock:
            self._active[request.request_id] += len(children)
        return children

    def _tell(self, answer: Answer, event: TokenEvent) -> None:
        if prompt := self._prompt_scores.take(answer.sequence):
            event = replace(event, prompt_logprobs=tuple(prompt))
            del self.steps.scored_from[answer.sequence]
        if event.finish_reason is not None:
            self._finish(answer, event)
        elif not answer.send(event):
            self._cancelled.append(answer.request.request_id)

    def _finish(self, job: Answer | Scoring, last: TokenEvent | Likelihood | Exception) -> None:
        """End a job; a request's id is free before its last event is out."""
        self._forget(job)
        if isinstance(job, Scoring):
            assert not isinstance(last, TokenEvent), "a score is no event"
            job.done(last)
        else:
            assert not isinstance(last, Likelihood), "an answer is no score"
            job.send(last)

    def _forget(self, job: Answer | Scoring) -> None:
        self.scheduler.finish(job.sequence)
        del self._jobs[job.sequence]
        self.steps.scored_from.pop(job.sequence, None)
        self._prompt_scores.take(job.sequence)
        if isinstance(job, Answer):
            name = job.request.request_id
            with self._lock:
                self._active[name] -= 1
                if not self._active[name]:
                    del self._active[name]

    def _break(self, job: Answer | Scoring, error: NanochatError) -> None:
        """Something is wrong with one job: who asked is told once, and all its answers end."""
        for other in list(self._jobs.values()):
            if other is not job and other.sequence.request_id == job.sequence.request_id:
                self._forget(other)
        self._finish(job, error)

    def _fail(self, error: Exception) -> None:
        """A step broke: those in it are told, memory is given back, those who wait go on."""
        logger.error("a step of the engine failed", exc_info=error)
        self._chosen = None
        jobs = list(self._jobs.values())
        broken = [job for job in jobs if _is_in_a_step(job.sequence)] or jobs[:1]
        load = Load(
            len(broken),
            sum(len(job.sequence.tokens) for job in broken),
            self.steps.memory.num_bytes,
            str(self.forward.device),
        )
        for job in broken:
            if job.sequence in self._jobs:  # not ended with another answer to its prompt
                self._break(job, explained(error, load))


def _is_in_a_step(sequence: Row) -> bool:
    """Whether it has memory, or had it when its last token was chosen, which is lost."""
    return sequence.state == "running" or sequence.tokens[-1] == NO_TOKEN

"""How many answers at once, and for how long.   in: requests   out: events, or a refusal
who calls: app.py (makes it), cache.py, admin.py

A door in front of the engine's: what an answer takes is taken when the engine gets it and given
back when the engine says that it has ended, whatever has become of the client meanwhile.

    queue_wait_s        the longest wait for a first token     then Overloaded: 429
    request_deadline_s  the longest time to the last           then DeadlineExceeded: 504
    draining            what runs goes on, nothing new begins  Unavailable: 503
Read next: pool.py or engine/engine.py (behind it), cache.py (in front of it).
"""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from nanochat.common.errors import Aborted, DeadlineExceeded, Overloaded, Unavailable
from nanochat.engine.request import Request, TokenEvent
from nanochat.server.metrics import Metrics
from nanochat.server.settings import ServerSettings
from nanochat.server.stream import EngineDoor

__all__ = ["Admission"]

Deliver = Callable[[TokenEvent | Exception], None]
MAX_RETRY_AFTER_S = 30  # the official client waits for at most 120
MEMORY = 0.9  # of how long answers take, from one to the next


class Admission:
    """Lets requests through to an engine while there is room."""

    def __init__(
        self,
        engine: EngineDoor,
        settings: ServerSettings,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings, self.metrics = settings, metrics or Metrics()
        self._engine, self._clock = engine, clock
        self._lock = threading.Condition()  # guards what follows
        self._jobs: dict[str, _Job] = {}
        self._bodies: dict[str, _Body] = {}  # of requests that are just being asked, by their id
        self._is_draining = False
        self._watch: threading.Thread | None = None
        self._usual_s = 1.0  # how long an answer takes

    # --------------------------------------------------------------------------- ask

    def submit(self, request: Request, deliver: Deliver, /) -> None:
        """As an engine's.

        Raises: Overloaded, Unavailable; what the engine's `submit` raises.
        """
        job = _Job(self, request, deliver, self._clock())
        with self._lock:
            body = self._bodies.get(request.request_id)
            if body is None:
                self._check(request.num_samples)
            elif not body.is_let_in:
                self._check(body.num_answers)
                body.is_let_in = True
            self._jobs[request.request_id] = job
            if self._watch is None:
                self._watch = threading.Thread(
                    target=self._watch_deadlines, name="nanochat-deadlines", daemon=True
                )
                self._watch.start()  # it waits for the lock
        try:
            self._engine.submit(request, job.take)
        except BaseException as error:
            self._leave(job)
            if isinstance(error, Unavailable):
                self.metrics.rejected("unavailable")
            raise
        self.metrics.submitted(request)

    @contextlib.contextmanager
    def together(self, requests: Sequence[Request]) -> Iterator[None]:
        """While requests of one body are asked one after the other: the first that comes needs
        room for all of them, and lets the others in."""
        body = _Body(sum(request.num_samples for request in requests))
        with self._lock:
            self._bodies.update((request.request_id, body) for request in requests)
        try:
            yield
        finally:
            with self._lock:
                for request in requests:
                    del self._bodies[request.request_id]

    def cancel(self, request_id: str, /) -> None:
        """As an engine's."""
        self._engine.cancel(request_id)

    def check(self, num_answers: int = 1) -> None:
        """Whether as many answers would be let in now.

        Raises: Overloaded, Unavailable.
        """
        with self._lock:
            self._check(num_answers)

    # -------------------------------------------------------------------------- look

    @property
    def num_active(self) -> int:
        """Answers that run or wait."""
        with self._lock:
            return self._num_answers()

    @property
    def num_waiting(self) -> int:
        """Answers without a first token."""
        with self._lock:
            return sum(job.request.num_samples for job in self._jobs.values() if job.is_waiting)

    @property
    def is_draining(self) -> bool:
        """Whether the server is about to stop."""
        return self._is_draining

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken: an engine is there, and the server is not about to stop."""
        return not self._is_draining and getattr(self._engine, "is_ready", True)

    # -------------------------------------------------------------------------- stop

    def begin_draining(self) -> None:
        """Let nobody in any more."""
        with self._lock:
            self._is_draining = True

    def abort_all(self) -> int:
        """End every answer with Aborted; how many requests that were."""
        with self._lock:
            jobs = list(self._jobs.values())
        for job in jobs:
            self._end(job, Aborted("the answer was cut off: the server is shutting down"))
        return len(jobs)

    # ------------------------------------------------------------------------- inside

    def _num_answers(self) -> int:
        return sum(job.request.num_samples for job in self._jobs.values())

    def _check(self, num_answers: int) -> None:
        if self._is_draining:
            self.metrics.rejected("draining")
            raise Unavailable("the server is about to stop: ask again once another one runs", 5)
        num_active = self._num_answers()
        limit = self.settings.max_active + self.settings.max_queue
        if num_active and num_active + num_answers > limit:
            self.metrics.rejected("queue_full")
            raise Overloaded(
                f"{num_active} answers are being written or wait, of at most {limit}: ask again "
                "later",
                self._retry_after_s(num_active),
            )

    def _retry_after_s(self, num_active: int) -> int:
        """When about as many as are over the limit now will have ended."""
        turn_s = self._usual_s * max(1, num_active) / self.settings.max_active / 4
        return min(MAX_RETRY_AFTER_S, max(1, math.ceil(turn_s)))

    def _leave(self, job: "_Job") -> None:
        with self._lock:
            if self._jobs.get(job.request.request_id) is job:
                del self._jobs[job.request.request_id]

    def _ended(self, job: "_Job", reason: str) -> None:
        now = self._clock()
        self._leave(job)
        if reason in ("stop", "length"):
            with self._lock:
                took_s = now - job.began_s
                self._usual_s = MEMORY * self._usual_s + (1 - MEMORY) * took_s
        self.metrics.finished(job.request, reason, num_tokens=job.num_tokens, job=job, now_s=now)

    def _end(self, job: "_Job", error: Exception) -> None:
        """Tell who asked, and have the engine drop it; the room is free once it has."""
        if job.tell_once(error):
            self._engine.cancel(job.request.request_id)

    def _watch_deadlines(self) -> None:
        """Lives while there are requests."""
        while True:
            with self._lock:
                now = self._clock()
                late = [job for job in self._jobs.values() if job.deadline_s <= now]
                if not self._jobs:
                    self._watch = None
                    return
                if not late:
                    nearest_s = min(job.deadline_s for job in self._jobs.values()) - now
                    self._lock.wait(min(max(nearest_s, 0.01), 0.25))
                    continue
            for job in late:
                self._expire(job)

    def _expire(self, job: "_Job") -> None:
        waited_s = self._clock() - job.began_s
        if job.is_waiting:
            self.metrics.rejected("queue_wait")
            retry_after_s = self._retry_after_s(self.num_active)
            error: Exception = Overloaded(
                f"no answer began in {waited_s:.0f} s, the longest a request waits: ask again "
                "later",
                retry_after_s,
            )
        else:
            error = DeadlineExceeded(
                f"the answer took {waited_s:.0f} s, the longest it may take: ask for fewer tokens"
            )
            self.metrics.error("DeadlineExceeded")
        self._end(job, error)


@dataclass(slots=True)
class _Body:
    """Requests that come together."""

    num_answers: int
    is_let_in: bool = False


@dataclass(eq=False, slots=True)
class _Job:
    """One request on its way; its engine calls `take`."""

    admission: Admission
    request: Request
    deliver: Deliver
    began_s: float
    first_s: float | None = None
    last_s: float = 0.0
    num_tokens: int = 0
    is_told: bool = False
    """Whether who asked has had the last word."""
    num_left: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_left = self.request.num_samples

    @property
    def is_waiting(self) -> bool:
        return self.first_s is None

    @property
    def deadline_s(self) -> float:
        if self.is_told:
            return math.inf
        settings = self.admission.settings
        wait_s = settings.queue_wait_s if self.is_waiting else settings.request_deadline_s
        return self.began_s + min(wait_s, settings.request_deadline_s)

    def take(self, event: TokenEvent | Exception) -> None:
        if isinstance(event, Exception):
            self.admission.metrics.error(type(event).__name__)
            self._finish("error")
        else:
            self._count(event)
        if not self.is_told:
            self.deliver(event)

    def tell_once(self, error: Exception) -> bool:
        was_told, self.is_told = self.is_told, True
        if not was_told:
            self.deliver(error)
        return not was_told

    def _count(self, event: TokenEvent) -> None:
        metrics, now = self.admission.metrics, self.admission._clock()
        if event.finish_reason != "abort":
            if self.first_s is None:
                self.first_s = now
                metrics.first_token(now - self.began_s)
            elif self.request.num_samples == 1:
                metrics.next_token(now - self.last_s)
            self.last_s = now
        if event.finish_reason in (None, "length"):
            self.num_tokens += 1
            metrics.token()
        if event.finish_reason is not None:
            self.num_left -= 1
            if not self.num_left:
                self._finish(event.finish_reason)

    def _finish(self, reason: str) -> None:
        self.num_left = 0
        if self.is_told and reason == "abort":  # we gave up, not the client
            reason = "error"
        self.admission._ended(self, reason)

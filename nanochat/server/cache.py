"""Answers that have been given before.   in: requests   out: the same events, from memory or engine
who calls: stream.py (asks), admin.py (looks and flushes)

Equal requests at the same time are generated once.  Only whole answers are kept: none that was
cancelled, cut off or failed.
Read next: cache_key.py (which requests are equal), admission.py (the door behind it),
docs/operate.md (how to steer it).
"""

import dataclasses
import sys
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from nanochat.engine.request import NO_TOKEN, Request, TokenEvent
from nanochat.server.cache_key import CachePolicy, request_key
from nanochat.server.settings import CacheSettings
from nanochat.server.stream import EngineDoor

__all__ = ["CacheAnswer", "CacheStats", "ResponseCache"]

Deliver = Callable[[TokenEvent | Exception], None]
MAX_EVENTS_AT_ONCE = 256
"""Events that are told again by whoever asks: less than 1 ms."""


class CacheAnswer(NamedTuple):
    """Where an answer comes from."""

    status: Literal["HIT", "MISS", "BYPASS"]
    age_s: float = 0.0
    key: str | None = None


class CacheStats(NamedTuple):
    """What a cache holds and has done."""

    entries: int
    bytes: int
    hits: int
    misses: int
    bypasses: int
    joined: int
    """Hits of answers that were still being written."""
    evictions: Mapping[str, int]
    """By reason: expired, entries, bytes, removed."""


class ResponseCache:
    """A door in front of an engine's, for requests with a policy."""

    def __init__(
        self,
        engine: EngineDoor,
        settings: CacheSettings | None = None,
        *,
        model: str = "",
        model_hash: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings or CacheSettings()
        self._engine, self._model, self._model_hash, self._clock = engine, model, model_hash, clock
        self._lock = threading.Lock()  # guards what follows; never held while the engine is called
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # the one used last is last
        self._flights: dict[str, _Flight] = {}  # by key: answers that others may join
        self._followed: dict[str, _Flight] = {}  # by request id
        self._replaying = ThreadPoolExecutor(2, "nanochat-replay")  # begins at its first work
        self._num_bytes = 0
        self._counts: Counter[str] = Counter()
        self._evictions: Counter[str] = Counter()

    # --------------------------------------------------------------------------- ask

    def submit(
        self, request: Request, deliver: Deliver, *, tenant: str = "", policy: CachePolicy
    ) -> CacheAnswer:
        """Have the events of a request delivered, from wherever they come.

        Raises: what the engine's `submit` raises.
        """
        if not (policy.reads or policy.writes):
            with self._lock:
                self._counts["bypass"] += 1
            self._engine.submit(request, deliver)
            return CacheAnswer("BYPASS")
        key = request_key(
            request,
            model_hash=self._model_hash or self._model,
            tenant=tenant,
            has_seed=policy.has_seed,
            namespace=policy.namespace,
        )
        with self._lock:
            if policy.reads and (found := self._found(key, request, deliver, policy.max_age_s)):
                return found
            self._counts["miss"] += 1
            flight = _Flight(self, key, request, policy)
            flight.listeners[request.request_id] = deliver
            self._followed[request.request_id] = flight
            if policy.writes:
                self._flights.setdefault(key, flight)
        try:
            self._engine.submit(request, flight.take)
        except BaseException as error:
            with self._lock:
                self._end(flight)
                flight.listeners.pop(request.request_id, None)
                others = list(flight.listeners.values())
            for other in others:  # they came while the engine was thinking about it
                other(error if isinstance(error, Exception) else RuntimeError("interrupted"))
            raise
        return CacheAnswer("MISS", key=key)

    def cancel(self, request_id: str, /) -> None:
        """Stop listening; the engine stops once nobody listens any more."""
        with self._lock:
            flight = self._followed.pop(request_id, None)
            if flight is None:
                engine_id: str | None = request_id
            else:
                deliver = flight.listeners.pop(request_id)
                engine_id = None if flight.listeners else flight.request.request_id
                if engine_id is not None:
                    self._close(flight)
                for sample in flight.unfinished:
                    deliver(_aborted(request_id, sample))
        if engine_id is not None:
            self._engine.cancel(engine_id)

    # -------------------------------------------------------------------------- steer

    def clear(self, model: str | None = None) -> int:
        """Forget everything, or the answers of one model; how many those were.  What is being
        written now is not kept either."""
        with self._lock:
            if model not in (None, self._model):
                return 0
            for flight in list(self._flights.values()):
                self._close(flight)
            num_entries = len(self._entries)
            self._evictions["removed"] += num_entries
            self._entries.clear()
            self._num_bytes = 0
            return num_entries

    def remove(self, key: str) -> bool:
        """Forget one answer; whether it was there."""
        with self._lock:
            if flight := self._flights.get(key):
                self._close(flight)
            return self._evict(key, "removed")

    def stats(self) -> CacheStats:
        """What it holds and has done."""
        with self._lock:
            self._drop_expired()
            return CacheStats(
                entries=len(self._entries),
                bytes=self._num_bytes,
                hits=self._counts["hit"] + self._counts["joined"],
                misses=self._counts["miss"],
                bypasses=self._counts["bypass"],
                joined=self._counts["joined"],
                evictions=dict(self._evictions),
            )

    # ------------------------------------------------- inside, all of it under the lock

    def _found(
        self, key: str, request: Request, deliver: Deliver, max_age_s: float | None
    ) -> CacheAnswer | None:
        now = self._clock()
        entry = self._entries.get(key)
        if entry is not None and entry.end_s <= now:
            self._evict(key, "expired")
            entry = None
        if entry is not None and (max_age_s is None or now - entry.begin_s <= max_age_s):
            self._entries.move_to_end(key)
            self._counts["hit"] += 1
            self._replay(entry.events, request, deliver)
            return CacheAnswer("HIT", now - entry.begin_s, key)
        if flight := self._flights.get(key):
            self._counts["joined"] += 1
            deliver = self._replay(flight.events, request, deliver)
            flight.listeners[request.request_id] = deliver
            self._followed[request.request_id] = flight
            return CacheAnswer("HIT", 0.0, key)
        return None

    def _replay(self, events: Sequence[TokenEvent], to: Request, deliver: Deliver) -> Deliver:
        """Tell what was said before, much of it from another thread; where to tell what comes
        next."""
        if len(events) <= MAX_EVENTS_AT_ONCE:
            for event in events:
                deliver(_to(event, to.request_id))
            return deliver
        replay = _Replay(events, to.request_id, deliver)
        self._replaying.submit(replay.run)
        return replay.tell

    def _close(self, flight: "_Flight") -> None:
        """Nobody may join it any more, and it is not kept."""
        flight.is_kept = False
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]

    def _end(self, flight: "_Flight") -> None:
        """It has no more to say."""
        self._close(flight)
        for request_id in flight.listeners:
            self._followed.pop(request_id, None)

    def _keep(self, flight: "_Flight") -> None:
        if flight.num_bytes > self.settings.max_bytes:
            return
        now = self._clock()
        ttl_s = flight.policy.ttl_s
        ttl_s = self.settings.ttl_s if ttl_s is None else min(ttl_s, self.settings.ttl_s)
        self._evict(flight.key, "removed", is_counted=False)
        entry = _Entry(tuple(flight.events), flight.num_bytes, now, now + ttl_s)
        self._entries[flight.key] = entry
        self._num_bytes += entry.num_bytes
        self._drop_expired()
        while len(self._entries) > self.settings.max_entries:
            self._evict(next(iter(self._entries)), "entries")
        while self._num_bytes > self.settings.max_bytes:
            self._evict(next(iter(self._entries)), "bytes")

    def _drop_expired(self) -> None:
        now = self._clock()
        for key in [key for key, entry in self._entries.items() if entry.end_s <= now]:
            self._evict(key, "expired")

    def _evict(self, key: str, reason: str, *, is_counted: bool = True) -> bool:
        entry = self._entries.pop(key, None)
        if entry is None:
            return False
        self._num_bytes -= entry.num_bytes
        self._evictions[reason] += is_counted
        return True


@dataclass(frozen=True, slots=True)
class _Entry:
    events: tuple[TokenEvent, ...]
    num_bytes: int
    begin_s: float
    end_s: float


@dataclass(eq=False, slots=True)
class _Flight:
    """An answer that is being written, and everybody who listens."""

    cache: ResponseCache
    key: str
    request: Request
    policy: CachePolicy
    listeners: dict[str, Deliver] = field(default_factory=dict)  # by request id
    events: list[TokenEvent] = field(default_factory=list)
    num_bytes: int = 0
    is_kept: bool = field(init=False)
    unfinished: set[int] = field(init=False)

    def __post_init__(self) -> None:
        self.is_kept = self.policy.writes
        self.unfinished = set(range(self.request.num_samples))

    def take(self, event: TokenEvent | Exception) -> None:
        """The engine's next word; its thread calls."""
        cache = self.cache
        with cache._lock:
            if isinstance(event, Exception):
                cache._end(self)
            else:
                self._note(event)
            for request_id, deliver in list(self.listeners.items()):
                try:
                    deliver(_to(event, request_id))
                except Exception:
                    del self.listeners[request_id]
                    cache._followed.pop(request_id, None)
                    if not self.listeners:
                        raise  # the engine drops what nobody can be told

    def _note(self, event: TokenEvent) -> None:
        cache = self.cache
        if event.finish_reason is not None:
            self.unfinished.discard(event.sample)
        if event.finish_reason in ("abort", "error"):
            cache._close(self)
        if self.is_kept:
            self.events.append(event)
            self.num_bytes += _num_bytes(event)
            if self.num_bytes > cache.settings.max_bytes:  # who has joined still hears the rest
                cache._close(self)
                self.events.clear()
        if not self.unfinished:
            if self.is_kept:
                cache._keep(self)
            cache._end(self)


class _Replay:
    """Many events for one listener, told from another thread than the one that asks, which has
    others to serve; what comes meanwhile is told after them."""

    def __init__(self, events: Sequence[TokenEvent], request_id: str, deliver: Deliver) -> None:
        self._waiting: deque[TokenEvent | Exception] = deque(events)
        self._request_id, self._deliver = request_id, deliver
        self._lock = threading.Lock()
        self._is_over = False

    def tell(self, event: TokenEvent | Exception) -> None:
        """One more."""
        with self._lock:
            if not self._is_over:
                self._waiting.append(event)
                return
        self._deliver(event)

    def run(self) -> None:
        """Tell all that waits; a listener that breaks is told no more."""
        while True:
            with self._lock:
                if not self._waiting:
                    self._is_over = True
                    return
                event = self._waiting.popleft()
            try:
                self._deliver(_to(event, self._request_id))
            except Exception:
                with self._lock:
                    self._is_over = True
                    return


def _to(event: TokenEvent | Exception, request_id: str) -> TokenEvent | Exception:
    if isinstance(event, Exception) or event.request_id == request_id:
        return event
    return dataclasses.replace(event, request_id=request_id)


def _aborted(request_id: str, sample: int) -> TokenEvent:
    return TokenEvent(
        request_id=request_id,
        sample=sample,
        token=NO_TOKEN,
        text="",
        logprob=0.0,
        finish_reason="abort",
    )


PAIR_BYTES = 56 + 28 + 24 + 8  # a tuple of a number and a float, and the place that names it


def _num_bytes(event: TokenEvent) -> int:
    """Memory that an event takes, about."""
    size = sys.getsizeof(event) + sys.getsizeof(event.text) + 32
    size += PAIR_BYTES * len(event.top_logprobs)
    for token in event.prompt_logprobs:
        size += 2 * PAIR_BYTES + PAIR_BYTES * len(token.top_logprobs)
    return size

"""Several engines -> one.   in: requests   out: the events of whichever engine has least to do
who calls: cli/serve.py (makes it), admission.py

A request stays with its engine.  An engine that has died is left out until it is there again; its
requests are told, and the next ones go to the others.
Read next: engine/worker.py (an engine in a process of its own, restarted when it dies).
"""

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from nanochat.common.errors import Unavailable
from nanochat.engine.request import Request, TokenEvent
from nanochat.engine.stats import EngineStats, total
from nanochat.server.stream import EngineDoor

__all__ = ["EnginePool", "PooledDoor"]

Deliver = Callable[[TokenEvent | Exception], None]
LOADING_S = 5  # what a client is told to wait for an engine


class PooledDoor(EngineDoor, Protocol):
    """An engine that says how it does."""

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken at once."""

    def stats(self) -> EngineStats:
        """What it is doing."""


class EnginePool:
    """A door in front of several."""

    def __init__(self, doors: Sequence[PooledDoor]) -> None:
        assert doors, "a pool of no engines"
        self._doors = tuple(doors)
        self._lock = threading.Lock()  # guards the next two
        self._load = [0] * len(doors)  # answers that run or wait
        self._place: dict[str, int] = {}  # of a request's engine

    @property
    def is_ready(self) -> bool:
        """Whether any engine takes requests."""
        return any(door.is_ready for door in self._doors)

    @property
    def loads(self) -> tuple[int, ...]:
        """Answers that run or wait, by engine."""
        with self._lock:
            return tuple(self._load)

    def submit(self, request: Request, deliver: Deliver, /) -> None:
        """As an engine's.

        Raises: Unavailable while no engine is there; what the engine's `submit` raises.
        """
        for place in self._by_load():
            door = self._doors[place]
            if not door.is_ready:
                continue
            self._take(request, place)
            try:
                door.submit(request, self._counting(request, deliver))
            except Unavailable:  # it has just died; nothing has been delivered
                self._give_back(request)
                continue
            except BaseException:
                self._give_back(request)
                raise
            return
        raise Unavailable("no engine is ready: one is being loaded, ask again soon", LOADING_S)

    def cancel(self, request_id: str, /) -> None:
        """As an engine's."""
        place = self._place.get(request_id)
        if place is not None:
            self._doors[place].cancel(request_id)

    def stats(self) -> EngineStats:
        """Of all engines together."""
        return total([door.stats() for door in self._doors])

    def _by_load(self) -> list[int]:
        with self._lock:
            return sorted(range(len(self._doors)), key=lambda place: self._load[place])

    def _take(self, request: Request, place: int) -> None:
        with self._lock:
            self._load[place] += request.num_samples
            self._place[request.request_id] = place

    def _give_back(self, request: Request) -> None:
        with self._lock:
            place = self._place.pop(request.request_id)
            self._load[place] -= request.num_samples

    def _counting(self, request: Request, deliver: Deliver) -> Deliver:
        num_left = request.num_samples

        def counted(event: TokenEvent | Exception) -> None:
            nonlocal num_left
            is_last = isinstance(event, Exception)
            if isinstance(event, TokenEvent) and event.finish_reason is not None:
                num_left -= 1
                is_last = num_left == 0
            if is_last:
                self._give_back(request)
            deliver(event)

        return counted

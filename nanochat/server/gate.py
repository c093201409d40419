"""Everything between the routes and the engine, put together.   in: an engine, settings
out: one door, the routes for operators, the middleware   who calls: app.py

    client -> RequestLog -> Guard -> routes -> ResponseCache -> Admission -> EnginePool -> engines
              id, line     key, host,          given before?    room, time   least to do
                           size
Read next: each of them, in that order: logs.py, limits.py, cache.py, admission.py, pool.py.
"""

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from typing import Any

from fastapi import FastAPI

from nanochat.engine.request import Request, TokenEvent
from nanochat.engine.stats import EngineStats
from nanochat.server.admin import Operations, admin_routes
from nanochat.server.admission import Admission
from nanochat.server.cache import CacheAnswer, ResponseCache
from nanochat.server.cache_key import CachePolicy
from nanochat.server.limits import PUBLIC_PATHS, Guard
from nanochat.server.logs import RequestLog
from nanochat.server.metrics import Metrics
from nanochat.server.settings import ServerSettings
from nanochat.server.stream import EngineDoor

__all__ = ["Gate"]

Deliver = Callable[[TokenEvent | Exception], None]


class Gate:
    """The door that the routes know."""

    def __init__(
        self, engine: EngineDoor, settings: ServerSettings, *, model: str, model_hash: str
    ) -> None:
        self.settings, self.metrics = settings, Metrics()
        self.admission = Admission(engine, settings, self.metrics)
        self.cache: ResponseCache | None = None
        if settings.cache is not None:
            self.cache = ResponseCache(
                self.admission, settings.cache, model=model, model_hash=model_hash
            )
        self.operations = Operations(
            self.admission,
            self.cache,
            getattr(engine, "stats", EngineStats),
            loads=lambda: getattr(engine, "loads", (self.admission.num_active,)),
            is_admin_open=settings.keys is not None or not settings.is_public,
        )

    def submit(
        self, request: Request, deliver: Deliver, *, tenant: str = "", policy: CachePolicy
    ) -> CacheAnswer:
        """Have the events of a request delivered, from the cache or the engine.

        Raises: Overloaded, Unavailable; what the engine's `submit` raises.
        """
        if self.cache is not None:
            return self.cache.submit(request, deliver, tenant=tenant, policy=policy)
        self.admission.submit(request, deliver)
        return CacheAnswer("BYPASS")

    def together(self, requests: Sequence[Request]) -> AbstractContextManager[None]:
        """While requests of one body are asked: room for one is room for all."""
        return self.admission.together(requests)

    def cancel(self, request_id: str, /) -> None:
        """As an engine's."""
        (self.cache or self.admission).cancel(request_id)

    def check(self, num_answers: int = 1) -> None:
        """Refuse early what would be refused later anyway, before any work is done for it; with a
        cache, an answer may be there although there is no room for another.

        Raises: Overloaded, Unavailable.
        """
        if self.cache is None or not self.admission.is_ready:
            self.admission.check(num_answers)

    def install(
        self,
        app: FastAPI,
        model: Any,
        page_paths: Collection[str],
        check_model: Callable[[str], None],
    ) -> None:
        """Routes and middleware; `model` is a ServedModel, the page's paths need no key."""
        app.include_router(admin_routes(self.operations, model, check_model))
        app.add_middleware(
            Guard,
            limits=self.settings.limits,
            keys=self.settings.keys,
            public_paths=PUBLIC_PATHS | frozenset(page_paths),
            on_refusal=self.metrics.rejected,
        )
        app.add_middleware(RequestLog, metrics=self.metrics)  # the last one added is outermost
        app.state.admission = self.admission

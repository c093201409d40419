"""How the server does.   in: doors, metrics   out: routes for machines and operators
who calls: app.py

    GET    /health              whether the process answers: liveness
    GET    /ready               200 while requests are taken, else 503: readiness
    GET    /version             the version
    GET    /stats               for the page: the model, its defaults, what is going on
    GET    /metrics             for Prometheus
    GET    /admin/cache         what the response cache holds
    DELETE /admin/cache         forget it all, or ?model=; /admin/cache/{key}: one answer
Read next: metrics.py, cache.py, limits.py (who may ask).
"""

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

import nanochat
from nanochat.engine.stats import EngineStats
from nanochat.server.admission import Admission
from nanochat.server.cache import ResponseCache
from nanochat.server.errors import ApiError
from nanochat.server.metrics import Gauge, Metrics

__all__ = ["Operations", "admin_routes"]

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
ANY_JSON: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
RATE_S = 2.0  # tokens per second are counted over about so long


class Operations:
    """What the routes look at."""

    def __init__(
        self,
        admission: Admission,
        cache: ResponseCache | None,
        engine_stats: Callable[[], EngineStats],
        *,
        loads: Callable[[], tuple[int, ...]],
        is_admin_open: bool = True,
    ) -> None:
        self.admission, self.cache = admission, cache
        self.metrics: Metrics = admission.metrics
        self.is_admin_open = is_admin_open
        self._engine_stats, self._loads = engine_stats, loads
        self._rate = _Rate(lambda: self.metrics.value("generation_tokens_total"))
        self.metrics.watch(self.gauges)

    def numbers(self) -> dict[str, Any]:
        """What is going on, as JSON."""
        engine = EngineStats(*self._engine_stats())
        num_workers, num_available = self.workers()
        return {
            "running": self.admission.num_active - self.admission.num_waiting,
            "waiting": self.admission.num_waiting,
            "max_active": self.admission.settings.max_active,
            "max_queue": self.admission.settings.max_queue,
            "kv_cache_usage": round(engine.kv_usage, 4),
            "tokens_per_s": round(self._rate.per_s(), 1),
            "is_draining": self.admission.is_draining,
            "total_workers": num_workers,
            "busy_workers": num_workers - num_available,
            "available_workers": num_available,
            "cache": None if self.cache is None else self.cache.stats()._asdict(),
        }

    def workers(self) -> tuple[int, int]:
        """How many engines there are, and how many of them have a row free."""
        loads = self._loads()
        rows = self.admission.settings.max_active // len(loads)
        return len(loads), sum(load < rows for load in loads)

    def gauges(self) -> Iterator[Gauge]:
        """What Prometheus sees beside what was counted."""
        engine, admission = EngineStats(*self._engine_stats()), self.admission
        num_waiting = admission.num_waiting
        running = admission.num_active - num_waiting
        yield Gauge("num_requests_running", "Answers that are being written", running)
        yield Gauge("num_requests_waiting", "Answers without a first token", num_waiting)
        yield Gauge("kv_cache_usage_perc", "Of the memory for keys, 0 to 1", engine.kv_usage)
        yield Gauge(
            "prefix_cache_queries", "Prompt tokens", engine.num_fed_tokens + engine.num_hit_tokens,
            is_counter=True,
        )  # fmt: skip
        yield Gauge(
            "prefix_cache_hits", "Those whose keys were there", engine.num_hit_tokens,
            is_counter=True,
        )  # fmt: skip
        yield Gauge(
            "num_preemptions", "Answers that gave way", engine.num_preemptions, is_counter=True
        )
        yield Gauge("engine_steps", "Steps of all engines", engine.num_steps, is_counter=True)
        yield Gauge("ready", "1 while requests are taken", float(admission.is_ready))
        yield Gauge("info", "What runs", 1.0, {"version": nanochat.__version__})
        if self.cache is not None:
            yield from _cache_gauges(self.cache)

    def need_admin(self) -> ResponseCache:
        """The cache, for who may steer it.

        Raises: ApiError 403 where everybody could, 404 where there is none.
        """
        if not self.is_admin_open:
            message = "/admin is closed: this server is public and has no API keys."
            raise ApiError(403, message, "admin_closed")
        if self.cache is None:
            raise ApiError(404, "This server keeps no answers.", "cache_disabled")
        return self.cache


def admin_routes(
    operations: Operations, model: Any, check_model: Callable[[str], None]
) -> APIRouter:
    """The routes above; `model` is a ServedModel, `check_model` raises for a name that is none of
    its."""
    router = APIRouter()
    admission = operations.admission

    @router.head("/health", include_in_schema=False)
    @router.get("/health")
    async def health() -> dict[str, Any]:
        """Whether the process answers; with the names of karpathy/nanochat's chat_web.py."""
        num_workers, num_available = operations.workers()
        return {
            "status": "ok",
            "ready": admission.is_ready,
            "model": model.name,
            "context_len": model.context_len,
            "num_active": admission.num_active,
            "num_gpus": num_workers,
            "available_workers": num_available,
        }

    @router.head("/ready", include_in_schema=False)
    @router.get("/ready", responses={503: {"description": "Not now", "content": ANY_JSON}})
    async def ready() -> Response:
        """Whether requests are taken."""
        if admission.is_ready:
            return JSONResponse({"status": "ready"})
        status = "draining" if admission.is_draining else "loading"
        return JSONResponse({"status": status}, 503, {"Retry-After": "5"})

    @router.get("/version")
    async def version() -> dict[str, str]:
        """Which nanochat this is."""
        return {"version": nanochat.__version__}

    @router.get("/stats")
    async def stats() -> dict[str, Any]:
        """The model, its defaults, and what is going on."""
        defaults = dataclasses.asdict(model.defaults)
        kept = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        return {
            "version": nanochat.__version__,
            "model": model.name,
            "context_len": model.context_len,
            "defaults": {name: defaults[name] for name in kept},
            "workers": [
                {"gpu_id": place, "device": device} for place, device in enumerate(model.devices)
            ],
            **operations.numbers(),
        }

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Prometheus' text."""
        return Response(operations.metrics.text(), headers={"Content-Type": METRICS_TYPE})

    @router.get("/admin/cache")
    async def look() -> dict[str, Any]:
        """What the response cache holds and has done."""
        return operations.need_admin().stats()._asdict()

    @router.delete("/admin/cache")
    async def clear(request: Request) -> dict[str, int]:
        """Forget all answers, or those of one model, by any of its names."""
        cache, named = operations.need_admin(), request.query_params.get("model")
        if named is not None:
            check_model(named)
        return {"removed": cache.clear()}

    @router.delete("/admin/cache/{key}")
    async def remove(key: str) -> dict[str, int]:
        """Forget one answer, named by the X-Cache-Key it came with."""
        if not operations.need_admin().remove(key):
            raise ApiError(404, "No answer is kept under this key.", "cache_key_not_found")
        return {"removed": 1}

    return router


def _cache_gauges(cache: ResponseCache) -> Iterator[Gauge]:
    stats = cache.stats()
    name = "response_cache"
    yield Gauge(f"{name}_entries", "Answers kept", stats.entries)
    yield Gauge(f"{name}_bytes", "Memory they take", stats.bytes)
    yield Gauge(f"{name}_hits", "Requests answered from it", stats.hits, is_counter=True)
    yield Gauge(f"{name}_misses", "Requests it had to pass on", stats.misses, is_counter=True)
    yield Gauge(f"{name}_bypasses", "Requests it had no say in", stats.bypasses, is_counter=True)
    yield Gauge(f"{name}_joined", "Hits of answers being written", stats.joined, is_counter=True)
    for reason in ("expired", "entries", "bytes", "removed"):
        count = stats.evictions.get(reason, 0)
        yield Gauge(f"{name}_evictions", "Answers dropped", count, {"reason": reason}, True)


class _Rate:
    """How fast a number grows, seen by who asks now and then."""

    def __init__(self, read: Callable[[], float], clock: Callable[[], float] = time.monotonic):
        self._read, self._clock = read, clock
        self._seen = deque([(clock(), read())], maxlen=100)

    def per_s(self) -> float:
        """Over the last few seconds, or since somebody asked last."""
        now = self._clock()
        self._seen.append((now, self._read()))
        while len(self._seen) > 2 and self._seen[1][0] < now - RATE_S:
            self._seen.popleft()
        (begin, first), (end, last) = self._seen[0], self._seen[-1]
        return (last - first) / (end - begin) if end > begin else 0.0

"""What has happened -> Prometheus' text.   in: calls, gauges to look at   out: GET /metrics
who calls: admission.py (answers), limits.py and logs.py (requests), admin.py (the text)

Names are vLLM's with our prefix, so that its dashboards need little work; what it lacks is here
too: aborted, rejected{reason}, errors{type}, the response cache.  A registry of its own: several
servers may live in one process.
Read next: admin.py; docs/operate.md (which of them to watch).
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from nanochat.engine.request import Request

__all__ = ["Gauge", "Metrics", "Timed"]

# vLLM's, where ours can be that fast or slow.
FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0,
                 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0)  # fmt: skip
NEXT_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75,
                1.0, 2.5, 5.0, 7.5, 10.0, 20.0)  # fmt: skip
WHOLE_S = (0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0,
           60.0, 120.0, 240.0, 480.0, 960.0)  # fmt: skip
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
ANSWERS = (1, 2, 5, 10, 20, 50, 100)


class Timed(Protocol):
    """When a request began and had its first and last token, in seconds of one clock."""

    began_s: float
    first_s: float | None
    last_s: float


class Gauge(NamedTuple):
    """A number that is looked at when somebody asks."""

    name: str
    help: str
    value: float
    labels: Mapping[str, str] = {}
    is_counter: bool = False


class Metrics:
    """The numbers of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of requests that ended")
        self._generated = self._counter("generation_tokens", "Tokens generated")
        self._success = self._counter(
            "request_success", "Requests answered to the end", "finished_reason"
        )
        self._aborted = self._counter("requests_aborted", "Requests whose client went away")
        self._rejected = self._counter("requests_rejected", "Requests not let in", "reason")
        self._errors = self._counter("errors", "Requests that ended in an error", "type")
        self._http = self._counter("http_requests", "Requests", "method", "path", "status")
        self._http_s = self._histogram(
            "http_request_duration_seconds", "From head to last byte", WHOLE_S, "method", "path"
        )
        self._first_s = self._histogram(
            "time_to_first_token_seconds", "From admission to the first token", FIRST_TOKEN_S
        )
        self._next_s = self._histogram(
            "inter_token_latency_seconds", "From one token to the next", NEXT_TOKEN_S
        )
        self._per_token_s = self._histogram(
            "request_time_per_output_token_seconds", "Mean of a request after its first token",
            NEXT_TOKEN_S,
        )  # fmt: skip
        self._whole_s = self._histogram(
            "e2e_request_latency_seconds", "From admission to the last token", WHOLE_S
        )
        self._in = self._histogram("request_prompt_tokens", "Tokens of a prompt", TOKENS)
        self._out = self._histogram("request_generation_tokens", "Tokens of an answer", TOKENS)
        self._asked = self._histogram("request_params_max_tokens", "max_tokens asked for", TOKENS)
        self._answers = self._histogram("request_params_n", "Answers asked for", ANSWERS)

    # ---------------------------------------------------------------------- what happens

    def submitted(self, request: Request) -> None:
        """An engine has taken a request."""
        self._in.observe(len(request.prompt_tokens))
        self._asked.observe(request.sampling.max_tokens)
        self._answers.observe(request.num_samples)

    def first_token(self, seconds: float) -> None:
        """A request has its first token."""
        self._first_s.observe(seconds)

    def next_token(self, seconds: float) -> None:
        """An answer has gone on."""
        self._next_s.observe(seconds)

    def token(self) -> None:
        """A token has been written."""
        self._generated.inc()

    def finished(
        self, request: Request, reason: str, *, num_tokens: int, job: Timed, now_s: float
    ) -> None:
        """A request has ended, for whatever reason."""
        self._prompt_tokens.inc(len(request.prompt_tokens))
        if reason == "abort":
            self._aborted.inc()
        elif reason in ("stop", "length"):
            self._success.labels(reason).inc()
            self._out.observe(num_tokens)
            self._whole_s.observe(now_s - job.began_s)
            if job.first_s is not None and num_tokens > 1:
                self._per_token_s.observe((job.last_s - job.first_s) / (num_tokens - 1))

    def rejected(self, reason: str) -> None:
        """A request has not been let in."""
        self._rejected.labels(reason).inc()

    def error(self, kind: str) -> None:
        """Something has gone wrong; `kind` is the name of a class."""
        self._errors.labels(kind).inc()

    def http(self, method: str, path: str, status: int, seconds: float) -> None:
        """A request has been answered; `path` is a route's template, never what was asked for."""
        self._http.labels(method, path, str(status)).inc()
        self._http_s.labels(method, path).observe(seconds)

    # ------------------------------------------------------------------------ who looks

    def watch(self, look: Callable[[], Iterator[Gauge]]) -> None:
        """Have numbers looked at whenever the text is asked for."""
        self.registry.register(_Watched(look))

    def text(self) -> bytes:
        """All of it, in the text format of version 0.0.4."""
        return generate_latest(self.registry)

    def value(self, name: str, **labels: str) -> float:
        """One number, by its name in the text; 0 where nothing has happened."""
        return self.registry.get_sample_value(f"nanochat_{name}", labels) or 0.0

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(f"nanochat_{name}", help, labels, registry=self.registry)

    def _histogram(
        self, name: str, help: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(f"nanochat_{name}", help, labels, buckets=buckets, registry=self.registry)


class _Watched(Collector):
    def __init__(self, look: Callable[[], Iterator[Gauge]]) -> None:
        self._look = look

    def describe(self) -> list[Metric]:
        return []  # so that registering does not look

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Any] = {}
        for gauge in self._look():
            kind = CounterMetricFamily if gauge.is_counter else GaugeMetricFamily
            name = f"nanochat_{gauge.name}"
            if name not in families:
                families[name] = kind(name, gauge.help, labels=tuple(gauge.labels))
            families[name].add_metric(tuple(gauge.labels.values()), gauge.value)
        yield from families.values()

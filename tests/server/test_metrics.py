"""metrics.py: Prometheus reads it, under vLLM's names."""

from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from nanochat.server.metrics import Gauge, Metrics
from tests.server.test_cache import request


class Job:
    began_s, first_s, last_s = 1.0, 1.5, 2.5


def test_prometheus_reads_it() -> None:
    metrics = Metrics()
    asked = request("a", (1, 2, 3), max_tokens=7, temperature=1.0)
    metrics.submitted(asked)
    metrics.first_token(0.5)
    metrics.next_token(0.1)
    metrics.token()
    metrics.finished(asked, "stop", num_tokens=3, job=Job(), now_s=2.5)
    metrics.finished(asked, "abort", num_tokens=1, job=Job(), now_s=2.5)
    metrics.finished(asked, "error", num_tokens=0, job=Job(), now_s=2.5)
    metrics.rejected("queue_full")
    metrics.error("EngineError")
    metrics.http("POST", "/v1/chat/completions", 200, 0.2)

    def look() -> Iterator[Gauge]:
        yield Gauge("num_requests_running", "Running", 4)
        yield Gauge("response_cache_evictions", "Dropped", 2, {"reason": "bytes"}, True)
        yield Gauge("response_cache_evictions", "Dropped", 3, {"reason": "expired"}, True)

    metrics.watch(look)
    families = {
        family.name: family for family in text_string_to_metric_families(metrics.text().decode())
    }
    assert {family.name for family in families.values()} >= {
        f"nanochat_{name}"
        for name in (
            "prompt_tokens", "generation_tokens", "request_success", "requests_aborted",
            "requests_rejected", "errors", "http_requests", "time_to_first_token_seconds",
            "inter_token_latency_seconds", "request_time_per_output_token_seconds",
            "e2e_request_latency_seconds", "request_prompt_tokens", "request_generation_tokens",
            "request_params_n", "request_params_max_tokens", "num_requests_running",
            "response_cache_evictions",
        )
    }  # fmt: skip
    assert families["nanochat_num_requests_running"].samples[0].value == 4
    evictions = families["nanochat_response_cache_evictions"]
    assert {s.labels["reason"]: s.value for s in evictions.samples} == {"bytes": 2, "expired": 3}
    assert metrics.value("prompt_tokens_total") == 9
    assert metrics.value("request_success_total", finished_reason="stop") == 1
    assert metrics.value("requests_aborted_total") == 1
    assert metrics.value("request_time_per_output_token_seconds_sum") == pytest.approx(0.5)
    assert metrics.value("e2e_request_latency_seconds_sum") == 1.5
    assert metrics.value("request_generation_tokens_sum") == 3
    assert metrics.value("no_such_thing") == 0


def test_two_servers_in_one_process_count_for_themselves() -> None:
    one, two = Metrics(), Metrics()
    one.rejected("draining")
    assert two.value("requests_rejected_total", reason="draining") == 0

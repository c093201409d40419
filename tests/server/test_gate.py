"""gate.py and admin.py: who may ask what, answers that come again, and how the server does."""

import asyncio
import json
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from starlette.routing import Route

from nanochat.common.errors import Unavailable
from nanochat.engine.stats import EngineStats
from nanochat.server.app import ServedModel, create_app
from nanochat.server.keys import Keys
from nanochat.server.limits import PUBLIC_PATHS, SECURITY_HEADERS
from nanochat.server.page import PAGE_FILES
from nanochat.server.settings import CacheSettings, ServerSettings
from tests.patience import wait_until
from tests.server.conftest import ask, live
from tests.server.fakes import FakeEngine
from tests.server.test_app import CHAT, assert_error

KEY, OTHER = "the-first-of-two-keys", "the-other-of-two-keys"
GREEDY: dict[str, Any] = {"temperature": 0}


class Counted(FakeEngine):
    is_ready = True

    def stats(self) -> EngineStats:
        return EngineStats(num_blocks=10, num_free_blocks=7, num_hit_tokens=5, num_fed_tokens=15)


@pytest.fixture
def engine() -> Counted:
    return Counted(("Hel", "lo", " there"))


@pytest.fixture
def open_client(engine: Counted, served: ServedModel) -> TestClient:
    return client_of(engine, served)


def client_of(engine: FakeEngine, served: ServedModel, **settings: Any) -> TestClient:
    app = create_app(engine, served, ServerSettings(**settings))
    return TestClient(app, base_url="http://localhost", raise_server_exceptions=False)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


# ------------------------------------------------------------------------------------ keys


def all_routes(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Every method and path there is, in whatever the framework keeps them."""
    waiting: list[Any] = list(app.routes)
    while waiting:
        route = waiting.pop()
        if isinstance(route, Route | APIRoute):
            for method in route.methods or {"GET"}:
                yield method, re.sub(r"[{}]|:path", "", route.path)
        else:
            inner = getattr(route, "routes", None) or route.original_router.routes
            waiting.extend(inner)


@pytest.mark.req("FR-062")
def test_every_route_is_on_the_public_list_or_asks_for_a_key(
    engine: Counted, served: ServedModel
) -> None:
    client = client_of(engine, served, keys=Keys([KEY]))
    public = PUBLIC_PATHS | set(PAGE_FILES)
    app = client.app
    assert isinstance(app, FastAPI)
    routes = set(all_routes(app))
    described = client.get("/openapi.json", headers=bearer(KEY)).json()["paths"]
    assert {path.replace("{", "").replace("}", "") for path in described} <= {p for _, p in routes}
    assert {path for _, path in routes} >= {
        CHAT,
        "/metrics",
        "/admin/cache",
        "/stats",
        "/",
        "/ready",
    }
    for method, path in routes | {("GET", "/nowhere"), ("POST", "/v1/x"), ("OPTIONS", CHAT)}:
        response = client.request(method, path, headers={"Content-Type": "application/json"})
        if path in public and method in ("GET", "HEAD"):
            assert response.status_code == 200, path
        elif method == "HEAD":
            assert response.status_code == 401, path
        else:
            assert_error(response, 401, "invalid_api_key")
            assert response.headers["www-authenticate"] == "Bearer"
            wrong = client.request(method, path, headers=bearer(KEY + "x"))
            assert KEY not in assert_error(wrong, 401, "invalid_api_key")
    for path in public:  # public for reading alone
        assert client.post(path, json={}).status_code == 401
    assert client.post(CHAT, json=ask(), headers=bearer(KEY)).status_code == 200
    assert not engine.requests[1:]


@pytest.mark.parametrize("path", ["/health/", "/health/../v1/models", "/ready%2f..", "/HEALTH"])
def test_no_spelling_of_a_public_path_opens_another(
    path: str, engine: Counted, served: ServedModel
) -> None:
    client = client_of(engine, served, keys=Keys([KEY]))
    assert client.get(path, follow_redirects=False).status_code == 401


@pytest.mark.req("FR-055")
def test_what_was_kept_for_one_key_is_not_shown_to_another(
    engine: Counted, served: ServedModel
) -> None:
    client = client_of(engine, served, keys=Keys([KEY, OTHER]))
    found = [
        client.post(CHAT, json=ask(**GREEDY), headers=bearer(key)).headers["x-cache"]
        for key in (KEY, OTHER, KEY, OTHER)
    ]
    assert found == ["MISS", "MISS", "HIT", "HIT"]


def test_admin_is_closed_where_everybody_could_steer_it(
    engine: Counted, served: ServedModel
) -> None:
    public = client_of(engine, served, is_public=True)
    for method in ("GET", "DELETE"):
        assert_error(public.request(method, "/admin/cache"), 403, "admin_closed")
    assert_error(public.delete("/admin/cache/x"), 403, "admin_closed")
    keyed = client_of(engine, served, is_public=True, keys=Keys([KEY]))
    assert keyed.get("/admin/cache", headers=bearer(KEY)).status_code == 200


# ----------------------------------------------------------------------------------- cache


@pytest.mark.req("FR-055")
@pytest.mark.parametrize("is_stream", [True, False])
def test_an_answer_comes_again_in_the_same_pieces_under_a_new_id(
    open_client: TestClient, engine: Counted, is_stream: bool
) -> None:
    body = ask(**GREEDY, stream=is_stream)
    first, second = (open_client.post(CHAT, json=body) for _ in range(2))
    assert (first.headers["x-cache"], second.headers["x-cache"]) == ("MISS", "HIT")
    assert "age" not in first.headers and int(second.headers["age"]) >= 0
    assert first.headers["x-cache-key"] == second.headers["x-cache-key"]
    assert contents(first) == contents(second) and "".join(contents(first)) == "Hello there"
    ids = {frame["id"] for response in (first, second) for frame in frames(response)}
    assert len(ids) == 2 and len(engine.requests) == 1
    if not is_stream:
        assert first.json()["usage"] == second.json()["usage"]
    mixed = open_client.post(CHAT, json=ask(**GREEDY, stream=not is_stream))
    assert mixed.headers["x-cache"] == "HIT"  # whether it is streamed is no part of the key


def frames(response: Any) -> list[dict[str, Any]]:
    if response.headers["content-type"].startswith("application/json"):
        return [response.json()]
    lines = [line for line in response.text.splitlines() if line.startswith("data: {")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def contents(response: Any) -> list[str]:
    choices = [choice for frame in frames(response) for choice in frame["choices"]]
    parts = [choice.get("delta") or choice.get("message") or {} for choice in choices]
    return [part["content"] for part in parts if part.get("content")]


@pytest.mark.req("FR-055")
def test_what_a_request_says_of_the_cache(open_client: TestClient, engine: Counted) -> None:
    def status(header: str | None = None, **fields: Any) -> str:
        headers = {} if header is None else {"Cache-Control": header}
        response = open_client.post(CHAT, json=ask(**fields), headers=headers)
        assert response.status_code == 200, response.text
        return str(response.headers["x-cache"])

    assert [status(temperature=1) for _ in range(2)] == ["BYPASS", "BYPASS"]
    assert [status(temperature=1, seed=5) for _ in range(2)] == ["MISS", "HIT"]
    assert status(temperature=1, seed=6) == "MISS"
    assert [status(temperature=1, cache={"ttl": 60}) for _ in range(2)] == ["MISS", "HIT"]
    assert [status("no-store", **GREEDY) for _ in range(2)] == ["BYPASS", "BYPASS"]
    assert [status(**GREEDY, cache={"no-store": True}) for _ in range(2)] == ["MISS", "MISS"]
    mine = {"cache": {"namespace": "mine"}}
    assert [status(**GREEDY, **mine), status(**GREEDY, **mine)] == ["MISS", "HIT"]
    assert status(**GREEDY, cache={"namespace": "mine", "s-maxage": 0}) == "MISS"
    assert [status("no-cache", **GREEDY), status(**GREEDY)] == ["MISS", "HIT"]
    wrong = open_client.post(CHAT, json=ask(cache={"ttl": -1}))
    assert_error(wrong, 400, "decimal_below_min_value", "cache.ttl")


@pytest.mark.req("FR-056")
def test_the_cache_is_looked_at_and_flushed_by_hand(open_client: TestClient) -> None:
    keys = [
        open_client.post(CHAT, json=ask(text, **GREEDY)).headers["x-cache-key"] for text in "abc"
    ]
    stats = open_client.get("/admin/cache").json()
    assert (stats["entries"], stats["misses"], stats["hits"]) == (3, 3, 0)
    assert open_client.delete(f"/admin/cache/{keys[0]}").json() == {"removed": 1}
    assert_error(open_client.delete(f"/admin/cache/{keys[0]}"), 404, "cache_key_not_found")
    unknown = open_client.delete("/admin/cache?model=other")
    assert_error(unknown, 404, "model_not_found", "model")
    assert open_client.delete("/admin/cache?model=tiny").json() == {"removed": 2}
    assert open_client.get("/admin/cache").json()["bytes"] == 0
    cross = open_client.delete("/admin/cache", headers={"Sec-Fetch-Site": "cross-site"})
    assert_error(cross, 403, "cross_site_request")


def test_a_server_without_a_cache_says_so(engine: Counted, served: ServedModel) -> None:
    client = client_of(engine, served, cache=None)
    assert client.post(CHAT, json=ask(**GREEDY)).headers["x-cache"] == "BYPASS"
    assert_error(client.get("/admin/cache"), 404, "cache_disabled")
    assert client.get("/stats").json()["cache"] is None
    assert "response_cache" not in client.get("/metrics").text


@pytest.mark.req("FR-055")
def test_who_joins_an_answer_keeps_it_alive(served: ServedModel) -> None:
    engine = FakeEngine(("a", "b"))
    engine.gate.clear()
    app = create_app(engine, served)
    with live(app) as url:
        body = ask(**GREEDY, stream=True)
        with httpx.stream("POST", f"{url}{CHAT}", json=body, timeout=60) as first:
            assert first.headers["x-cache"] == "MISS"
            with httpx.stream("POST", f"{url}{CHAT}", json=body, timeout=60) as second:
                assert second.headers["x-cache"] == "HIT"
                first.close()
                time.sleep(0.1)
                assert not engine.cancelled
                engine.gate.set()
                assert '"content":"b"' in "".join(second.iter_text())
    assert len(engine.requests) == 1


# --------------------------------------------------------------------------------- how it does


def test_stats_for_the_page(open_client: TestClient, served: ServedModel) -> None:
    open_client.post(CHAT, json=ask())
    stats = open_client.get("/stats").json()
    assert stats["model"] == "tiny" and stats["context_len"] == served.context_len
    assert stats["defaults"]["temperature"] == served.defaults.temperature
    assert stats["defaults"]["top_k"] == served.defaults.top_k
    assert (stats["running"], stats["waiting"], stats["is_draining"]) == (0, 0, False)
    assert stats["kv_cache_usage"] == 0.3 and stats["tokens_per_s"] > 0
    assert (stats["total_workers"], stats["available_workers"], stats["busy_workers"]) == (1, 1, 0)
    assert stats["workers"] == [{"gpu_id": 0, "device": "cpu"}]
    assert stats["version"] == open_client.get("/version").json()["version"]


def test_metrics_of_a_conversation(open_client: TestClient) -> None:
    for _ in range(2):
        open_client.post(CHAT, json=ask(**GREEDY))
    open_client.post(CHAT, json=ask(temperature=3))
    open_client.get("/secret-looking-path")
    open_client.get("/health", headers={"Host": "evil.example"})
    response = open_client.get("/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    lines = set(response.text.splitlines())
    for line in (
        "nanochat_num_requests_running 0.0",
        "nanochat_num_requests_waiting 0.0",
        "nanochat_kv_cache_usage_perc 0.3",
        "nanochat_prefix_cache_hits_total 5.0",
        "nanochat_prefix_cache_queries_total 20.0",
        "nanochat_ready 1.0",
        "nanochat_response_cache_hits_total 1.0",
        "nanochat_response_cache_misses_total 1.0",
        "nanochat_response_cache_entries 1.0",
        "nanochat_generation_tokens_total 3.0",
        'nanochat_request_success_total{finished_reason="stop"} 1.0',
        'nanochat_requests_rejected_total{reason="host_not_allowed"} 1.0',
        'nanochat_http_requests_total{method="POST",path="/v1/chat/completions",status="200"} 2.0',
        'nanochat_http_requests_total{method="POST",path="/v1/chat/completions",status="400"} 1.0',
        'nanochat_http_requests_total{method="GET",path="unmatched",status="404"} 1.0',
    ):
        assert line in lines, line
    assert "secret" not in response.text


@pytest.mark.req("FR-083")
def test_a_server_that_is_loading_or_about_to_stop(engine: Counted, served: ServedModel) -> None:
    client = client_of(engine, served)
    assert client.get("/ready").json() == {"status": "ready"}
    engine.is_ready, engine.refusal = False, Unavailable("the engine is being loaded", 5)
    ready = client.get("/ready")
    assert (ready.status_code, ready.json()) == (503, {"status": "loading"})
    assert ready.headers["retry-after"] == "5"
    response = client.post(CHAT, json=ask())
    assert_error(response, 503, "service_unavailable")
    assert response.headers["retry-after"] == "5"
    app: Any = client.app
    app.state.admission.begin_draining()
    assert client.get("/ready").json() == {"status": "draining"}
    assert "about to stop" in assert_error(
        client.post(CHAT, json=ask()), 503, "service_unavailable"
    )
    assert client.get("/health").json()["ready"] is False


@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.req("FR-083")
def test_what_is_cut_off_by_the_end_is_told(served: ServedModel, is_stream: bool) -> None:
    engine = FakeEngine(("a", "b"))
    engine.gate.clear()
    app = create_app(engine, served)
    admission = app.state.admission

    def abort() -> None:
        wait_until(lambda: admission.num_active == 1 and (is_stream or not admission.num_waiting))
        admission.abort_all()

    with live(app) as url:
        aborting = threading.Thread(target=abort)
        if not is_stream:
            aborting.start()
        body = ask(stream=is_stream)
        with httpx.stream("POST", url + CHAT, json=body, timeout=60) as response:
            if is_stream:  # its head is out: only a frame can tell
                aborting.start()
            response.read()
        aborting.join()
    if is_stream:
        assert response.status_code == 200
        assert frames(response)[-1]["error"]["code"] == "aborted"
        assert "[DONE]" not in response.text
    else:
        assert_error(response, 503, "aborted")


@pytest.mark.req("FR-050")
def test_a_stream_with_nothing_to_say_says_so(served: ServedModel) -> None:
    engine = FakeEngine(("a", "b"))
    engine.gate.clear()
    with live(create_app(engine, served, ServerSettings(keep_alive_s=0.05))) as url:
        with httpx.stream("POST", url + CHAT, json=ask(stream=True)) as response:
            lines = response.iter_lines()
            assert sum(next(lines) == ": keep-alive" for _ in range(12)) >= 2
            engine.gate.set()
            rest = list(lines)
        assert rest[-2] == "data: [DONE]"


@pytest.mark.req("FR-083")
def test_a_deadline_is_told(served: ServedModel) -> None:
    engine = FakeEngine(("a", "b"))
    engine.gate.clear()
    settings = ServerSettings(request_deadline_s=0.2)
    with live(create_app(engine, served, settings)) as url:
        assert_error(httpx.post(url + CHAT, json=ask()), 504, "deadline_exceeded")
        streamed = httpx.post(url + CHAT, json=ask(stream=True))
        assert frames(streamed)[-1]["error"]["code"] == "deadline_exceeded"


def test_every_answer_has_an_id_and_the_headers(open_client: TestClient) -> None:
    given = {"X-Request-Id": "mine-1"}
    for path in ("/", "/health", "/nowhere"):
        response = open_client.get(path, headers=given)
        assert response.headers["x-request-id"] == "mine-1"
    refused = open_client.get("/", headers={"Host": "evil.example"})
    assert refused.headers["x-request-id"].startswith("req-")


@pytest.mark.req("FR-083")
def test_a_fault_of_ours_has_an_id_and_the_headers_too(
    engine: Counted, served: ServedModel
) -> None:
    client = client_of(engine, served)
    engine.refusal = ZeroDivisionError("what a user said")
    response = client.post(CHAT, json=ask())
    assert "said" not in assert_error(response, 500, "internal_error")
    assert response.headers["x-request-id"].startswith("req-")
    for name, value in SECURITY_HEADERS.items():
        assert response.headers[name] == value
    text = client.get("/metrics").text
    assert 'nanochat_errors_total{type="ZeroDivisionError"} 1.0' in text


def test_settings_out_of_range_are_said_together() -> None:
    with pytest.raises(
        ValueError, match="max_active is 0, keep_alive_s is -1: expected more than 0"
    ):
        ServerSettings(max_active=0, keep_alive_s=-1)
    with pytest.raises(ValueError, match="max_queue is -1: expected at least 0"):
        ServerSettings(max_queue=-1)
    with pytest.raises(ValueError, match="ttl_s is 0: expected more than 0"):
        CacheSettings(ttl_s=0)


@pytest.mark.req("EC-10")
def test_who_has_left_already_is_not_answered(engine: Counted, served: ServedModel) -> None:
    app = create_app(engine, served)
    body = json.dumps(ask()).encode()
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": CHAT, "raw_path": CHAT.encode()}
    scope |= {"query_string": b"", "headers": headers, "http_version": "1.1"}  # type: ignore[dict-item]
    asyncio.run(app(scope, receive, send))
    assert engine.requests == []

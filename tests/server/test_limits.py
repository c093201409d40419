"""limits.py: what a foreign page, a large body or another Host cannot do."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from nanochat.server.app import ServedModel, create_app
from nanochat.server.limits import SECURITY_HEADERS, Guard, Limits
from nanochat.server.settings import ServerSettings
from tests.server.conftest import ask
from tests.server.fakes import FakeEngine
from tests.server.test_app import CHAT, assert_error


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1:8000", "[::1]:8000"])
def test_our_own_hosts_are_answered(client: TestClient, host: str) -> None:
    assert client.get("/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:8000", "", "127.0.0.1x"])
@pytest.mark.req("FR-062")
def test_other_hosts_are_refused(client: TestClient, host: str) -> None:
    assert_error(client.get("/health", headers={"Host": host}), 403, "host_not_allowed")


def test_a_public_server_answers_any_host(engine: FakeEngine, served: ServedModel) -> None:
    app = create_app(engine, served, ServerSettings(limits=Limits(allowed_hosts=None)))
    with TestClient(app, base_url="http://my.server") as client:  # with its lifespan
        assert client.get("/health").status_code == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
@pytest.mark.req("FR-062")
def test_pages_of_other_sites_are_refused(client: TestClient, site: str) -> None:
    response = client.post(CHAT, json=ask(), headers={"Sec-Fetch-Site": site})
    assert_error(response, 403, "cross_site_request")
    assert client.get("/health", headers={"Sec-Fetch-Site": site}).status_code == 200
    own = client.post(CHAT, json=ask(), headers={"Sec-Fetch-Site": "same-origin"})
    assert own.status_code == 200
    assert "access-control-allow-origin" not in own.headers


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", ""])
@pytest.mark.req("FR-083")
def test_only_json_is_read(client: TestClient, media_type: str) -> None:
    response = client.post(CHAT, content=b"{}", headers={"Content-Type": media_type})
    assert_error(response, 415, "unsupported_media_type")
    fine = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert client.post(CHAT, content=b"{}", headers=fine).status_code == 400


@pytest.mark.req("FR-083")
@pytest.mark.req("FR-062")
def test_bodies_have_a_limit_with_and_without_a_length(client: TestClient) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(3):
            yield b" " * (Limits().max_body_bytes // 2)

    headers = {"Content-Type": "application/json"}
    assert_error(client.post(CHAT, json=ask("x" * (1 << 20))), 413, "request_too_large")
    assert_error(client.post(CHAT, content=parts(), headers=headers), 413, "request_too_large")


def test_every_answer_carries_the_headers(client: TestClient) -> None:
    for path in ("/", "/health", "/nowhere"):
        headers = client.get(path).headers
        for name, value in SECURITY_HEADERS.items():
            assert headers[name] == value
    refused = client.get("/", headers={"Host": "evil.example"})
    assert refused.headers["content-security-policy"].startswith("default-src 'none'")
    assert "unsafe" not in SECURITY_HEADERS["Content-Security-Policy"]


def test_the_guard_lets_other_protocols_pass() -> None:
    seen = []

    async def inner(scope: object, receive: object, send: object) -> None:
        seen.append(scope)

    import asyncio

    guard = Guard(inner, Limits())  # type: ignore[arg-type]
    asyncio.run(guard({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert seen == [{"type": "lifespan"}]

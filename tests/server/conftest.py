"""A server in this process, and one on a real port."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient

from nanochat.server.app import ServedModel, create_app
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.patience import wait_until
from tests.server.fakes import FakeEngine

CONTEXT_LEN = 200


@pytest.fixture(scope="session")
def served(tiny_tokenizer: Tokenizer) -> ServedModel:
    return ServedModel(name="tiny", tokenizer=tiny_tokenizer, context_len=CONTEXT_LEN, created=7)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def app(engine: FakeEngine, served: ServedModel) -> FastAPI:
    return create_app(engine, served)


@pytest.fixture
def client(app: FastAPI) -> TestClient:
    return TestClient(app, base_url="http://localhost:8000", raise_server_exceptions=False)


def ask(*contents: str, **fields: Any) -> dict[str, Any]:
    """The body of a request; the messages take turns, the user begins."""
    messages = [
        {"role": ("user", "assistant")[number % 2], "content": content}
        for number, content in enumerate(contents or ("Hi",))
    ]
    return {"model": "tiny", "messages": messages, **fields}


@contextlib.contextmanager
def live(app: FastAPI) -> Iterator[str]:
    """The app on a free port; the address."""
    server = uvicorn.Server(
        uvicorn.Config(
            app, host="127.0.0.1", port=0, loop="asyncio", log_level="error", access_log=False
        )
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()

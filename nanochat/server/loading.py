"""Before there is a model.   in: requests   out: "not yet"   who calls: cli/serve.py

Weights take seconds to minutes to load.  Whoever asks meanwhile is told so instead of being refused
by the machine: GET /health says that the process answers, everything else is 503 with Retry-After.
Read next: cli/http_server.py (`answering`), admin.py (the same routes afterwards).
"""

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanochat.common.errors import Unavailable
from nanochat.server.errors import error_body, retry_headers, to_api_error
from nanochat.server.limits import add_security_headers
from nanochat.server.pool import LOADING_S

__all__ = ["loading_app"]


def loading_app(name: str) -> ASGIApp:
    """An ASGI app that answers for a model of this name until it is loaded."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                add_security_headers(message)
            await send(message)

        answer = _answer(name, scope["path"] if scope["method"] in ("GET", "HEAD") else "")
        answer.headers["Connection"] = "close"  # the next answer is another server's
        await answer(scope, receive, send_with_headers)

    return app


def _answer(name: str, path: str) -> JSONResponse:
    if path == "/health":
        idle = {"num_active": 0, "num_gpus": 0, "available_workers": 0}
        return JSONResponse({"status": "ok", "ready": False, "model": name, **idle})
    error = Unavailable("the model is being loaded: ask again soon", LOADING_S)
    body = {"status": "loading"} if path == "/ready" else error_body(to_api_error(error))
    return JSONResponse(body, 503, retry_headers(error))

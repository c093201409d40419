"""Routes.   in: an engine, a served model   out: a FastAPI app   who calls: cli.serve, tests

    POST /v1/chat/completions     an answer, whole or streamed, in OpenAI's shapes
    POST /v1/completions          a text that goes on; how likely a text is
    GET  /v1/models, .../{id}     the models that can be named
    POST /tokenize, /detokenize   tokens, as vLLM has it
    POST /chat/completions        the API of karpathy/nanochat's chat_web.py
    GET  /openapi.json            all of it, for programs; there is no /docs, whose scripts would
                                  come from elsewhere
    GET  /                        the chat page and its files
    what admin.py has             how the server does
The app holds no global state, so that several can live in one process.
Read next: chat.py, completions.py (two of the routes), serving.py (what they share), gate.py (what
stands around them).
"""

from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import Match

import nanochat
from nanochat.common.errors import NanochatError
from nanochat.server.chat import answer_chat
from nanochat.server.completions import answer_completion
from nanochat.server.errors import (
    ApiError,
    error_body,
    http_error,
    retry_headers,
    to_api_error,
    validation_error,
)
from nanochat.server.gate import Gate
from nanochat.server.legacy import answer_legacy
from nanochat.server.openapi import document, stream_of
from nanochat.server.page import page_routes
from nanochat.server.requests import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    LegacyRequest,
    TokenizeRequest,
)
from nanochat.server.responses import (
    ChatCompletion,
    ChatCompletionChunk,
    Detokenized,
    ModelCard,
    ModelList,
    TextCompletion,
    Tokenized,
)
from nanochat.server.serving import ServedModel, Serving
from nanochat.server.settings import ServerSettings
from nanochat.server.stream import EngineDoor
from nanochat.server.tokens import detokenize, tokenize
from nanochat.server.ui_path import own_page_routes

__all__ = ["ServedModel", "create_app"]


def create_app(
    engine: EngineDoor, model: ServedModel, settings: ServerSettings | None = None
) -> FastAPI:
    """The server as an ASGI app; `settings` None: those of a server on the loopback address."""
    settings = settings or ServerSettings()
    app = FastAPI(
        title="nanochat",
        version=nanochat.__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # a redirect would name http:// behind a proxy, and is no answer
    )
    gate = Gate(engine, settings, model=model.name, model_hash=model.model_hash)
    for error in (ApiError, NanochatError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(error, _on_error)
    serving = Serving(gate, model)
    _add_text_routes(app, serving)
    _add_model_routes(app, serving)
    pages = page_routes() if settings.ui_path is None else own_page_routes(settings.ui_path)
    gate.install(app, model, [route.path for route in pages], serving.check_model)
    app.router.routes.extend(pages)
    app.openapi = partial(document, app, model, ChatCompletionChunk)  # type: ignore[method-assign]
    return app


def _add_text_routes(app: FastAPI, serving: Serving) -> None:
    @app.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        responses=stream_of(ChatCompletionChunk, "data: [DONE]\n\n"),
    )
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """An answer to a conversation: one JSON object, or server-sent events if `stream`."""
        return await answer_chat(serving, body, request)

    @app.post(
        "/v1/completions",
        response_model=TextCompletion,
        responses=stream_of(TextCompletion, "data: [DONE]\n\n"),
    )
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Texts that go on where the prompts end; with `echo` and `logprobs`, how likely the
        prompts are."""
        return await answer_completion(serving, body, request)

    @app.post(
        "/chat/completions",
        response_class=Response,
        responses=stream_of(None, 'data: {"token": "Hi", "gpu": 0}\n\ndata: {"done": true}\n\n'),
    )
    async def legacy_chat_completions(body: LegacyRequest, request: Request) -> Response:
        """An answer in the frames of karpathy/nanochat's chat_web.py; always streamed."""
        return await answer_legacy(serving, body, request)


def _add_model_routes(app: FastAPI, serving: Serving) -> None:
    model = serving.model
    cards = {name: ModelCard(id=name, created=model.created) for name in model.names}

    @app.get("/v1/models")
    async def list_models() -> ModelList:
        """The models that can be named in a request."""
        return ModelList(data=list(cards.values()))

    @app.get("/v1/models/{model_id:path}")
    async def retrieve_model(model_id: str) -> ModelCard:
        """One of them; its name may hold slashes."""
        serving.check_model(model_id)
        return cards[model_id]

    @app.post("/tokenize")
    async def tokenize_text(body: TokenizeRequest) -> Tokenized:
        """The tokens of a text, or of a conversation."""
        return await tokenize(serving, body)

    @app.post("/detokenize")
    async def detokenize_tokens(body: DetokenizeRequest) -> Detokenized:
        """The text of tokens."""
        return await detokenize(serving, body)


METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def _methods(request: Request) -> list[str]:
    """What a path can be asked with; the framework names those of its first route alone."""
    return [
        method
        for method in METHODS
        for scope in ({**request.scope, "method": method},)
        if any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)
    ]


def _on_error(request: Request, error: Exception) -> Response:
    """Every exception that no route has turned into an answer, the framework's own included."""
    headers: dict[str, Any] = retry_headers(error)
    if isinstance(error, RequestValidationError):
        answer = validation_error(error.errors())
    elif isinstance(error, HTTPException):
        answer = http_error(error, request.method, request.url.path)
        headers |= error.headers or {}
        if error.status_code == 405:
            headers["Allow"] = ", ".join(_methods(request))
    else:
        answer = to_api_error(error)
    return JSONResponse(error_body(answer), answer.status, headers)

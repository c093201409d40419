"""Routes.   in: an engine, a served model   out: a FastAPI app   who calls: cli.serve, tests

    POST /v1/chat/completions   an answer, whole or streamed, in OpenAI's shapes
    GET  /v1/models             the one model
    GET  /                      the chat page and its files
    what admin.py has           how the server does
The app holds no global state, so that several can live in one process.
Read next: stream.py (what happens to an answer), requests.py (bodies), limits.py (what is refused).
"""

import asyncio
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from nanochat.common.errors import DataError, NanochatError, RequestTooLong
from nanochat.engine.request import Request as EngineRequest
from nanochat.engine.request import SamplingParams
from nanochat.server.cache import cache_policy
from nanochat.server.errors import ApiError, error_body, to_api_error, validation_error
from nanochat.server.gate import Gate
from nanochat.server.page import page_routes
from nanochat.server.requests import ChatRequest
from nanochat.server.responses import completion_body, models_body
from nanochat.server.settings import ServerSettings
from nanochat.server.stream import Answer, EngineDoor, EventStream, while_connected
from nanochat.server.ui_path import own_page_routes
from nanochat.tokenizer.chat import render_prompt, stop_tokens
from nanochat.tokenizer.tokenizer import Tokenizer, replace_surrogates

__all__ = ["ServedModel", "create_app"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedModel:
    """What the server knows of the model behind the engine."""

    name: str
    """What clients call it."""
    tokenizer: Tokenizer
    context_len: int
    defaults: SamplingParams = field(default_factory=SamplingParams)
    """Sampling where a request says nothing; max_tokens and seed are not taken from here."""
    created: int = field(default_factory=lambda: int(time.time()))
    """When it was made, in seconds since 1970."""
    model_hash: str = ""
    """What tells its weights from others; empty if nothing does."""


def create_app(
    engine: EngineDoor, model: ServedModel, settings: ServerSettings | None = None
) -> FastAPI:
    """The server as an ASGI app; `settings` None: those of a server on the loopback address."""
    settings = settings or ServerSettings()
    app = FastAPI(title="nanochat", docs_url=None, redoc_url=None)
    gate = Gate(engine, settings, model=model.name, model_hash=model.model_hash)
    for error in (ApiError, NanochatError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(error, _on_error)
    chat = _Chat(gate, model)

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """An answer to a conversation: one JSON object, or server-sent events if `stream`."""
        return await chat.answer(body, request)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The models that can be named in a request."""
        return models_body(model.name, model.created)

    pages = page_routes() if settings.ui_path is None else own_page_routes(settings.ui_path)
    gate.install(app, model, [route.path for route in pages])
    app.router.routes.extend(pages)
    return app


class _Chat:
    """The requests of one app."""

    def __init__(self, gate: Gate, model: ServedModel) -> None:
        self.gate, self.model = gate, model
        self.stops = stop_tokens(model.tokenizer)

    async def answer(self, body: ChatRequest, request: Request) -> Response:
        if body.model != self.model.name:
            raise _unknown_model(body.model)
        self.gate.check()
        engine_request = await self._engine_request(body)
        answer = self._begin(engine_request, body, request)
        head = {
            "id": engine_request.request_id,
            "created": int(time.time()),
            "model": self.model.name,
        }
        if body.stream:
            return EventStream(
                answer,
                head,
                has_usage_frame=body.has_usage_frame,
                keep_alive_s=self.gate.settings.keep_alive_s,
            )
        try:
            text, reason = await while_connected(request.receive, answer.whole())
        finally:
            answer.close()
        body_out = completion_body(head, text, reason, answer.usage)
        return JSONResponse(body_out, headers=answer.headers)

    async def _engine_request(self, body: ChatRequest) -> EngineRequest:
        """Checked and rendered; rendering takes milliseconds, so it runs beside the event loop."""
        conversation = body.conversation()
        if not conversation[-1].content:
            raise DataError(
                "the last message is empty: expected a question of at least one character"
            )
        tokens = await asyncio.to_thread(render_prompt, conversation, self.model.tokenizer)
        context_len = self.model.context_len
        if len(tokens) + 1 > context_len:
            raise RequestTooLong(
                f"This model's maximum context length is {context_len} tokens. However, your "
                f"messages resulted in {len(tokens)} tokens. Please reduce the length of the "
                "messages."
            )
        return EngineRequest(
            request_id=f"chatcmpl-{uuid.uuid4().hex}",
            prompt_tokens=tuple(tokens),
            sampling=body.sampling(self.model.defaults, context_len, self.stops),
        )

    def _begin(self, asked: EngineRequest, body: ChatRequest, request: Request) -> Answer:
        has_seed = body.seed is not None
        policy = cache_policy(
            is_deterministic=has_seed or asked.sampling.temperature == 0,
            has_seed=has_seed,
            asked=None if body.cache is None else body.cache.model_dump(by_alias=True),
            header=request.headers.get("cache-control"),
        )
        return Answer(self.gate, asked, tenant=request.state.tenant, policy=policy)


def _unknown_model(name: str) -> ApiError:
    shown = replace_surrogates(name[:100])  # JSON may hold what no UTF-8 can
    message = f"The model `{shown}` does not exist or you do not have access to it."
    return ApiError(404, message, "model_not_found", param="model")


def _on_error(request: Request, error: Exception) -> Response:
    """Every exception that no route has turned into an answer, the framework's own included."""
    if isinstance(error, RequestValidationError):
        return _error_response(validation_error(error.errors()), error)
    if not isinstance(error, HTTPException):
        return _error_response(to_api_error(error), error)
    url = f"{request.method} {request.url.path[:100]}"
    message, code = {
        404: (f"Invalid URL ({url})", "unknown_url"),
        405: (f"Not allowed to {url}", "method_not_allowed"),
        413: (str(error.detail), "request_too_large"),
    }.get(error.status_code, (str(error.detail), "invalid_request"))
    return _error_response(ApiError(error.status_code, message, code), error)


def _error_response(answer: ApiError, cause: Exception) -> Response:
    headers = dict(cause.headers or {}) if isinstance(cause, HTTPException) else {}
    if (retry_after_s := getattr(cause, "retry_after_s", None)) is not None:
        headers["Retry-After"] = str(retry_after_s)
    return JSONResponse(error_body(answer), answer.status, headers)

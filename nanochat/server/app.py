"""Routes.   in: an engine, a served model   out: a FastAPI app   who calls: cli.serve, tests

    POST /v1/chat/completions   an answer, whole or streamed, in OpenAI's shapes
    GET  /v1/models             the one model
    GET  /health                whether the server answers
    GET  /                      the chat page and its files
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

from nanochat.common.errors import DataError, NanochatError, Overloaded, RequestTooLong
from nanochat.engine.request import Request as EngineRequest
from nanochat.engine.request import SamplingParams
from nanochat.server.errors import ApiError, error_body, to_api_error, validation_error
from nanochat.server.limits import Guard, Limits
from nanochat.server.page import page_routes
from nanochat.server.requests import ChatRequest
from nanochat.server.responses import completion_body, models_body
from nanochat.server.stream import Answer, EngineDoor, EventStream, while_connected
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


def create_app(engine: EngineDoor, model: ServedModel, *, limits: Limits | None = None) -> FastAPI:
    """The server as an ASGI app; `limits` None: those of a server on the loopback address."""
    limits = limits or Limits()
    app = FastAPI(title="nanochat", docs_url=None, redoc_url=None)
    app.add_middleware(Guard, limits=limits)
    app.router.routes.extend(page_routes())
    for error in (ApiError, NanochatError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(error, _on_error)
    chat = _Chat(engine, model, limits)

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """An answer to a conversation: one JSON object, or server-sent events if `stream`."""
        return await chat.answer(body, request)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The models that can be named in a request."""
        return models_body(model.name, model.created)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Whether the server answers, what it serves, and how many requests wait or run."""
        return {
            "status": "ok",
            "model": model.name,
            "context_len": model.context_len,
            "num_active": len(chat.active),
        }

    return app


class _Chat:
    """The requests of one app."""

    def __init__(self, engine: EngineDoor, model: ServedModel, limits: Limits) -> None:
        self.engine, self.model, self.limits = engine, model, limits
        self.active: set[str] = set()
        self.stops = stop_tokens(model.tokenizer)

    async def answer(self, body: ChatRequest, request: Request) -> Response:
        if body.model != self.model.name:
            raise _unknown_model(body.model)
        self._check_load()
        engine_request = await self._engine_request(body)
        answer = self._begin(engine_request)
        head = {
            "id": engine_request.request_id,
            "created": int(time.time()),
            "model": self.model.name,
        }
        if body.stream:
            return EventStream(answer, head, has_usage_frame=body.has_usage_frame)
        try:
            text, reason = await while_connected(request.receive, answer.whole())
        finally:
            answer.close()
        return JSONResponse(completion_body(head, text, reason, answer.usage))

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

    def _check_load(self) -> None:
        if len(self.active) >= self.limits.max_active:
            raise Overloaded(
                f"{len(self.active)} requests are being served, which is the limit: try again later"
            )

    def _begin(self, request: EngineRequest) -> Answer:
        self._check_load()  # others may have come while this one was rendered
        answer = Answer(self.engine, request, lambda: self.active.discard(request.request_id))
        self.active.add(request.request_id)
        return answer


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
    if answer.status == 429:
        headers["Retry-After"] = "1"
    return JSONResponse(error_body(answer), answer.status, headers)

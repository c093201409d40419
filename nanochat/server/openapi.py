"""The OpenAPI document.   in: an app, a served model   out: GET /openapi.json
who calls: app.py

FastAPI writes most of it from the types; here it learns what it cannot know: the models that are
served, the size of their vocabulary, the stream beside the JSON, and that every error has the same
body.
Read next: requests.py and responses.py (the types), tests/server/test_fuzz.py (who reads it).
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from nanochat.server.errors import ErrorBody
from nanochat.server.serving import ServedModel

__all__ = ["document", "stream_of"]

ALWAYS = (400, 401, 403, 404, 405, 414, 431, 500)
WITH_BODY = (408, 413, 415, 429, 503, 504)
REF = "#/components/schemas/"


def stream_of(frame: type[BaseModel] | None, like: str) -> dict[int | str, dict[str, Any]]:
    """How a route says that it may answer with server-sent events; `like` shows one."""
    data: dict[str, Any] = {"type": "string"}
    if frame is not None:
        data["description"] = f"A {frame.__name__} or an ErrorBody as JSON; at the end [DONE]"
    schema = {"type": "object", "required": ["data"], "properties": {"data": data}}
    content = {"text/event-stream": {"itemSchema": schema, "example": like}}
    return {200: {"description": "An answer, whole or as it is written", "content": content}}


def document(app: FastAPI, model: ServedModel, *frames: type[BaseModel]) -> dict[str, Any]:
    """The document, made once; `frames` are types that only streams have."""
    if app.openapi_schema is None:
        found = FastAPI.openapi(app)
        schemas = found.setdefault("components", {}).setdefault("schemas", {})
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        kinds: list[type[BaseModel]] = [*frames, ErrorBody]
        for frame in kinds:
            _add(schemas, frame)
        for path in found["paths"].values():
            for operation in path.values():
                _add_errors(operation)
        _name_models(schemas, model)
        app.openapi_schema = found
    return app.openapi_schema


def _add(schemas: dict[str, Any], kind: type[BaseModel]) -> None:
    schema = kind.model_json_schema(ref_template=REF + "{model}")
    schemas |= {**schema.pop("$defs", {}), kind.__name__: schema}


def _add_errors(operation: dict[str, Any]) -> None:
    answers = operation["responses"]
    answers.pop("422", None)  # FastAPI's own; ours is 400
    content = {"application/json": {"schema": {"$ref": REF + ErrorBody.__name__}}}
    for status in (*ALWAYS, *(WITH_BODY if "requestBody" in operation else ())):
        phrase = HTTPStatus(status).phrase
        answers.setdefault(str(status), {"description": phrase, "content": content})


def _name_models(schemas: Mapping[str, Any], model: ServedModel) -> None:
    """Which names and tokens there are."""
    most = {"maximum": model.tokenizer.vocab_size - 1}
    for schema in schemas.values():
        named = schema.get("properties", {})
        if "model" in named and not schema["title"].startswith(("ChatCompletion", "TextComp")):
            for each in named["model"].get("anyOf", [named["model"]]):
                if each.get("type") == "string":
                    each["enum"] = list(model.names)
    prompt = schemas["CompletionRequest"]["properties"]["prompt"]["anyOf"]
    for tokens in (prompt[2], prompt[3]["items"]):
        tokens["items"] = {**tokens["items"], **most}
    tokens = schemas["DetokenizeRequest"]["properties"]["tokens"]
    tokens["items"] = {**tokens["items"], **most}

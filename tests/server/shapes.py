"""What OpenAI says an answer looks like, and what its client's types know.

The schemas are an extract of OpenAI's own document (openai_schema.json); the types are those of the
installed client.
"""

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
from openai import BaseModel
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk

SCHEMAS: dict[str, Any] = json.loads((Path(__file__).parent / "openai_schema.json").read_text())
TYPES: dict[str, type[BaseModel]] = {
    "CreateChatCompletionResponse": ChatCompletion,
    "CreateChatCompletionStreamResponse": ChatCompletionChunk,
    "CreateCompletionResponse": Completion,
    "Model": Model,
}


def _patched() -> dict[str, Any]:
    """OpenAI's document gives frames of streamed completions no shape of their own, and its API
    sends null where there is no reason or usage yet and for the first token of an echoed prompt."""
    schemas = copy.deepcopy(SCHEMAS)
    properties = schemas["$defs"]["CreateCompletionResponse"]["properties"]
    properties["usage"] = {"anyOf": [properties["usage"], {"type": "null"}]}
    choice = properties["choices"]["items"]
    choice["properties"]["finish_reason"]["enum"].append(None)
    del choice["properties"]["finish_reason"]["type"]
    lists = choice["properties"]["logprobs"]["anyOf"][0]["properties"]
    for name in ("token_logprobs", "top_logprobs"):
        lists[name]["items"] = {"anyOf": [lists[name]["items"], {"type": "null"}]}
    return schemas


PATCHED = _patched()


def check_shape(name: str, body: Any, *, has_nulls: bool = False) -> None:
    """Raises: jsonschema's or pydantic's error, or AssertionError for a field nobody knows."""
    schemas = PATCHED if has_nulls else SCHEMAS
    validator = jsonschema.Draft202012Validator({**schemas, "$ref": f"#/$defs/{name}"})
    validator.validate(body)
    if name in TYPES:  # made as the client makes them where its own types forbid the nulls
        kind = TYPES[name]
        check_known(kind.construct(**body) if has_nulls else kind.model_validate(body))


def check_known(value: Any) -> None:
    """Nothing in it that the official types do not know."""
    if isinstance(value, BaseModel):
        assert not value.model_extra, f"{type(value).__name__}: {value.model_extra}"
        missing = {
            name for name, field in type(value).model_fields.items() if field.is_required()
        } - value.model_fields_set
        assert not missing, f"{type(value).__name__}: without {missing}"
        for name in value.model_fields_set:
            check_known(getattr(value, name))
    elif isinstance(value, list):
        for item in value:
            check_known(item)
    elif isinstance(value, dict):
        for item in value.values():
            check_known(item)


def frames_of(text: str) -> list[Any]:
    """The data of each event; the last is [DONE]."""
    events = text.split("\n\n")
    assert events.pop() == ""
    assert all(event.startswith("data: ") for event in events)
    assert events.pop() == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events]

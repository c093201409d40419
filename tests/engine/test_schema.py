"""schema.py: what would take long is refused at once, what people write is not."""

import json
import time
import uuid
from typing import Any

import pydantic
import pytest

from nanochat.common.errors import ConfigError
from nanochat.engine.constraint import JsonGrammar
from nanochat.engine.request import MAX_SCHEMA_LENGTH
from nanochat.engine.schema import check_schema
from nanochat.tokenizer.tokenizer import Tokenizer


def patterns(count: int) -> list[dict[str, Any]]:
    return [{"type": "string", "pattern": f".*{chr(97 + n)}.{{0,60}}"} for n in range(count)]


def chain(name: str, length: int) -> dict[str, Any]:
    """Each part refers twice to the next: 2 to the power of the length, where all are followed."""
    parts: dict[str, Any] = {
        f"d{n}": {name: [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(length)
    }
    return {"$defs": {**parts, f"d{length}": {"pattern": "a+"}}, "$ref": "#/$defs/d0"}


def arrays(count: int) -> dict[str, Any]:
    """An array of arrays of any of so many lengths."""
    options = [
        {"type": "array", "items": {"$ref": "#/$defs/x"}, "minItems": n, "maxItems": n + 1}
        for n in range(count)
    ]
    return {"$defs": {"x": {"anyOf": options}}, "$ref": "#/$defs/x"}


def of(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


COSTLY: dict[str, tuple[dict[str, Any], str]] = {
    "patterns": ({"allOf": patterns(20)}, "20 patterns and formats apply to one string"),
    "patterns of a property": (
        {"allOf": [of({"a": each}) for each in patterns(20)]},
        "20 patterns and formats",
    ),
    "patterns of other properties": (
        {"allOf": [of({"a": {}}), *({"additionalProperties": each} for each in patterns(20))]},
        "20 patterns and formats",
    ),
    "patterns of items": ({"allOf": [{"items": each} for each in patterns(20)]}, "20 patterns"),
    "patterns by $ref": (
        {
            "$defs": {
                f"d{n}": {**each, "$ref": f"#/$defs/d{n + 1}"} for n, each in enumerate(patterns(9))
            }
            | {"d9": {}},
            "$ref": "#/$defs/d0",
        },
        "9 patterns and formats",
    ),
    "formats": ({"pattern": "a", "format": "uri", "allOf": patterns(3)}, "5 patterns and formats"),
    "alternatives": ({"anyOf": [{"minItems": n} for n in range(3400)]}, "129 alternatives or more"),
    "alternatives of alternatives": (arrays(700), "129 alternatives or more"),
    "alternatives that multiply": (
        {"allOf": [{"anyOf": [{"minItems": n} for n in range(2)]} for _ in range(14)]},
        "256 alternatives or more",
    ),
    "parts": (chain("allOf", 25), "parts of allOf and .ref apply to one value"),
    "choices": (chain("anyOf", 25), "alternatives or more"),
    "depth": (
        {"$defs": {"x": {"anyOf": [{"$ref": "#/$defs/x"}]}}, "$ref": "#/$defs/x"},
        "65 deep at one value, or refers to itself there",
    ),
    "steps": (
        of({f"p{n}": {"anyOf": [{"minItems": n} for n in range(128)]} for n in range(100)}),
        "more than 20,000 times in all",
    ),
    "properties": (of({f"p{n}": {} for n in range(4000)}), "4000 properties, expected at most 512"),
    "a multiple": ({"type": "integer", "multipleOf": 99999989}, "99,999,989 in all"),
    "many multiples": (
        of({f"p{n}": {"multipleOf": 9001 + 2 * n} for n in range(9)}),
        "1.,... in all",
    ),
    "multiples of one": ({"allOf": [{"multipleOf": 997}, {"multipleOf": 991}]}, "988,027 in all"),
    "an endless multiple": ({"multipleOf": float("inf")}, "10,001 in all"),
    "an $id within": (
        {"$defs": {"x": {"$id": "http://a/", "items": {"$ref": "#/$defs/y"}}}, "$ref": "#/$defs/x"},
        r"an \$id of its own",
    ),
    "an anchor": ({"$defs": {"x": {"$anchor": "y"}}, "$ref": "#y"}, r"\$ref is '#y'"),
}


@pytest.mark.req("FR-062")
@pytest.mark.parametrize("name", COSTLY)
def test_what_takes_long_is_refused_at_once(name: str) -> None:
    schema, message = COSTLY[name]
    begin_s = time.thread_time()
    with pytest.raises(ConfigError, match=f"takes too long to follow: .*{message}") as caught:
        check_schema(schema)
    assert time.thread_time() - begin_s < 2.0  # 0.1 s and less, without the suite's profiler
    assert len(str(caught.value)) < 200


WITHIN: dict[str, dict[str, Any]] = {
    "patterns": {"allOf": [{"type": "string", "pattern": p} for p in ("a", "b", "^.{3,9}$")]},
    "alternatives": {"anyOf": [of({"kind": {"const": n}}) for n in range(128)]},
    "alternatives of alternatives": arrays(100),
    "properties": of({f"p{n}": {"type": ["integer", "null"]} for n in range(512)}),
    "multiples": {"items": [{"type": "number", "multipleOf": 0.01}, {"multipleOf": 86400}]},
    "a long enum": {"enum": [f"value {n}" for n in range(1500)]},
    "a tuple": {
        "type": "array",
        "prefixItems": [{"type": "integer"}, {"$ref": "#/prefixItems/0"}],
        "items": False,
    },
    "names that need escaping": {
        "$defs": {"a/b %": {"type": "null"}},
        "$ref": "#/$defs/a~1b%20%25",
    },
    "an $id for the whole": {"$id": "http://a/", "items": {"$ref": "#"}},
}


class Address(pydantic.BaseModel):
    street: str = pydantic.Field(min_length=1, max_length=80, pattern=r"^[A-Za-z ]+ \d+$")
    zip: str = pydantic.Field(pattern=r"^\d{5}$")
    country: str | None = None


class Item(pydantic.BaseModel):
    kind: str
    price: float = pydantic.Field(ge=0)
    tags: list[str] = []


class Order(pydantic.BaseModel):
    id: uuid.UUID
    at: pydantic.AwareDatetime
    mail: str = pydantic.Field(json_schema_extra={"format": "email"})
    state: "str | None" = pydantic.Field(None, pattern="^(open|sent|done)$")
    address: Address
    billing: Address | None = None
    items: list[Item] = pydantic.Field(min_length=1, max_length=50)
    notes: dict[str, str | int | None] = {}
    parent: "Order | None" = None


WITHIN["a model of pydantic"] = Order.model_json_schema()


@pytest.mark.req("FR-062")
@pytest.mark.parametrize("name", WITHIN)
def test_what_people_write_is_followed(tiny_tokenizer: Tokenizer, name: str) -> None:
    grammar = JsonGrammar(tiny_tokenizer, tiny_tokenizer.special("<|assistant_end|>"))
    text = json.dumps(WITHIN[name])
    assert len(text) <= MAX_SCHEMA_LENGTH
    assert not grammar.start(text).forbidden().all()


def test_what_is_no_schema_is_left_to_the_library() -> None:
    for odd in ({"allOf": 3, "$ref": 1, "properties": [], "multipleOf": "x"}, {"items": [True, 3]}):
        check_schema(odd)

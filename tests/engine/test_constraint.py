"""constraint.py: whatever is sampled under the masks is JSON of the schema."""

import json
import math
import re
from typing import Any

import pytest
import torch

from nanochat.common.errors import ConfigError, EngineError, SchemaError
from nanochat.engine import constraint as constraint_module
from nanochat.engine.constraint import Constraint, JsonGrammar
from nanochat.engine.request import ANY_JSON, SamplingParams
from nanochat.engine.sampling import Chooser, sample
from nanochat.tokenizer.tokenizer import Tokenizer

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "friends": {"type": "array", "items": {"$ref": "#"}, "maxItems": 1},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, Any] = {
    "any": {},
    "boolean": {"type": "boolean"},
    "null": {"type": "null"},
    "enum": {"enum": ["red", "green", 5, None, {"a": [1]}]},
    "const": {"const": "caf\u00e9 \u65e5\u672c \U0001f642"},
    "integer": {"type": "integer", "minimum": -20, "maximum": 1000},
    "number": {"type": "number", "minimum": 0, "maximum": 1},
    "string": {"type": "string", "maxLength": 12},
    "unicode": {"type": "string", "pattern": "^[\u00e9\u65e5\U0001f642]{3,5}$"},
    "date": {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}$"},
    "array": {
        "type": "array",
        "items": {"type": "integer", "maximum": 9},
        "minItems": 2,
        "maxItems": 4,
    },
    "nested": {
        "type": "array",
        "maxItems": 3,
        "items": {"type": "array", "maxItems": 2, "items": {"enum": ["a", "b"]}},
    },
    "either": {"anyOf": [{"type": "boolean"}, {"type": "string", "maxLength": 3}]},
    "types": {"type": ["null", "integer"], "minimum": 5, "maximum": 7},
    "person": PERSON,
    "map": {"type": "object", "additionalProperties": {"type": "boolean"}, "maxProperties": 3},
}
KINDS = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
    "integer": int,
    "number": int | float,
}


def is_of_kind(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, KINDS[kind]) or (
        kind == "integer" and isinstance(value, float) and value.is_integer()
    )


def problem(value: Any, schema: Any, root: Any) -> str | None:
    """What is wrong with a value, by the keywords the schemas above use."""
    if schema.get("$ref") == "#":
        schema = root
    kinds = schema.get("type", list(KINDS))
    if not any(is_of_kind(value, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds)):
        return f"{value!r} is not {kinds}"
    if "enum" in schema and value not in schema["enum"]:
        return f"{value!r} is not in the enum"
    if "const" in schema and value != schema["const"]:
        return f"{value!r} is not the constant"
    if "anyOf" in schema and all(problem(value, option, root) for option in schema["anyOf"]):
        return f"{value!r} is none of them"
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf):
            return f"{value} is out of range"
    inner: list[tuple[Any, Any]] = []
    if isinstance(value, str):
        if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", math.inf):
            return f"{value!r} has {len(value)} characters"
        if not re.search(schema.get("pattern", ""), value):
            return f"{value!r} does not match"
    elif isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", math.inf):
            return f"{len(value)} items"
        inner = [(item, schema.get("items", {})) for item in value]
    elif isinstance(value, dict):
        known, rest = schema.get("properties", {}), schema.get("additionalProperties", {})
        if missing := set(schema.get("required", ())) - set(value):
            return f"{missing} are missing"
        if len(value) > schema.get("maxProperties", math.inf):
            return f"{len(value)} properties"
        if rest is False and set(value) - set(known):
            return f"{set(value)} are too many"
        inner = [(item, known.get(key, rest)) for key, item in value.items()]
    return next((text for item, part in inner if (text := problem(item, part, root))), None)


@pytest.fixture(scope="module")
def grammar(tiny_tokenizer: Tokenizer) -> JsonGrammar:
    return JsonGrammar(tiny_tokenizer, tiny_tokenizer.special("<|assistant_end|>"))


def answer(constraint: Constraint, tokenizer: Tokenizer, seed: int) -> str:
    """Random tokens under the masks; what closes is likelier, so that it comes to an end."""
    generator = torch.Generator().manual_seed(seed)
    end = tokenizer.special("<|assistant_end|>")
    special = sorted(tokenizer.special_tokens.values())
    chooser = Chooser(
        SamplingParams(temperature=1.0, top_k=None, seed=seed), vocab_size=tokenizer.vocab_size
    )
    tokens: list[int] = []
    while True:
        logits_BV = torch.randn(1, tokenizer.vocab_size, generator=generator) * 2
        logits_BV[0, [end, *map(ord, '"]}')]] += len(tokens) / 5
        logits_BV[0, special] += 10.0  # nothing keeps them out but the mask
        forbidden_V = constraint.forbidden()
        assert forbidden_V.shape == (tokenizer.vocab_size,)
        assert forbidden_V[[token for token in special if token != end]].all()
        token = int(sample(logits_BV, [chooser], {0: forbidden_V}).tokens_B[0])
        constraint.add(token)
        chooser.add(token)
        if token == end:
            assert constraint.is_complete
            return tokenizer.decode_bytes(tokens).decode("utf-8")  # whole characters
        tokens.append(token)
        assert len(tokens) < 2000


@pytest.mark.req("FR-062")
@pytest.mark.parametrize("name", SCHEMAS)
def test_whatever_is_sampled_is_of_the_schema(
    grammar: JsonGrammar, tiny_tokenizer: Tokenizer, name: str
) -> None:
    schema = SCHEMAS[name]
    for seed in range(12):
        text = answer(grammar.start(json.dumps(schema)), tiny_tokenizer, seed)
        assert problem(json.loads(text), schema, schema) is None, text


def test_json_means_any_json(grammar: JsonGrammar, tiny_tokenizer: Tokenizer) -> None:
    kinds = set()
    for seed in range(40):
        kinds.add(type(json.loads(answer(grammar.start(ANY_JSON), tiny_tokenizer, seed))))
    assert len(kinds) >= 5, kinds


def test_the_end_is_possible_only_when_complete(
    grammar: JsonGrammar, tiny_tokenizer: Tokenizer
) -> None:
    end = tiny_tokenizer.special("<|assistant_end|>")
    constraint = grammar.start('{"type": "array", "items": {"type": "boolean"}, "maxItems": 1}')
    text = "[true]"
    for place, character in enumerate(text):
        assert constraint.forbidden()[end]
        assert not constraint.is_complete, place
        constraint.add(ord(character))
    forbidden_V = constraint.forbidden()
    assert (~forbidden_V).nonzero().flatten().tolist() == [end]
    constraint.add(end)
    with pytest.raises(EngineError, match="cannot be followed further .*simplify"):
        constraint.add(ord("x"))


@pytest.mark.parametrize(
    "options",
    ['"whitespace_flexible": true', '"whitespace_pattern": "[ ]*"', '"item_separator": "[ ]*,"'],
)
def test_no_schema_can_ask_for_endless_spaces(grammar: JsonGrammar, options: str) -> None:
    constraint = grammar.start(f'{{"x-guidance": {{{options}}}, "type": "array"}}')
    for character in "[1":
        constraint.add(ord(character))
        assert constraint.forbidden()[ord(" ")]


def test_answers_do_not_disturb_each_other(grammar: JsonGrammar) -> None:
    one, other = (grammar.start('{"enum": ["ab", "cd"]}') for _ in range(2))
    one.add(ord('"'))
    one.add(ord("a"))
    assert not other.forbidden()[ord('"')]
    assert not one.forbidden()[ord("b")]
    with pytest.raises(EngineError):
        one.add(ord("c"))
    with pytest.raises(EngineError):
        one.forbidden()
    other.add(ord('"'))
    assert not other.forbidden()[ord("c")]


def test_what_takes_too_long_is_given_up(
    grammar: JsonGrammar, monkeypatch: pytest.MonkeyPatch
) -> None:
    constraint = grammar.start('{"type": "array"}')
    constraint.add(ord("["))
    monkeypatch.setattr(constraint_module, "MAX_SECONDS", -1.0)
    message = r"took 0\.\d\d s to follow for 1 tokens, expected at most -0\.99 s: simplify it"
    with pytest.raises(SchemaError, match=message):
        constraint.forbidden()
    with pytest.raises(ConfigError, match=r"took 0\.\d\d s to follow"):
        grammar.start('{"type": "array"}')


def test_several_answers_begin_from_one_schema(grammar: JsonGrammar) -> None:
    first = grammar.start('{"enum": ["ab", "cd"]}')
    second = first.another()
    first.add(ord('"'))
    first.add(ord("a"))
    assert first.forbidden()[ord("c")] and second.forbidden()[ord("a")]
    second.add(ord('"'))
    assert not second.forbidden()[ord("c")]


@pytest.mark.req("FR-062")
@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("", "the schema is not JSON"),
        ("{", "the schema is not JSON"),
        ("[" * 60_000, "the schema is not JSON"),
        ("true", "the schema is true, expected a JSON object"),
        ("[1]", r"expected a JSON object, or json"),
        ('{"type": "text"}', r"cannot be enforced \(Invalid type: text\)"),
        ('{"not": {"type": "null"}}', r"cannot be enforced .*\"not\""),
        ('{"x-guidance": {"lenient": true}, "not": {}}', r"cannot be enforced .*\"not\""),
        ('{"type": "array", "uniqueItems": true}', "uniqueItems"),
        ('{"enum": []}', "cannot be enforced"),
        ('{"$ref": "#/definitions/absent"}', "does not exist"),
        ('{"$ref": "http://example.invalid/schema"}', "does not fetch"),
        ('{"type": "string", "pattern": "(?=a)b"}', "look-around"),
        ('{"properties": {"a":' * 150 + "{}" + "}}" * 150, "cannot be enforced"),
    ],
    ids=lambda text: text[:40],
)
def test_what_cannot_be_enforced_is_refused_in_one_line(
    grammar: JsonGrammar, schema: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        grammar.start(schema)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 320

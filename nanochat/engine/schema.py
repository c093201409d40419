"""JSON schema -> whether it is cheap enough to be followed.   in: a schema   out: why it is not
who calls: constraint.py   (imports no torch)

The automaton's library bounds what it builds, but not how long it thinks: patterns that apply to
one value together take a time exponential in their number (12 take 0.03 s, 16 take 1.4 s, 20 over
20 s), alternatives and optional properties one quadratic in theirs.  So a schema is walked first as
the library would expand it, with a bound on every such number and on the walk.  The worst that was
found within these bounds compiles in 0.3 s and takes 0.05 s for a mask of 16,384 tokens, on a core
of 2 GHz; schemas that people write are far below them.
Read next: constraint.py (what follows), tests/engine/test_schema.py (both sides of every bound).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from nanochat.common.errors import ConfigError

__all__ = ["check_schema"]

MAX_PATTERNS = 4  # that one string has to match, formats included
MAX_ALTERNATIVES = 128  # of one value: what anyOf and oneOf come to, all levels together
MAX_PROPERTIES = 512  # of one object
MAX_MULTIPLES = 10_000  # of all multipleOf, without factors of ten: 4 us to compile each
MAX_TOGETHER = 64  # parts of allOf, and what $refs lead to, that apply to one value
MAX_DEPTH = 64  # of allOf, anyOf, oneOf and $ref in each other, at one value
MAX_STEPS = 20_000  # nodes that are looked at, each as often as it is used: 0.1 s

Node = Mapping[str, Any]
Way = tuple[Node, ...]
"""Nodes that apply to one value together."""


def check_schema(schema: Node) -> None:
    """Whether a schema stays within the bounds.

    Raises: ConfigError naming the bound that it breaks.
    """
    _Walk(schema).run()


class _Walk:
    """Every value that a schema describes, with all that is said of it."""

    def __init__(self, root: Node) -> None:
        self._root = root
        self._num_steps = self._num_multiples = 0
        self._waiting: list[Way] = [(root,)]
        self._known: set[tuple[int, ...]] = set()

    def run(self) -> None:
        """Look at every value once."""
        while self._waiting:
            nodes = tuple(map(self._meant, self._waiting.pop()))
            key = tuple(sorted(map(id, nodes)))
            if key in self._known:
                continue
            self._known.add(key)
            ways: list[Way] = [()]
            for node in nodes:
                ways = self._joined(ways, self._ways(node, 0))
            for way in ways:
                self._check(way)

    def _meant(self, node: Node) -> Node:
        """The node itself, or what it refers to if it says nothing else; looked at once then."""
        for _ in range(MAX_DEPTH):
            target = self._target(node.get("$ref")) if len(node) == 1 else None
            if target is None:
                break
            node = target
        return node

    def _ways(self, node: Any, depth: int) -> list[Way]:
        """What may apply to a value together with a node, one entry for each alternative."""
        self._step()
        if not isinstance(node, Mapping):  # true and false; the library refuses the rest
            return [()]
        if depth > MAX_DEPTH:
            raise _refused(
                f"it has allOf, anyOf, oneOf and $ref {depth} deep at one value, or refers to "
                f"itself there, expected at most {MAX_DEPTH}"
            )
        ways: list[Way] = [(node,)]
        for each in _list(node.get("allOf")):
            ways = self._joined(ways, self._ways(each, depth + 1))
        if (target := self._target(node.get("$ref"))) is not None:
            ways = self._joined(ways, self._ways(target, depth + 1))
        for name in ("anyOf", "oneOf"):
            if options := _list(node.get(name)):
                found: list[Way] = []
                for option in options:
                    found += self._ways(option, depth + 1)
                    _check_alternatives(len(found))
                ways = self._joined(ways, found)
        return ways

    def _joined(self, ways: list[Way], others: list[Way]) -> list[Way]:
        """Each of these with each of those."""
        _check_alternatives(len(ways) * len(others))
        joined = [one + other for one in ways for other in others]
        self._step(len(joined))
        if (most := max(map(len, joined))) > MAX_TOGETHER:
            raise _refused(
                f"{most} parts of allOf and $ref apply to one value, expected at most "
                f"{MAX_TOGETHER}"
            )
        return joined

    def _check(self, way: Way) -> None:
        """The bounds of one value, and then what lies within it."""
        for node in way:
            self._check_base(node)
        num_patterns = sum(("pattern" in node) + ("format" in node) for node in way)
        if num_patterns > MAX_PATTERNS:
            raise _refused(
                f"{num_patterns} patterns and formats apply to one string, expected at most "
                f"{MAX_PATTERNS}: join them into one"
            )
        multiples = [_num_states(node["multipleOf"]) for node in way if "multipleOf" in node]
        self._num_multiples += math.prod(multiples) if multiples else 0
        if self._num_multiples > MAX_MULTIPLES:
            raise _refused(
                f"multipleOf comes to {self._num_multiples:,} in all, factors of ten left out, "
                f"expected at most {MAX_MULTIPLES:,}"
            )
        self._enter(_items(way))
        self._enter(self._properties(way))

    def _enter(self, values: Iterator[Way]) -> None:
        for nodes in values:
            self._step(len(nodes))
            if nodes:
                self._waiting.append(nodes)

    def _properties(self, way: Way) -> Iterator[Way]:
        """What is said of each property, and of those that have no name."""
        named = [{**_map(n.get("patternProperties")), **_map(n.get("properties"))} for n in way]
        rest = [node.get("additionalProperties") for node in way]
        names = dict.fromkeys(name for properties in named for name in properties)
        if len(names) > MAX_PROPERTIES:
            raise _refused(
                f"one object has {len(names)} properties, expected at most {MAX_PROPERTIES}"
            )
        for name in names:
            yield _nodes(
                properties.get(name, other) for properties, other in zip(named, rest, strict=True)
            )
        yield _nodes(rest)

    def _target(self, reference: Any) -> Node | None:
        """What a $ref refers to; the library refuses those that lead nowhere."""
        if not isinstance(reference, str):
            return None
        if reference != "#" and not reference.startswith("#/"):
            raise _refused(f"$ref is {reference[:60]!r}: it does not fetch, expected #/$defs/NAME")
        found: Any = self._root
        for part in reference.split("/")[1:]:
            name = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(found, Mapping):
                self._check_base(found)
                found = found.get(name)
            elif isinstance(found, list) and name.isdecimal() and int(name) < len(found):
                found = found[int(name)]
            else:
                return None
        return found if isinstance(found, Mapping) else None

    def _check_base(self, node: Node) -> None:
        """Whether a $ref within it means what it says: an $id would make it start from there."""
        has_id = isinstance(node.get("$id"), str) or isinstance(node.get("id"), str)
        if has_id and node is not self._root:
            raise _refused("a part of it has an $id of its own, expected one for the whole at most")

    def _step(self, count: int = 1) -> None:
        self._num_steps += count
        if self._num_steps > MAX_STEPS:
            raise _refused(
                f"its parts are used more than {MAX_STEPS:,} times in all: say less with allOf, "
                "anyOf and $ref"
            )


def _items(way: Way) -> Iterator[Way]:
    """What is said of each place of an array, and of those after them."""
    places, rest = [], []
    for node in way:
        items = node.get("items")
        places.append(items if isinstance(items, list) else _list(node.get("prefixItems")))
        rest.append(node.get("additionalItems") if isinstance(items, list) else items)
    for place in range(max(map(len, places), default=0)):
        yield _nodes(
            first[place] if place < len(first) else other
            for first, other in zip(places, rest, strict=True)
        )
    yield _nodes(rest)


def _check_alternatives(count: int) -> None:
    if count > MAX_ALTERNATIVES:
        raise _refused(
            f"one value has {count} alternatives or more, expected at most {MAX_ALTERNATIVES}: "
            "an enum may have more"
        )


def _num_states(multiple: Any) -> int:
    """0.35 -> 7: what is left without decimal point and factors of ten; what is no number, the
    library refuses."""
    if isinstance(multiple, bool) or not isinstance(multiple, int | float):
        return 1
    if not math.isfinite(multiple):
        return MAX_MULTIPLES + 1
    digits = Decimal(str(multiple)).as_tuple().digits
    left = int("".join(map(str, digits)))
    for factor in (2, 5):
        while left and left % factor == 0:
            left //= factor
    return left


def _nodes(found: Iterator[Any] | Sequence[Any]) -> Way:
    return tuple(node for node in found if isinstance(node, Mapping))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _map(value: Any) -> Node:
    return value if isinstance(value, Mapping) else {}


def _refused(reason: str) -> ConfigError:
    return ConfigError(f"the JSON schema takes too long to follow: {reason}")

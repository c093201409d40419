"""Plain values <-> JSON.   in: what a program returned   out: values of Python's own types
who calls: child.py, on both sides

Between a program and its checks nothing else passes.  What arrives is built here from text, so an
answer cannot bring an __eq__ of its own, a frame, or a reference to anything.
A value of another type arrives as Opaque, which equals nothing else.
Read next: child.py (who asks whom).
"""

import json
from collections.abc import Callable
from typing import Any

__all__ = ["Opaque", "decode", "encode"]

BIG_INT = 1 << 62  # beyond it in hexadecimal: decimal digits take quadratic time, and 4,300 at most
MOST_ITEMS = 100_000  # drained from an iterator, which may be endless


class Opaque:
    """Stands for an answer that is not plain data."""

    def __init__(self, type_name: str) -> None:
        self.type_name = type_name

    def __repr__(self) -> str:
        return f"<{self.type_name}, which is not plain data>"


def encode(value: Any) -> bytes:
    """The value as JSON text; containers that are not lists carry their kind.

    Raises: RecursionError for a value that is nested too deep, or contains itself.
    """
    return json.dumps(_packed(value)).encode()


def decode(text: bytes) -> Any:
    """The value again, of exactly the types None, bool, int, float, complex, str, bytes, bytearray,
    list, tuple, set, frozenset, dict, range, iterator or Opaque.

    Raises: ValueError for text that `encode` does not write; RecursionError.
    """
    try:
        return _unpacked(json.loads(text))
    except (TypeError, KeyError, IndexError, OverflowError) as error:
        raise ValueError(f"not an answer: {error}") from error


def _packed(value: Any) -> Any:
    if value is None or isinstance(value, (bool, float, str)):
        # A subclass is sent as what it is a kind of.
        return next((kind(value) for kind in (bool, float, str) if isinstance(value, kind)), None)
    if isinstance(value, int):
        number = int(value)
        return number if abs(number) < BIG_INT else {"int": hex(number)}
    if isinstance(value, list):
        return [_packed(item) for item in value]
    if isinstance(value, dict):
        return {"dict": [[_packed(key), _packed(item)] for key, item in value.items()]}
    for group in (tuple, set, frozenset):
        if isinstance(value, group):
            return {group.__name__: [_packed(item) for item in value]}
    for string in (bytes, bytearray):
        if isinstance(value, string):
            return {string.__name__: bytes(value).hex()}
    return _rare(value)


def _rare(value: Any) -> Any:
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, range):
        return {"range": [_packed(value.start), _packed(value.stop), _packed(value.step)]}
    if hasattr(type(value), "__next__"):
        items = [item for item, _ in zip(value, range(MOST_ITEMS), strict=False)]
        return {"iterator": [_packed(item) for item in items]}
    return {"opaque": type(value).__name__[:100]}


def _unpacked(value: Any) -> Any:
    if isinstance(value, list):
        return [_unpacked(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise ValueError("not an answer: an object without one kind")
    kind, content = next(iter(value.items()))
    if kind not in _MADE:
        raise ValueError(f"not an answer: kind {kind!r}")
    return _MADE[kind](content)


def _items(content: Any) -> list[Any]:
    if not isinstance(content, list):
        raise ValueError("not an answer: no list of items")
    return [_unpacked(item) for item in content]


def _dict(content: Any) -> dict[Any, Any]:
    return {_unpacked(key): _unpacked(item) for key, item in content}


_MADE: dict[str, Callable[[Any], Any]] = {
    "int": lambda content: int(content, 16),
    "dict": _dict,
    "tuple": lambda content: tuple(_items(content)),
    "set": lambda content: set(_items(content)),
    "frozenset": lambda content: frozenset(_items(content)),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "complex": lambda content: complex(float(content[0]), float(content[1])),
    "range": lambda content: range(*_items(content)),
    "iterator": lambda content: iter(_items(content)),
    "opaque": lambda content: Opaque(str(content)[:100]),
}

"""tokenizer.pkl of karpathy/nanochat -> Tokenizer.   in: a path   out: Tokenizer
who calls: checkpoint, cli (`nanochat tokenizer import`)

A pickle is a program that may run anything, so this one is never run.  A tokenizer needs 21 of
pickle's 68 instructions, which only arrange strings, bytes and numbers; the small machine below
knows these and does not even read the arguments of others.  The one name a file may mention,
tiktoken.core.Encoding, becomes a mark for the four fields and is never imported or built.
Read next: common/pickles.py (the reading), tokenizer.py (what is checked afterwards),
tests/tokenizer/test_reference.py and tests/attacks.py (attacks).
"""

from pathlib import Path
from typing import Any, TypeVar

from nanochat.common.errors import DataError, TokenizerError
from nanochat.common.pickles import read_instructions
from nanochat.tokenizer.tokenizer import (
    MAX_FILE_BYTES,
    MAX_VOCAB_SIZE,
    SPECIAL_TOKENS,
    Tokenizer,
)

__all__ = ["load_reference_tokenizer"]

_FIELDS = ("mergeable_ranks", "name", "pat_str", "special_tokens")
_PUSHES = frozenset(
    "SHORT_BINUNICODE BINUNICODE SHORT_BINBYTES BINBYTES BININT BININT1 BININT2".split()
)
_NEEDED = _PUSHES | frozenset(
    "PROTO FRAME MEMOIZE BINGET LONG_BINGET MARK EMPTY_DICT EMPTY_TUPLE SETITEM SETITEMS "
    "STACK_GLOBAL NEWOBJ BUILD STOP".split()
)
_MAX_INSTRUCTIONS = 4 * MAX_VOCAB_SIZE  # a token takes three; bounds time (seconds) and memory

V = TypeVar("V")


def load_reference_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a file that karpathy/nanochat wrote with pickle.dump(tiktoken.Encoding).

    Nothing in the file is executed.
    Raises: TokenizerError naming the file and the reason: absent, too large, an instruction or a
            name that a tokenizer does not need, wrong fields, an unknown split pattern.
    """
    try:
        return _from_fields(_fields(_read(path)))
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from None


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise TokenizerError(
                f"has {size} bytes, expected a tokenizer of at most {MAX_FILE_BYTES}"
            )
        return path.read_bytes()
    except OSError as error:
        raise TokenizerError(
            f"cannot be read ({error.strerror}), expected tokenizer.pkl of karpathy/nanochat"
        ) from None


def _fields(data: bytes) -> dict[Any, Any]:
    """The fields of the one object the pickle describes."""
    machine = _Machine()
    try:
        for name, argument in read_instructions(
            data, _NEEDED, most=_MAX_INSTRUCTIONS, what="a tokenizer"
        ):
            if name != "STOP":
                machine.step(name, argument)
    except DataError as error:
        raise TokenizerError(f"{error}; expected tokenizer.pkl of karpathy/nanochat") from None
    return machine.result()


class _Mark:
    """Where a group of items begins on the stack."""


class _EncodingName:
    """Stands for the name tiktoken.core.Encoding."""


class _Encoding:
    """Stands for the object of that name; holds what was set."""

    def __init__(self) -> None:
        self.fields: dict[Any, Any] | None = None


class _Machine:
    """A stack, a memo, and what a tokenizer's pickle does with them."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: list[Any] = []

    def step(self, name: str, argument: Any) -> None:
        """Carry out one of the instructions a tokenizer needs."""
        if name in _PUSHES:
            self._stack.append(argument)
        elif name == "MEMOIZE":
            self._memo.append(self._top(object))
        elif name in ("BINGET", "LONG_BINGET"):
            self._recall(argument)
        elif name in ("PROTO", "FRAME"):
            pass  # the version, and how many bytes belong together: nothing to do
        elif name == "MARK":
            self._stack.append(_Mark())
        elif name == "EMPTY_DICT":
            self._stack.append({})
        elif name == "EMPTY_TUPLE":
            self._stack.append(())
        elif name == "SETITEM":
            self._set_items([self._pop(object) for _ in range(2)][::-1])
        elif name == "SETITEMS":
            self._set_items(self._pop_to_mark())
        elif name == "STACK_GLOBAL":
            self._mention()
        elif name == "NEWOBJ":
            self._new_object()
        else:
            assert name == "BUILD", f"{name} is needed, but nothing here carries it out"
            self._set_fields()

    def result(self) -> dict[Any, Any]:
        """The fields of the object, if it is all there is."""
        encoding = self._pop(_Encoding)
        if self._stack or encoding.fields is None:
            raise TokenizerError("holds more, or less, than one tiktoken.core.Encoding: refused")
        return encoding.fields

    def _recall(self, index: int) -> None:
        if index >= len(self._memo):
            raise TokenizerError(f"asks for item {index} of {len(self._memo)}: refused")
        self._stack.append(self._memo[index])

    def _set_items(self, items: list[Any]) -> None:
        target = self._top(dict)
        if len(items) % 2:
            raise TokenizerError("holds a key without a value: refused")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | bytes):
                raise TokenizerError(f"has {_kind(key)} as a key, expected str or bytes: refused")
            if key in target:
                raise TokenizerError(f"holds the key {key!r:.60} twice: refused")
            target[key] = value

    def _mention(self) -> None:
        name, module = self._pop(str), self._pop(str)
        if (module, name) != ("tiktoken.core", "Encoding"):
            raise TokenizerError(
                f"names {module:.60}.{name:.60}, but a tokenizer needs tiktoken.core.Encoding and "
                "nothing else: refused, this may be an attack"
            )
        self._stack.append(_EncodingName())

    def _new_object(self) -> None:
        arguments = self._pop(tuple)
        self._pop(_EncodingName)
        assert arguments == (), f"only EMPTY_TUPLE makes a tuple here, got {arguments}"
        self._stack.append(_Encoding())

    def _set_fields(self) -> None:
        fields = self._pop(dict)
        encoding = self._top(_Encoding)
        if encoding.fields is not None:
            raise TokenizerError("sets the fields of its object twice: refused")
        encoding.fields = fields

    def _top(self, kind: type[V]) -> V:
        if not self._stack or not isinstance(self._stack[-1], kind):
            found = _kind(self._stack[-1]) if self._stack else "nothing"
            expected = kind.__name__.strip("_")
            raise TokenizerError(f"has {found} where {expected} belongs: refused")
        return self._stack[-1]

    def _pop(self, kind: type[V]) -> V:
        value = self._top(kind)
        self._stack.pop()
        return value

    def _pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while not isinstance(self._top(object), _Mark):
            items.append(self._stack.pop())
        self._stack.pop()
        return items[::-1]


def _from_fields(fields: dict[Any, Any]) -> Tokenizer:
    if tuple(sorted(map(str, fields))) != _FIELDS:
        raise TokenizerError(f"has the fields {list(fields)!r:.80}, expected {', '.join(_FIELDS)}")
    for field in ("name", "pat_str"):
        if not isinstance(fields[field], str):
            raise TokenizerError(f"{field} is of type {_kind(fields[field])}, expected str")
    tokens = _by_rank(fields["mergeable_ranks"], "mergeable_ranks", bytes, first=0)
    special = _by_rank(fields["special_tokens"], "special_tokens", str, first=len(tokens))
    if tuple(special) != SPECIAL_TOKENS:
        raise TokenizerError(
            f"special tokens are {special!r:.80}, expected the nine of karpathy/nanochat in its "
            "order, <|bos|> to <|output_end|>"
        )
    return Tokenizer(tokens, fields["pat_str"])


def _by_rank(ranks: Any, field: str, kind: type[V], first: int) -> list[V]:
    """The keys ordered by their ranks, which are first, first + 1 and so on."""
    if not isinstance(ranks, dict) or not all(
        isinstance(key, kind) and isinstance(rank, int) for key, rank in ranks.items()
    ):
        raise TokenizerError(f"{field} is not a table from {kind.__name__} to int")
    keys = sorted(ranks, key=ranks.__getitem__)
    if [ranks[key] for key in keys] != list(range(first, first + len(keys))):
        raise TokenizerError(
            f"{field} does not number its {len(keys)} entries {first} to {first + len(keys) - 1}"
        )
    return keys


def _kind(value: object) -> str:
    # The type, never the value: a few bytes can describe one whose repr fills the memory.
    return type(value).__name__.strip("_")

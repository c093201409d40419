"""A .pt file -> tensors.   in: what torch.save wrote   out: tensors in dicts and lists
who calls: reference.py, reference_optimizer.py

Two locks.  Before torch sees the file, a small machine follows its pickle without carrying
anything out: 31 instructions, tensors and ordered dicts as the only things that may be made,
strings and whole numbers as the only keys.  Then torch.load reads it with weights_only, which
has a list of its own; on that list, unlike on ours, are things that can fill the memory.  Every
record's checksum is compared first, so a changed bit is found although the file has no hash.
Read next: common/pickles.py, tests/attacks.py and tests/checkpoint/test_attacks.py (what is
refused).
"""

import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from nanochat.common.errors import CheckpointError, DataError
from nanochat.common.pickles import read_instructions

__all__ = ["Piece", "StoredTensors", "load_torch_file"]

MAX_PICKLE_BYTES = 16 * 2**20  # depth 32 with its optimizer takes 120 kB
MAX_INSTRUCTIONS = 2**19  # of them 20,000; bounds the time to look at it to half a second
FLOATS = (torch.float32, torch.bfloat16, torch.float16)  # all fit float32 exactly


def load_torch_file(path: Path) -> Any:
    """What torch.save wrote, memory-mapped, if it is nothing but tensors, numbers, strings and
    containers of them.

    Raises: CheckpointError naming the file and the reason; nothing in the file is run.
    """
    try:
        _check_program(_read_program(path))
    except DataError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return _load(path)


@dataclass(frozen=True, slots=True)
class Piece:
    """Where a tensor lies: a file, and the keys that lead to it."""

    path: Path
    keys: tuple[str | int, ...]


class StoredTensors(Mapping[str, Tensor]):
    """Tensors of .pt files by new names, in float32, each read when it is asked for.

    The file is mapped anew every time, so that its pages do not stay in memory: no more than one
    tensor at a time is.  `described` is known without reading.  A tensor in several pieces is put
    together along its first dimension; those of `held` are in memory already.
    """

    def __init__(
        self,
        pieces: Mapping[str, tuple[Piece, ...]],
        shapes: Mapping[str, tuple[int, ...]],
        held: Mapping[str, Tensor] | None = None,
    ) -> None:
        assert pieces.keys() == shapes.keys(), "every tensor has a place and a shape"
        self._pieces, self._held = dict(pieces), dict(held or {})
        self.described: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
            name: (torch.float32, shape) for name, shape in shapes.items()
        } | {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in self._held.items()}

    def __getitem__(self, name: str) -> Tensor:
        if name in self._held:
            return self._held[name]
        return _joined([_find(_load(piece.path), piece) for piece in self._pieces[name]])

    def read_all(self) -> dict[str, Tensor]:
        """All of them in memory, every file mapped once."""
        paths = {piece.path for pieces in self._pieces.values() for piece in pieces}
        files = {path: _load(path) for path in paths}
        read = {
            name: _joined([_find(files[piece.path], piece) for piece in pieces])
            for name, pieces in self._pieces.items()
        }
        return read | self._held

    def __iter__(self) -> Iterator[str]:
        return iter(self.described)

    def __len__(self) -> int:
        return len(self.described)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _find(value: Any, piece: Piece) -> Tensor:
    """The tensor that a piece's keys lead to, in float32: where it is that already, it keeps its
    file mapped for as long as it lives, and changing it changes a private copy."""
    for key in piece.keys:
        value = value[key]
    return value.detach().float()


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds for damaged or dangerous files
        raise CheckpointError(
            f"{path}: not readable as plain tensors ({type(error).__name__})"
        ) from error


# -------------------------------------------------------------------------------- the zip archive


def _read_program(path: Path) -> bytes:
    """The pickle in the archive, once all of its records are whole."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = _check_records(archive, path.stat().st_size)
            if damaged := archive.testzip():
                raise DataError(f"{damaged} in it is damaged: its checksum differs; copy it again")
            return archive.read(name)
    except FileNotFoundError:
        raise DataError("does not exist") from None
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})") from None
    except (zipfile.BadZipFile, RuntimeError, ValueError, EOFError, OverflowError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"is no whole archive of tensors ({error}): cut off, damaged, or not written by "
            "torch.save since version 1.6"
        ) from None


def _check_records(archive: zipfile.ZipFile, file_bytes: int) -> str:
    """The name of the one pickle in an archive whose records are plain parts of the file."""
    records = archive.infolist()
    names = [record.filename for record in records]
    if len(set(names)) != len(names):
        raise DataError("holds a record twice: refused")
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise DataError("holds compressed records, which torch.save never writes: refused")
    if sum(record.file_size for record in records) > file_bytes:
        raise DataError("claims more bytes than it has: refused")
    folders = {name.partition("/")[0] for name in names}
    programs = [record for record in records if record.filename.endswith(".pkl")]
    if len(folders) != 1 or [p.filename for p in programs] != [f"{min(folders)}/data.pkl"]:
        raise DataError(
            "holds other than one data.pkl and its tensors, as TorchScript does: refused"
        )
    if programs[0].file_size > MAX_PICKLE_BYTES:
        raise DataError(
            f"its data.pkl has {programs[0].file_size:,} bytes, expected at most "
            f"{MAX_PICKLE_BYTES:,}: refused"
        )
    return programs[0].filename


# ------------------------------------------------------------------------------------- the pickle

_CONSTANTS = {"NEWTRUE": True, "NEWFALSE": False, "NONE": None, "EMPTY_TUPLE": ()}
_LITERALS = frozenset("BINUNICODE BININT BININT1 BININT2 LONG1 BINFLOAT".split())
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_STORAGES = frozenset(
    f"torch {kind}Storage"
    for kind in "Float BFloat16 Half Double Long Int Short Char Byte Bool".split()
)
_REBUILD = frozenset({"torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"})
_ORDERED_DICT = "collections OrderedDict"
_NAMES = _STORAGES | _REBUILD | {_ORDERED_DICT}


class _Mark:
    """Where a group of items begins on the stack."""


class _List:
    """Stands for a list."""


class _Storage:
    """Stands for the numbers a tensor looks at."""


class _Tensor:
    """Stands for a tensor."""


@dataclass(frozen=True)
class _Name:
    """Stands for something that is imported."""

    text: str


class _Dict:
    """Stands for a dict; knows its keys."""

    def __init__(self, *, is_ordered: bool = False) -> None:
        self.is_ordered = is_ordered
        self.keys: set[str | int] = set()


def _check_program(data: bytes) -> None:
    """Follow a pickle without carrying it out.

    Raises: DataError for whatever a file of tensors does not need.
    """
    machine = _Machine()
    for name, argument in read_instructions(
        data, _Machine.NEEDED, most=MAX_INSTRUCTIONS, what="a file of tensors"
    ):
        machine.step(name, argument)


class _Machine:
    """A stack and a memo of stand-ins.  Tuples are real, as deep as they like, but are neither
    compared nor hashed nor printed: shared parts would make that take forever."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Carry one instruction out on the stand-ins."""
        if name in _LITERALS:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _TUPLES:
            self._stack.append(tuple([self._pop() for _ in range(_TUPLES[name])][::-1]))
        else:
            self._ACTIONS[name](self, argument)

    def _ignore(self, argument: Any) -> None:
        pass  # the version

    def _stop(self, argument: Any) -> None:
        self._pop()
        if self._stack:
            raise DataError("leaves more than one object: refused")

    def _push_mark(self, argument: Any) -> None:
        self._stack.append(_Mark())

    def _push_dict(self, argument: Any) -> None:
        self._stack.append(_Dict())

    def _push_list(self, argument: Any) -> None:
        self._stack.append(_List())

    def _put(self, index: int) -> None:
        value = self._pop()
        self._stack.append(value)
        self._memo[index] = value

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise DataError(f"asks for item {index}, which is not there: refused")
        self._stack.append(self._memo[index])

    def _tuple(self, argument: Any) -> None:
        self._stack.append(tuple(self._pop_to_mark()))

    def _append(self, argument: Any) -> None:
        self._pop()
        self._expect(self._pop(), _List, keep=True)

    def _appends(self, argument: Any) -> None:
        self._pop_to_mark()
        self._expect(self._pop(), _List, keep=True)

    def _set_item(self, argument: Any) -> None:
        self._pop()
        self._add_keys([self._pop()])

    def _set_items(self, argument: Any) -> None:
        items = self._pop_to_mark()
        if len(items) % 2:
            raise DataError("holds a key without a value: refused")
        self._add_keys(items[::2])

    def _add_keys(self, keys: list[Any]) -> None:
        target = self._expect(self._pop(), _Dict, keep=True)
        for key in keys:
            if not isinstance(key, str | int):
                raise DataError(f"has {_kind(key)} as a key, expected str or int: refused")
            target.keys.add(key)

    def _mention(self, name: str) -> None:
        if name not in _NAMES:
            raise DataError(
                f"names {name.replace(' ', '.')!r:.80}, but weights need only torch's tensors: "
                "refused, this may be an attack; do not open this file with anything else"
            )
        self._stack.append(_Name(name))

    def _call(self, argument: Any) -> None:
        arguments = self._expect(self._pop(), tuple)
        name = self._expect(self._pop(), _Name).text
        if name in _REBUILD:
            self._stack.append(_Tensor())
        elif name == _ORDERED_DICT and not arguments:
            self._stack.append(_Dict(is_ordered=True))
        else:
            raise DataError(f"calls {name.replace(' ', '.')} with arguments: refused")

    def _set_attributes(self, argument: Any) -> None:
        state = self._expect(self._pop(), _Dict)
        target = self._expect(self._pop(), _Dict, keep=True)
        if not target.is_ordered or state.keys != {"_metadata"}:
            raise DataError("sets attributes of an object: refused")

    def _refer(self, argument: Any) -> None:
        """The only thing outside the pickle is a record of numbers."""
        match self._expect(self._pop(), tuple):
            case ("storage", _Name(text), str(), str(), int()) if text in _STORAGES:
                self._stack.append(_Storage())
            case _:
                raise DataError("refers to something that is no record of numbers: refused")

    def _pop(self) -> Any:
        if not self._stack or isinstance(self._stack[-1], _Mark):
            raise DataError("takes from an empty stack: refused")
        return self._stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while self._stack and not isinstance(self._stack[-1], _Mark):
            items.append(self._stack.pop())
        if not self._stack:
            raise DataError("closes a group that was never opened: refused")
        self._stack.pop()
        return items[::-1]

    def _expect(self, value: Any, kind: type, *, keep: bool = False) -> Any:
        if not isinstance(value, kind):
            raise DataError(f"has {_kind(value)} where {kind.__name__.strip('_')} belongs: refused")
        if keep:
            self._stack.append(value)
        return value

    _ACTIONS: ClassVar[dict[str, Callable[[Any, Any], None]]] = {
        "PROTO": _ignore,
        "STOP": _stop,
        "MARK": _push_mark,
        "EMPTY_DICT": _push_dict,
        "EMPTY_LIST": _push_list,
        "BINPUT": _put,
        "LONG_BINPUT": _put,
        "BINGET": _get,
        "LONG_BINGET": _get,
        "TUPLE": _tuple,
        "APPEND": _append,
        "APPENDS": _appends,
        "SETITEM": _set_item,
        "SETITEMS": _set_items,
        "GLOBAL": _mention,
        "REDUCE": _call,
        "BUILD": _set_attributes,
        "BINPERSID": _refer,
    }
    NEEDED = _LITERALS | _CONSTANTS.keys() | _TUPLES.keys() | _ACTIONS.keys()


def _kind(value: object) -> str:
    # The type, never the value: a few bytes can describe one whose repr fills the memory.
    return type(value).__name__.strip("_")

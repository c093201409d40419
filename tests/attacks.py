"""Pickles that run something.   in: a path that must not come to be   out: pickles that create it
who calls: tests/tokenizer/test_attacks.py, tests/checkpoint/test_attacks.py

Written instruction by instruction, in protocol 2 as torch.save does, so that each stands alone
(tokenizer.pkl) as well as inside a .pt file.  Every one is proved to be real: Python's own pickle
creates the file.
Read next: common/pickles.py (what stands against them).
"""

import io
import marshal
import pickle
import pickletools
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["ATTACKS", "archive", "call", "legacy_file", "named", "program", "tar_file", "value"]


class Piece(bytes):
    """Instructions that leave one object on the stack."""


def value(thing: Any) -> Piece:
    """A plain value, or what is instructions already."""
    if isinstance(thing, Piece):
        return thing
    if isinstance(thing, list):
        return Piece(b"](" + b"".join(map(value, thing)) + b"e")
    if isinstance(thing, tuple):
        return Piece(b"(" + b"".join(map(value, thing)) + b"t")
    if isinstance(thing, dict):
        items = b"".join(value(key) + value(item) for key, item in thing.items())
        return Piece(b"}(" + items + b"u")
    return Piece(pickletools.optimize(pickle.dumps(thing, protocol=2))[2:-1])


def named(module: str, name: str) -> Piece:
    """Something imported."""
    return Piece(f"c{module}\n{name}\n".encode())


def call(function: Piece, *arguments: Any) -> Piece:
    """What a function returns."""
    return Piece(function + value(arguments) + b"R")


def program(*pieces: bytes) -> bytes:
    """A whole pickle."""
    return b"\x80\x02" + b"".join(pieces) + b"."


def archive(content: bytes, folder: str = "archive", **more: bytes) -> bytes:
    """A .pt file as torch.save writes it, with this pickle in it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as records:
        records.writestr(f"{folder}/data.pkl", content)
        records.writestr(f"{folder}/byteorder", b"little")
        records.writestr(f"{folder}/version", b"3\n")
        for name, record in more.items():
            records.writestr(name.replace("__", "/"), record)
    return file.getvalue()


def legacy_file(content: bytes) -> bytes:
    """As torch.save wrote before version 1.6: a few pickles, the third of which is the content."""
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
    system = pickle.dumps({"protocol_version": 1001, "little_endian": True}, protocol=2)
    return magic + pickle.dumps(1001, protocol=2) + system + content


def tar_file(content: bytes) -> bytes:
    """As torch.save wrote in its first year."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as records:
        for name, record in (
            ("sys_info", pickle.dumps({"little_endian": True}, protocol=2)),
            ("storages", content),
            ("tensors", content),
            ("pickle", content),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(record)
            records.addfile(entry, io.BytesIO(record))
    return file.getvalue()


# --------------------------------------------------------------------------------------- attacks


def source(canary: Path) -> str:
    """A line of Python that creates the file."""
    return f"open({str(canary)!r}, 'w').close()"


def code(canary: Path) -> bytes:
    return marshal.dumps(compile(source(canary), "x", "exec"))


def script(canary: Path) -> str:
    """A file of Python that does it."""
    path = canary.with_name("script.py")
    path.write_text(source(canary) + "\n")
    return str(path)


def nested(canary: Path) -> bytes:
    return program(call(named("os", "mkdir"), str(canary)))


def nested_file(canary: Path) -> str:
    path = canary.with_name("nested.pkl")
    path.write_bytes(nested(canary))
    return str(path)


def path_of(canary: Path) -> Piece:
    return call(named("pathlib", "PosixPath"), str(canary))


def attribute(thing: Piece, name: str) -> Piece:
    return call(named("builtins", "getattr"), thing, name)


def module(name: str) -> Piece:
    return call(named("importlib", "import_module"), name)


def function(canary: Path) -> Piece:
    """One that creates the file, whatever it is called with."""
    return call(named("builtins", "eval"), f"lambda *ignored: {source(canary)}")


def made_up(canary: Path, method: str) -> Piece:
    """A class one of whose methods does it."""
    return call(named("builtins", "type"), "T", (), {method: function(canary)})


ATTACKS: dict[str, Callable[[Path], bytes]] = {
    "os.system": lambda c: program(call(named("os", "system"), f"touch {c}")),
    "posix.mkdir": lambda c: program(call(named("posix", "mkdir"), str(c))),
    "os.popen": lambda c: program(
        call(attribute(call(named("os", "popen"), f"touch {c}"), "read"))
    ),
    "os.posix_spawn": lambda c: program(
        call(
            named("os", "waitpid"),
            call(named("os", "posix_spawn"), "/bin/sh", ["sh", "-c", f"touch {c}"], {}),
            0,
        )
    ),
    "subprocess.check_call": lambda c: program(
        call(named("subprocess", "check_call"), ["touch", str(c)])
    ),
    "subprocess.Popen": lambda c: program(
        call(attribute(call(named("subprocess", "Popen"), ["touch", str(c)]), "wait"))
    ),
    "eval": lambda c: program(call(named("builtins", "eval"), source(c))),
    "exec": lambda c: program(call(named("builtins", "exec"), source(c))),
    "eval under Python 2's name": lambda c: program(call(named("__builtin__", "eval"), source(c))),
    "compile, then exec": lambda c: program(
        call(named("builtins", "exec"), call(named("builtins", "compile"), source(c), "x", "exec"))
    ),
    "a marshalled code object": lambda c: program(
        call(call(named("types", "FunctionType"), call(named("marshal", "loads"), code(c)), {}))
    ),
    "a chain of getattr": lambda c: program(call(attribute(path_of(c), "touch"))),
    "__import__": lambda c: program(
        call(attribute(call(named("builtins", "__import__"), "os"), "mkdir"), str(c))
    ),
    "importlib": lambda c: program(call(attribute(module("os"), "mkdir"), str(c))),
    "runpy": lambda c: program(call(named("runpy", "run_path"), script(c))),
    "operator.attrgetter": lambda c: program(
        call(call(call(named("operator", "attrgetter"), "mkdir"), module("os")), str(c))
    ),
    "operator.methodcaller": lambda c: program(
        call(call(named("operator", "methodcaller"), "touch"), path_of(c))
    ),
    "functools.partial": lambda c: program(
        call(call(named("functools", "partial"), named("os", "mkdir"), str(c)))
    ),
    "functools.partial with a state": lambda c: program(
        call(named("functools", "partial"), named("os", "mkdir")),
        value((named("os", "mkdir"), (str(c),), {"mode": 0o755}, None)) + b"b)R",
    ),
    "functools.reduce": lambda c: program(
        call(named("functools", "reduce"), named("os", "mkdir"), [str(c), 0o755])
    ),
    "a map that is emptied": lambda c: program(
        call(
            named("builtins", "list"),
            call(named("builtins", "map"), named("os", "mkdir"), [str(c)]),
        )
    ),
    "a starmap into a deque": lambda c: program(
        call(
            named("collections", "deque"),
            call(named("itertools", "starmap"), named("os", "mkdir"), [(str(c),)]),
        )
    ),
    "timeit": lambda c: program(
        call(named("timeit", "timeit"), source(c), "pass", named("time", "time"), 1)
    ),
    "cProfile": lambda c: program(call(named("cProfile", "run"), source(c), str(c))),
    "open": lambda c: program(call(attribute(call(named("io", "open"), str(c), "w"), "close"))),
    "shutil.copy": lambda c: program(call(named("shutil", "copy"), script(c), str(c))),
    "logging": lambda c: program(call(named("logging", "FileHandler"), str(c))),
    "sqlite3": lambda c: program(
        call(
            attribute(
                call(attribute(call(named("sqlite3", "connect"), str(c)), "execute"), "VACUUM"),
                "close",
            )
        )
    ),
    "ctypes": lambda c: program(
        call(attribute(call(named("ctypes", "CDLL"), None), "mkdir"), str(c).encode(), 0o755)
    ),
    "a pickle in a pickle": lambda c: program(call(named("pickle", "loads"), nested(c))),
    "a pickle beside the pickle": lambda c: program(
        call(named("pickle", "load"), call(named("io", "open"), nested_file(c), "rb"))
    ),
    "copyreg": lambda c: program(
        call(
            named("copyreg", "_reconstructor"),
            named("logging", "FileHandler"),
            named("logging", "FileHandler"),
            str(c),
        )
    ),
    "the extension registry": lambda c: program(b"\x82\xf0" + value((str(c),)) + b"R"),
    "BUILD calls __setstate__": lambda c: program(made_up(c, "__setstate__"), b")\x81}b"),
    "BUILD sets attributes": lambda c: program(
        made_up(c, "__setattr__"), b")\x81", value((None, {"x": 1})), b"b"
    ),
    "APPEND calls append": lambda c: program(made_up(c, "append"), b")\x81Na"),
    "APPENDS calls extend": lambda c: program(made_up(c, "extend"), b")\x81(Ne"),
    "SETITEM calls __setitem__": lambda c: program(made_up(c, "__setitem__"), b")\x81NNs"),
    "SETITEM calls __hash__": lambda c: program(b"}", made_up(c, "__hash__"), b")\x81Ns"),
    "NEWOBJ calls __new__": lambda c: program(made_up(c, "__new__"), b")\x81"),
    "NEWOBJ_EX calls __new__": lambda c: program(made_up(c, "__new__"), b")}\x92"),
    "REDUCE calls __call__": lambda c: program(made_up(c, "__call__"), b")\x81)R"),
    "shelve": lambda c: program(call(named("shelve", "open"), str(c))),
    "INST": lambda c: b"(S'" + str(c).encode() + b"'\nios\nmkdir\n.",
    "OBJ": lambda c: b"(cos\nmkdir\nS'" + str(c).encode() + b"'\no.",
    "protocol 0": lambda c: b"cos\nmkdir\n(S'" + str(c).encode() + b"'\ntR.",
    "STACK_GLOBAL": lambda c: b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93" + value((str(c),)) + b"R.",
    "a dotted name": lambda c: (
        b"\x80\x04\x8c\x0dtiktoken.core\x8c\x11functools.partial\x93"
        + value((named("os", "mkdir"), str(c)))
        + b"R)R."
    ),
    "numpy.testing": lambda c: program(call(named("numpy.testing", "runstring"), source(c), {})),
    "numpy.load": lambda c: program(call(named("numpy", "load"), nested_file(c), None, True)),
    "torch.storage": lambda c: program(
        call(named("torch.storage", "_load_from_bytes"), archive(nested(c)))
    ),
    "torch.load": lambda c: program(
        call(named("functools", "partial"), named("torch", "load")),
        value((named("torch", "load"), (), {"weights_only": False}, None)) + b"b",
        value((call(named("io", "BytesIO"), archive(nested(c))),)) + b"R",
    ),
    "torch.utils.collect_env": lambda c: program(
        call(named("torch.utils.collect_env", "run"), f"touch {c}")
    ),
    "torch.fx": lambda c: program(
        call(named("torch.fx.graph_module", "_exec_with_source"), source(c), {})
    ),
}
"""By name: the path -> a pickle that creates it when it is loaded."""

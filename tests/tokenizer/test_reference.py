"""reference.py: the reference's pickle is read, and no other pickle does anything at all."""

import builtins
import contextlib
import copyreg
import io
import operator
import os
import pickle
import pickletools
import struct
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common.errors import TokenizerError
from nanochat.tokenizer import reference
from nanochat.tokenizer.reference import load_reference_tokenizer
from nanochat.tokenizer.tokenizer import (
    GPT4_SPLIT_PATTERN,
    MAX_FILE_BYTES,
    SPECIAL_TOKENS,
    SPLIT_PATTERN,
    Tokenizer,
)

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "tokenizer.pkl"
BYTES = [bytes([byte]) for byte in range(256)]
RANKS = {token: rank for rank, token in enumerate(BYTES)}
SPECIAL = {name: 256 + index for index, name in enumerate(SPECIAL_TOKENS)}
FIELDS = {
    "name": "rustbpe",
    "pat_str": SPLIT_PATTERN,
    "mergeable_ranks": RANKS,
    "special_tokens": SPECIAL,
}


def data(value: Any) -> bytes:
    """Instructions that leave a value on the stack, in the reference's protocol."""
    output = io.BytesIO()
    pickler = pickle.Pickler(output, protocol=4)
    pickler.fast = True  # without the memo, so that pieces can be put together
    pickler.dump(value)
    framed = output.getvalue()
    return framed[11:-1] if framed[2:3] == pickle.FRAME else framed[2:-1]


def program(*instructions: bytes) -> bytes:
    """A whole pickle."""
    return b"\x80\x04" + b"".join(instructions) + b"."


def name_of(module: str, name: str) -> bytes:
    """Instructions that look up a name."""
    return data(module) + data(name) + pickle.STACK_GLOBAL


OBJECT = name_of("tiktoken.core", "Encoding") + b")\x81"


def with_fields(**changes: Any) -> bytes:
    """A tokenizer's pickle with some fields changed."""
    return program(OBJECT, data(FIELDS | changes), b"b")


def load(content: bytes, path: Path) -> Tokenizer:
    path.write_bytes(content)
    return load_reference_tokenizer(path)


# ---------------------------------------------------------------------------------- what is read


@pytest.mark.req("FR-031", "US-5")
@pytest.mark.parametrize("protocol", [4, 5])
def test_what_tiktoken_pickles_is_read(tokenizer: Tokenizer, tmp_path: Path, protocol: int) -> None:
    ranks = {tokenizer.decode_bytes([token]): token for token in range(503)}
    special = {name: 503 + index for index, name in enumerate(SPECIAL_TOKENS)}
    encoding = tiktoken.Encoding(
        "rustbpe", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens=special
    )
    assert load(pickle.dumps(encoding, protocol=protocol), tmp_path / "t.pkl") == tokenizer


@pytest.mark.req("FR-031", "US-5")
def test_the_golden_file_is_what_unpickling_gives(tokenizer: Tokenizer) -> None:
    encoding = pickle.loads(GOLDEN.read_bytes())  # known to be harmless
    text = "Hello world, na\u00efve 12345"
    assert encoding.encode_ordinary(text) == tokenizer.encode(text)
    assert encoding._special_tokens == tokenizer.special_tokens


@pytest.mark.req("FR-031")
def test_import_survives_saving(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    assert Tokenizer.load(tmp_path / "tokenizer.json") == load_reference_tokenizer(GOLDEN)


@pytest.mark.req("FR-031")
def test_other_ways_to_write_the_same(tmp_path: Path) -> None:
    path = tmp_path / "t.pkl"
    plain = Tokenizer(BYTES)
    assert load(with_fields(), path) == plain
    assert load(with_fields(pat_str=GPT4_SPLIT_PATTERN), path).pattern == GPT4_SPLIT_PATTERN
    backwards = dict(reversed(RANKS.items()))
    assert load(with_fields(mergeable_ranks=backwards), path) == plain, "only the ranks count"
    optimized = pickletools.optimize(GOLDEN.read_bytes())
    assert load(optimized, path) == load_reference_tokenizer(GOLDEN)
    singly = [data(key) + data(value) + pickle.SETITEM for key, value in FIELDS.items()]
    assert load(program(OBJECT, b"}", *singly, b"b"), path) == plain
    rest = {key: value for key, value in FIELDS.items() if key != "name"}
    for recall in (b"h\x00", b"j\x00\x00\x00\x00"):  # the name is the key itself, from the memo
        repeated = data("name") + pickle.MEMOIZE + recall + pickle.SETITEM
        assert load(program(OBJECT, data(rest), repeated, b"b"), path) == plain


# --------------------------------------------------------------------------------------- attacks


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


def text_protocol(sentinel: Path) -> bytes:
    return b"cos\nmkdir\n(S'" + os.fsencode(sentinel) + b"'\ntR."


def inst(sentinel: Path) -> bytes:
    return b"(S'" + os.fsencode(sentinel) + b"'\nios\nmkdir\n."


def obj(sentinel: Path) -> bytes:
    return b"(cos\nmkdir\nS'" + os.fsencode(sentinel) + b"'\no."


def names_from_the_memo(sentinel: Path) -> bytes:
    memo = data("mkdir") + b"\x94" + data("os") + b"\x94"
    return program(memo, b"h\x01h\x00\x93", data(str(sentinel)), b"\x85R")


def thrown_away_beside_the_fields(sentinel: Path) -> bytes:
    return program(data(Call(os.mkdir, str(sentinel))), b"0", with_fields()[2:-1])


def in_place_of_the_object(sentinel: Path) -> bytes:
    return program(data(Call(os.mkdir, str(sentinel))))


def as_name(sentinel: Path) -> bytes:
    return with_fields(name=Call(os.mkdir, str(sentinel)))


def as_rank(sentinel: Path) -> bytes:
    return with_fields(mergeable_ranks=RANKS | {b"xy": Call(os.mkdir, str(sentinel))})


def as_key(sentinel: Path) -> bytes:
    # mkdir gives None, which is a key as good as any
    return with_fields(special_tokens={Call(os.mkdir, str(sentinel)): 256})


def evaluated(sentinel: Path) -> bytes:
    return with_fields(name=Call(builtins.eval, f"__import__('os').mkdir({str(sentinel)!r})"))


def executed(sentinel: Path) -> bytes:
    return with_fields(name=Call(builtins.exec, f"import os; os.mkdir({str(sentinel)!r})"))


def by_shell(sentinel: Path) -> bytes:
    return with_fields(name=Call(os.system, f"mkdir {sentinel}"))


def by_process(sentinel: Path) -> bytes:
    return with_fields(name=Call(subprocess.check_call, ["mkdir", str(sentinel)]))


def by_getattr(sentinel: Path) -> bytes:
    method = Call(builtins.getattr, sentinel, "mkdir")
    caller = Call(operator.methodcaller, "__call__")
    return program(data(caller), data(method), b"\x85R")


def by_import(sentinel: Path) -> bytes:
    module = Call(builtins.__import__, "os")
    function = Call(builtins.getattr, module, "mkdir")
    return program(data(function), data((str(sentinel),)), b"R")


def by_dotted_name(sentinel: Path) -> bytes:
    # STACK_GLOBAL follows dots: an allowed module is a way to everything it imported.
    partial = name_of("tiktoken.core", "functools.partial")
    target = partial + name_of("os", "mkdir") + data(str(sentinel)) + b"\x86R"
    return program(target, b")R")


def by_state(sentinel: Path) -> bytes:
    # a class whose __setstate__ was replaced by what should run
    klass = Call(builtins.type, "T", (), {"__setstate__": Call(Touch, str(sentinel))})
    return program(data(klass), b")\x81", data({"a": 1}), b"b")


class Touch:
    """Called with anything, makes a directory."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, *anything: object) -> None:
        os.makedirs(self.path, exist_ok=True)


def by_extension_registry(sentinel: Path) -> bytes:
    return program(b"\x82\xf0", data(str(sentinel)), b"\x85R")  # EXT1 240, registered in the test


ATTACKS = [
    text_protocol,
    inst,
    obj,
    names_from_the_memo,
    thrown_away_beside_the_fields,
    in_place_of_the_object,
    as_name,
    as_rank,
    as_key,
    evaluated,
    executed,
    by_shell,
    by_process,
    by_getattr,
    by_import,
    by_dotted_name,
    by_state,
    by_extension_registry,
]


@pytest.mark.req("EC-2", "FR-031")
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_no_attack_runs(attack: Any, tmp_path: Path) -> None:
    copyreg.add_extension("os", "mkdir", 240)
    try:
        sentinel = tmp_path / "sentinel"
        content = attack(sentinel)
        with contextlib.suppress(Exception):  # it may fail after it ran
            pickle.loads(content)
        assert sentinel.exists(), "the attack is a real one: pickle runs it"
        sentinel.rmdir()
        with pytest.raises(TokenizerError, match=r"t\.pkl: (holds the pickle instruction|names) "):
            load(content, tmp_path / "t.pkl")
        assert not sentinel.exists()
    finally:
        copyreg.remove_extension("os", "mkdir", 240)
        copyreg._extension_cache.clear()


# ------------------------------------------------------------------- files that are simply wrong


def nested(depth: int) -> bytes:
    return b"}" + (data("k") + b"}") * depth + b"s" * depth


def laughs(depth: int) -> bytes:
    """A few bytes a level, twice the repr each."""
    levels = b"}" + data("k") + b"}\x94s"
    for level in range(depth):
        get = b"h" + bytes([level])
        levels += data(f"k{level}") + b"}" + data("a") + get + b"s" + data("b") + get + b"s\x94s"
    return levels


def fields_of(value: bytes) -> bytes:
    rest = {key: FIELDS[key] for key in ("pat_str", "mergeable_ranks", "special_tokens")}
    return program(OBJECT, data(rest), data("name"), value, b"s", b"b")


WRONG = {
    "empty": (b"", "is not a whole pickle"),
    "text": (b"not a pickle", "is not a whole pickle|holds the pickle instruction"),
    "json": (b'{"format": "nanochat-tokenizer"}', "is not a whole pickle"),
    "truncated": (GOLDEN.read_bytes()[:2000], "is not a whole pickle"),
    "no stop": (GOLDEN.read_bytes()[:-1], "is not a whole pickle"),
    "one more byte": (GOLDEN.read_bytes() + b"\n", "holds more than one pickle"),
    "a second pickle": (with_fields() + text_protocol(Path("x")), "holds more than one pickle"),
    "a string": (program(data("cl100k_base")), "has str where Encoding belongs"),
    "a table": (program(data(FIELDS)), "has dict where Encoding belongs"),
    "no fields": (program(OBJECT), "holds more, or less, than one"),
    "more on the stack": (program(data("x"), with_fields()[2:-1]), "holds more, or less"),
    "the class itself": (program(name_of("tiktoken.core", "Encoding")), "has EncodingName where"),
    "built by calling": (
        program(name_of("tiktoken.core", "Encoding"), data(tuple(FIELDS.values())), b"R"),
        "holds the pickle instruction",
    ),
    "built with keywords": (
        program(name_of("tiktoken.core", "Encoding"), b")}\x92"),
        "instruction NEWOBJ_EX",
    ),
    "another class": (program(name_of("tiktoken", "Encoding"), b")\x81"), "names tiktoken.Encodi"),
    "an attribute": (
        program(name_of("tiktoken.core", "Encoding.__init__"), b")\x81"),
        "names tiktoken.core.Encoding.__init__",
    ),
    "a name of bytes": (program(data(b"os"), data(b"mkdir"), b"\x93"), "has bytes where str"),
    "fields set twice": (
        program(OBJECT, data(FIELDS), b"b", data(FIELDS), b"b"),
        "sets the fields of its object twice",
    ),
    "fields of a string": (program(data("x"), data(FIELDS), b"b"), "has str where Encoding"),
    "fields in slots": (program(OBJECT, b"(", data(FIELDS), b"t", b"b"), "instruction TUPLE"),
    "persistent id": (b"Psecret\n.", "holds the pickle instruction PERSID"),
    "persistent id on the stack": (program(data("x"), b"Q"), "instruction BINPERSID"),
    "extension": (program(b"\x84\xff\xff\xff\x7f"), "instruction EXT4"),
    "a float": (with_fields(name=1.5), "instruction BINFLOAT"),
    "true": (with_fields(mergeable_ranks=RANKS | {b"\0": False}), "instruction NEWFALSE"),
    "a large number": (with_fields(special_tokens={"<|bos|>": 2**70}), "instruction LONG1"),
    "a number of digits": (b"I" + b"9" * 10_000 + b"\n.", "instruction INT"),
    "memo beyond its end": (program(b"j\xff\xff\xff\x7f"), "asks for item 2147483647 of 0"),
    "huge memo": (program(data("x"), b"r\xff\xff\xff\x7f"), "instruction LONG_BINPUT"),
    "too many bytes": (program(b"B\xff\xff\xff\x7f"), "is not a whole pickle"),
    "huge bytes": (program(b"\x8e" + struct.pack("<Q", 2**62)), "instruction BINBYTES8"),
    "huge string": (program(b"X\xff\xff\xff\xff"), "is not a whole pickle"),
    "negative length": (program(b"\x8b\xff\xff\xff\xff"), "instruction LONG4"),
    "not utf-8": (program(b"\x8c\x01\xff"), "is not a whole pickle"),
    "pop of nothing": (program(b"u"), "has nothing where object belongs"),
    "no mark": (program(b"}", data("a"), data("b"), b"u"), "has nothing where object belongs"),
    "odd items": (program(OBJECT, b"}(", data("a"), b"u"), "holds a key without a value"),
    "a number as key": (with_fields(mergeable_ranks={1: 2}), "has int as a key"),
    "a table as key": (program(b"}}}s"), "has dict as a key"),
    "a key twice": (
        program(OBJECT, b"}(", (data("name") + data("x")) * 2, b"u"),
        "holds the key 'name' twice",
    ),
    "a field missing": (
        program(OBJECT, data({"name": "x", "pat_str": "y"}), b"b"),
        "has the fields .'name', 'pat_str'., expected mergeable_ranks, name, pat_str, special",
    ),
    "a field too many": (with_fields(explicit_n_vocab=3), "has the fields "),
    "name a number": (with_fields(name=3), "name is of type int, expected str"),
    "pattern of bytes": (with_fields(pat_str=b"x"), "pat_str is of type bytes, expected str"),
    "a pattern that stalls": (with_fields(pat_str="(x+)+y"), "is unknown: expected that of karp"),
    "ranks a string": (with_fields(mergeable_ranks="x"), "mergeable_ranks is not a table from by"),
    "ranks of strings": (with_fields(mergeable_ranks={"x": 1}), "mergeable_ranks is not a table"),
    "rank a string": (with_fields(mergeable_ranks={b"x": "1"}), "mergeable_ranks is not a table"),
    "rank missing": (
        with_fields(mergeable_ranks=RANKS | {b"ab": 257}),
        "mergeable_ranks does not number its 257 entries 0 to 256",
    ),
    "rank twice": (with_fields(mergeable_ranks=RANKS | {b"ab": 7}), "does not number its 257"),
    "rank negative": (with_fields(mergeable_ranks=RANKS | {b"\0": -1}), "does not number its 256"),
    "no ranks": (with_fields(mergeable_ranks={}), "special_tokens does not number"),
    "a byte missing": (
        with_fields(mergeable_ranks={**{b: r for b, r in RANKS.items() if r < 255}, b"ab": 255}),
        "lacks 1 of the 256 single bytes",
    ),
    "special tokens of bytes": (with_fields(special_tokens={b"x": 256}), "special_tokens is not"),
    "special tokens first": (
        with_fields(special_tokens={name: id_ - 256 for name, id_ in SPECIAL.items()}),
        "special_tokens does not number its 9 entries 256 to 264",
    ),
    "special tokens missing": (with_fields(special_tokens={"<|bos|>": 256}), "expected the nine"),
    "special tokens in another order": (
        with_fields(special_tokens=dict(zip(reversed(SPECIAL), range(256, 265), strict=True))),
        "expected the nine of karpathy/nanochat in its order",
    ),
    "a hundred thousand tables deep": (fields_of(nested(100_000)), "name is of type dict"),
    "a name that doubles forever": (fields_of(laughs(200)), "name is of type dict"),
}


@pytest.mark.req("EC-2", "FR-031")
@pytest.mark.parametrize("kind", WRONG)
def test_wrong_files_are_refused_with_their_name(kind: str, tmp_path: Path) -> None:
    content, message = WRONG[kind]
    start = time.perf_counter()
    with pytest.raises(TokenizerError, match=rf"^{tmp_path}/t\.pkl: .*({message})") as caught:
        load(content, tmp_path / "t.pkl")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert time.perf_counter() - start < 5


@pytest.mark.req("EC-2")
def test_the_fields_may_not_hold_themselves(tmp_path: Path) -> None:
    rest = {key: FIELDS[key] for key in ("pat_str", "mergeable_ranks", "special_tokens")}
    cyclic = program(OBJECT, b"}\x94", data("name"), b"h\x00s", data(rest)[1:-1], b"ub")
    with pytest.raises(TokenizerError, match="name is of type dict|instruction"):
        load(cyclic, tmp_path / "t.pkl")


@pytest.mark.req("EC-2")
def test_absent_and_huge_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TokenizerError, match=r"absent\.pkl: cannot be read \(No such file"):
        load_reference_tokenizer(tmp_path / "absent.pkl")
    with pytest.raises(TokenizerError, match="Is a directory"):
        load_reference_tokenizer(tmp_path)
    huge = tmp_path / "huge.pkl"
    with huge.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(TokenizerError, match=f"has {MAX_FILE_BYTES + 1} bytes, expected"):
        load_reference_tokenizer(huge)
    monkeypatch.setattr(reference, "_MAX_INSTRUCTIONS", 100)
    with pytest.raises(TokenizerError, match="has more than 100 instructions: refused"):
        load(with_fields(), tmp_path / "long.pkl")


@pytest.mark.req("EC-2", "FR-031")
@given(
    position=st.integers(0, GOLDEN.stat().st_size - 1),
    replacement=st.binary(max_size=6),
    num_removed=st.integers(0, 40),
)
def test_damaged_files_load_as_something_valid_or_not_at_all(
    tmp_path_factory: pytest.TempPathFactory, position: int, replacement: bytes, num_removed: int
) -> None:
    content = bytearray(GOLDEN.read_bytes())
    content[position : position + num_removed] = replacement
    path = tmp_path_factory.mktemp("damaged") / "t.pkl"
    try:
        tokenizer = load(bytes(content), path)
    except TokenizerError as error:
        assert str(error).startswith(f"{path}: ")
    else:
        assert tokenizer.decode(tokenizer.encode("Hello world")) == "Hello world"


@pytest.mark.req("EC-2")
@given(content=st.binary(max_size=60))
def test_noise_is_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    with pytest.raises(TokenizerError):
        load(content, tmp_path_factory.mktemp("noise") / "t.pkl")

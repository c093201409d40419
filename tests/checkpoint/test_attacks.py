"""No .pt file runs anything, fills the memory or holds up the program."""

import copyreg
import io
import os
import resource
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanochat.checkpoint import torch_file
from nanochat.checkpoint.reference import load_optimizer, load_weights
from nanochat.checkpoint.torch_file import load_torch_file
from nanochat.common.errors import CheckpointError
from tests.attacks import ATTACKS, archive, call, legacy_file, named, program, tar_file, value
from tests.conftest import REPOSITORY
from tests.golden import parity

STORAGE = value(("storage", named("torch", "FloatStorage"), "0", "cpu", 1)) + b"Q"
REBUILD = named("torch._utils", "_rebuild_tensor_v2")


def inside(content: bytes) -> bytes:
    """The attack as one of the values of a dict, if it can be put there."""
    if not content.startswith(b"\x80\x02"):
        return archive(content)
    return archive(program(b"}", value("lm_head.weight"), content[2:-1], b"s"))


WAYS: dict[str, Callable[[bytes], bytes]] = {
    "as it is": bytes,
    "in an archive": archive,
    "among the weights": inside,
    "in an old file": legacy_file,
    "in a tar": tar_file,
    "as TorchScript": lambda content: archive(
        content, **{"archive__constants.pkl": content, "archive__code__x.py": b"import os"}
    ),
    "beside the weights": lambda content: archive(
        program(b"}"), **{"archive__constants.pkl": content}
    ),
}

EVERY_ATTACK = """
import copyreg, pickle, sys, tempfile, warnings
from pathlib import Path
from tests.attacks import ATTACKS

warnings.simplefilter("ignore")
copyreg.add_extension("os", "mkdir", 240)
for name, attack in ATTACKS.items():
    canary = Path(tempfile.mkdtemp(dir=sys.argv[1])) / "canary"
    content = attack(canary)
    assert not any(canary.parent.glob("canary*")), name
    try:
        pickle.loads(content)
    except Exception:  # it may fail after it ran
        pass
    assert any(canary.parent.glob("canary*")), f"{name} does nothing"
print(len(ATTACKS))
"""


@pytest.mark.req("EC-2", "FR-062")
def test_the_attacks_are_real(tmp_path: Path) -> None:
    """In a process of its own: Python's pickle carries every one of them out."""
    done = subprocess.run(
        [sys.executable, "-c", EVERY_ATTACK, str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert int(done.stdout.split()[-1]) == len(ATTACKS) >= 50


def assert_refused(path: Path, load: Callable[[Path], Any]) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    assert len(message) < len(str(path)) + 250
    return message


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.req("EC-2", "FR-047", "FR-062")
def test_no_attack_runs(attack: str, tmp_path: Path) -> None:
    copyreg.add_extension("os", "mkdir", 240)
    try:
        canary, path = tmp_path / "canary", tmp_path / "model_000001.pt"
        weights = parity.from_golden("v5").weights
        content = ATTACKS[attack](canary)
        there = {path, *tmp_path.iterdir()}
        for way, wrap in WAYS.items():
            path.write_bytes(wrap(content))
            for load in (load_weights, lambda path: load_optimizer(path, weights)):
                assert_refused(path, load)
            assert set(tmp_path.iterdir()) == there and not canary.exists(), way
    finally:
        copyreg.remove_extension("os", "mkdir", 240)
        copyreg._extension_cache.clear()


class Trap:
    """Runs a command when it is unpickled, by every protocol."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch " + os.environ["TRAP"],)


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.req("EC-2", "FR-062")
def test_what_torch_save_writes_for_an_object(
    is_zip: bool, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAP", str(tmp_path / "canary"))
    path = tmp_path / "model_000001.pt"
    torch.save(
        {"lm_head.weight": torch.zeros(2), "more": [{"deep": Trap()}]},
        path,
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=is_zip,
    )
    assert_refused(path, load_weights)
    assert not (tmp_path / "canary").exists()


def test_torch_stands_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With our own lock open, the second one holds."""
    monkeypatch.setattr(torch_file, "_check_program", lambda data: None)
    canary, path = tmp_path / "canary", tmp_path / "model_000001.pt"
    for attack in ATTACKS.values():
        path.write_bytes(inside(attack(canary)))
        assert "not readable as plain tensors" in assert_refused(path, load_torch_file)
        assert not canary.exists()


# ------------------------------------------------------------------- what fills memory or time


def tuples(depth: int) -> bytes:
    """One object that is 2**depth long when it is compared, hashed or printed."""
    return b")" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(depth))


def expanded(size: int) -> bytes:
    shape = value((size, size))
    return REBUILD + b"(" + STORAGE + value(0) + shape + value((0, 0)) + b"\x89}tR"


def deflated(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as records:
        records.writestr("archive/data.pkl", content)
    return file.getvalue()


def twice(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as records, pytest.warns(UserWarning, match="Duplicate"):
        records.writestr("archive/data.pkl", program(b"}"))
        records.writestr("archive/data.pkl", content)
    return file.getvalue()


def overlapping() -> bytes:
    """Two entries of the index point at the same bytes."""
    file = bytearray(archive(program(b"}"), archive__data__0=b"x" * 50_000))
    start = file.index(b"PK\x01\x02")
    end = file.index(b"PK\x05\x06")
    index = bytes(file[start:end])
    entries = [b"PK\x01\x02" + entry for entry in index.split(b"PK\x01\x02")[1:]]
    copy = entries[-1].replace(b"archive/data/0", b"archive/data/1")
    count = (len(entries) + 1).to_bytes(2, "little")
    tail = bytearray(file[end:])
    tail[8:10] = tail[10:12] = count
    tail[12:16] = (len(index) + len(copy)).to_bytes(4, "little")
    return bytes(file[:end]) + copy + bytes(tail)


def peak_kb() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 1024 if sys.platform == "darwin" else peak


PERSISTENT = "refers to something that is no record of numbers"
BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    # What torch's own list allows.
    "a bytearray": (
        lambda: archive(program(call(named("builtins", "bytearray"), 2**40))),
        "names 'builtins.bytearray'",
    ),
    "a tensor by size": (
        lambda: archive(program(call(named("torch", "FloatTensor"), 2**40))),
        "names 'torch.FloatTensor'",
    ),
    "a counter": (
        lambda: archive(program(call(named("collections", "Counter"), "x"))),
        "names 'collections.Counter'",
    ),
    "an ordered dict of something": (
        lambda: archive(program(call(named("collections", "OrderedDict"), [(1, 2)]))),
        "calls collections.OrderedDict with arguments",
    ),
    "an ordered dict with a method replaced": (
        lambda: archive(
            program(call(named("collections", "OrderedDict")), value({"items": 1}), b"b")
        ),
        "sets attributes of an object",
    ),
    # What looks small and is not.
    "a key of pairs of pairs": (
        lambda: archive(program(b"}", tuples(120), b"Ns")),
        "has tuple as a key",
    ),
    "a record's name of pairs of pairs": (
        lambda: archive(
            program(
                b"(" + value("storage"),
                named("torch", "FloatStorage"),
                tuples(120),
                value("cpu"),
                value(1),
                b"tQ",
            )
        ),
        PERSISTENT,
    ),
    "pairs of pairs in place of weights": (
        lambda: archive(program(tuples(120))),
        "expected a dictionary of tensors by name, found tuple",
    ),
    "one number a million million times": (
        lambda: archive(
            program(b"}", value("lm_head.weight"), expanded(2**20), b"s"),
            archive__data__0=bytes(4),
        ),
        "claim 4,398,046,511,104 bytes|not readable as plain tensors",
    ),
    "a hundred thousand lists deep": (
        lambda: archive(program(b"]" * 100_000 + b"a" * 99_999)),
        "found list",
    ),
    "a memo without end": (
        lambda: archive(program(b"}r\xff\xff\xff\xff", b"j\xff\xff\xff\x7f")),
        "asks for item 2147483647",
    ),
    "a string longer than the file": (
        lambda: archive(b"\x80\x02X\xff\xff\xff\x7f"),
        "is not a whole pickle",
    ),
    "bytes longer than memory": (
        lambda: archive(b"\x80\x02\x8e" + b"\xff" * 7 + b"\x7f"),
        "instruction BINBYTES8",
    ),
    "a number of a million digits": (
        lambda: archive(b"\x80\x02I" + b"9" * 1_000_000 + b"\n."),
        "instruction INT",
    ),
    "too many instructions": (
        lambda: archive(b"\x80\x02" + b"N" * 600_000 + b"."),
        "has more than 524288 instructions",
    ),
    "a large pickle": (
        lambda: archive(b"\x80\x02" + b"N" * (16 * 2**20) + b"."),
        "data.pkl has 16,777,219 bytes, expected at most 16,777,216",
    ),
    "a compressed pickle": (
        lambda: deflated(b"\x80\x02" + b"N" * 10_000_000 + b"."),
        "holds compressed records",
    ),
    "a record twice": (lambda: twice(program(b"}")), "holds a record twice"),
    "records on top of each other": (overlapping, "claims more bytes than it has"),
    # What is simply wrong.
    "a persistent id": (lambda: archive(b"\x80\x02Pevil\n."), "instruction PERSID"),
    "an id that is a string": (lambda: archive(program(value("x"), b"Q")), "has str where tuple"),
    "an id of another kind": (
        lambda: archive(
            program(value(("module", named("torch", "FloatStorage"), "0", "cpu", 1)), b"Q")
        ),
        PERSISTENT,
    ),
    "an id of another type": (
        lambda: archive(
            program(value(("storage", named("collections", "OrderedDict"), "0", "cpu", 1)), b"Q")
        ),
        PERSISTENT,
    ),
    "a name called": (lambda: archive(program(value("x"), b")R")), "has str where Name belongs"),
    "a call without a tuple": (
        lambda: archive(program(REBUILD, b"NR")),
        "has NoneType where tuple belongs",
    ),
    "a storage called": (
        lambda: archive(program(named("torch", "FloatStorage"), b")R")),
        "calls torch.FloatStorage with arguments",
    ),
    "state of a dict": (
        lambda: archive(program(b"}", value({"_metadata": 1}), b"b")),
        "sets attributes of an object",
    ),
    "an item of a list": (lambda: archive(program(b"]NNs")), "has List where Dict belongs"),
    "an appended dict": (lambda: archive(program(b"}Na")), "has Dict where List belongs"),
    "appended dicts": (lambda: archive(program(b"}(Ne")), "has Dict where List belongs"),
    "a key without a value": (lambda: archive(program(b"}(", value("x"), b"u")), "without a value"),
    "a group never opened": (lambda: archive(program(b"}u")), "closes a group that was never"),
    "nothing to take": (lambda: archive(program(b"a")), "takes from an empty stack"),
    "across a mark": (lambda: archive(program(b"](a")), "takes from an empty stack"),
    "two objects": (lambda: archive(program(b"}}")), "leaves more than one object"),
    "two pickles": (lambda: archive(program(b"}") + program(b"}")), "holds more than one pickle"),
    "no pickle": (lambda: archive(b""), "is not a whole pickle"),
    "a tensor without its arguments": (
        lambda: archive(program(b"}", value("a"), REBUILD, b")Rs")),
        "not readable as plain tensors",
    ),
    "a record that is not there": (
        lambda: archive(program(b"}", value("a"), expanded(1), b"s")),
        "not readable as plain tensors",
    ),
    "two folders": (
        lambda: archive(program(b"}"), other__data=b""),
        "holds other than one data.pkl and its tensors",
    ),
    "an empty zip": (lambda: b"PK\x05\x06" + bytes(18), "holds other than one data.pkl"),
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.req("EC-2", "FR-047", "FR-062")
def test_bombs_do_not_go_off(bomb: str, tmp_path: Path) -> None:
    make, expected = BOMBS[bomb]
    path = tmp_path / "model_000001.pt"
    path.write_bytes(make())
    before, start = peak_kb(), time.perf_counter()
    message = assert_refused(path, load_weights)
    assert any(part in message for part in expected.split("|")), message
    assert time.perf_counter() - start < 5
    assert peak_kb() - before < 200_000


# ---------------------------------------------------------------------------------- damaged files


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small checkpoint as torch.save writes it."""
    path = tmp_path_factory.mktemp("whole") / "model.pt"
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(3, 5)  # its state_dict has attributes
    weights = layer.state_dict()
    weights["a"] = torch.rand(7, generator=generator)
    weights["b"] = torch.rand(2, 3, generator=generator).bfloat16()
    torch.save(weights, path)
    return path.read_bytes()


@given(
    changes=st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), max_size=3),
    cut=st.one_of(st.none(), st.integers(0, 2**20)),
)
@pytest.mark.req("EC-2", "FR-047")
def test_a_changed_byte_is_found_or_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory,
    whole: bytes,
    changes: list[tuple[int, int]],
    cut: int | None,
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "model_000001.pt"
    path.write_bytes(whole)
    expected = load_weights(path)
    expected = {name: tensor.clone() for name, tensor in expected.items()}
    content = bytearray(whole)
    for place, byte in changes:
        content[place % len(content)] = byte
    if cut is not None:
        del content[cut % len(content) :]
    damaged = path.with_name("model_000002.pt")
    damaged.write_bytes(content)
    try:
        loaded = load_weights(damaged)
    except CheckpointError as error:
        assert str(error).startswith(f"{damaged}: ") and "\n" not in str(error)
    else:
        assert list(loaded) == list(expected)
        assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


@given(place=st.integers(0, 2**20), bit=st.integers(0, 7))
@pytest.mark.req("EC-2", "FR-047")
def test_a_flipped_bit_of_a_weight_is_found(
    tmp_path_factory: pytest.TempPathFactory, whole: bytes, place: int, bit: int
) -> None:
    path = tmp_path_factory.mktemp("flipped") / "model_000001.pt"
    start = whole.index(torch.rand(7, generator=torch.Generator().manual_seed(0)).numpy().tobytes())
    content = bytearray(whole)
    content[start + place % 28] ^= 1 << bit
    path.write_bytes(content)
    assert "is damaged: its checksum differs; copy it again" in assert_refused(path, load_weights)


@given(data=st.binary(max_size=60), is_archive=st.booleans())
@pytest.mark.req("EC-2")
def test_noise_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, is_archive: bool
) -> None:
    path = tmp_path_factory.mktemp("noise") / "model_000001.pt"
    path.write_bytes(archive(b"\x80\x02" + data) if is_archive else data)
    try:
        load_torch_file(path)
    except CheckpointError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)


@given(
    content=st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.text(max_size=3) | st.integers(0, 300), inner, max_size=3)
            | st.tuples(inner, inner)
        ),
        max_leaves=8,
    )
)
@pytest.mark.req("FR-046")
def test_everything_plain_is_read(tmp_path_factory: pytest.TempPathFactory, content: Any) -> None:
    """What an optimizer's state is made of comes back as it was."""
    path = tmp_path_factory.mktemp("plain") / "optim_000001.pt"
    torch.save({"state": content, "tensor": torch.ones(2)}, path)
    loaded = load_torch_file(path)
    assert loaded["state"] == content and torch.equal(loaded["tensor"], torch.ones(2))

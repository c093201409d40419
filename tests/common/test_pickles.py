"""Instructions are read, never obeyed; the first that is not needed ends the reading."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common.errors import DataError
from nanochat.common.pickles import read_instructions

NEEDED = frozenset("PROTO BINUNICODE BINPUT EMPTY_DICT SETITEM BININT1 STOP".split())


def names(data: bytes, most: int = 100) -> list[str]:
    return [name for name, _ in read_instructions(data, NEEDED, most=most, what="a test")]


def test_a_pickle_of_needed_instructions() -> None:
    data = pickle.dumps({"a": 1}, protocol=2)
    read = list(read_instructions(data, NEEDED, most=8, what="a test"))
    assert read == [
        ("PROTO", 2),
        ("EMPTY_DICT", None),
        ("BINPUT", 0),
        ("BINUNICODE", "a"),
        ("BINPUT", 1),
        ("BININT1", 1),
        ("SETITEM", None),
        ("STOP", None),
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not a whole pickle"),
        (b"\x80\x02", "is not a whole pickle"),
        (b"\xff", "is not a whole pickle"),
        (b"\x80\x02X\xff\x00\x00\x00ab", r"is not a whole pickle \("),
        (b"\x80\x02}.}", "holds more than one pickle: refused"),
        (b"\x80\x02" + b"}" * 101, "has more than 100 instructions: refused"),
        (b"cos\nsystem\n.", "instruction GLOBAL, which a test does not need and .* refused"),
        (b"I" + b"9" * 100_000, "instruction INT, which"),  # its digits are not even read
    ],
)
@pytest.mark.req("EC-2")
def test_what_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        names(data)
    assert len(str(caught.value)) < 200


@given(data=st.binary(max_size=40))
@pytest.mark.req("EC-2")
def test_noise_ends_or_is_refused(data: bytes) -> None:
    try:
        assert names(data)[-1] == "STOP"
    except DataError:
        pass

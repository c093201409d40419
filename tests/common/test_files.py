"""files.py: bytes on the disk are whole or absent."""

import hashlib
import math
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common.errors import ConfigError, DataError
from nanochat.common.files import (
    home_dir,
    open_atomically,
    read_json,
    sha256_of_file,
    write_json_atomically,
    write_text_atomically,
)


def test_home_is_override_then_variable_then_cache(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert home_dir(tmp_path / "mine") == tmp_path / "mine"
    assert home_dir() == home
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NANOCHAT_HOME", "")
    assert home_dir() == tmp_path / ".cache" / "nanochat"
    assert home_dir(Path("~/x")) == tmp_path / "x"
    assert not home_dir().exists()


def test_home_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(ConfigError, match="is not a directory: pass --home"):
        home_dir(tmp_path / "home")


def test_text_appears_with_its_parents_and_the_usual_permissions(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    umask = os.umask(0o022)
    try:
        write_text_atomically(path, "zw\u00f6lf\n")
    finally:
        os.umask(umask)
    assert path.read_bytes() == b"zw\xc3\xb6lf\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [entry.name for entry in path.parent.iterdir()] == ["b.txt"]


def test_half_a_surrogate_pair_is_kept_as_json_writes_it(tmp_path: Path) -> None:
    write_json_atomically(tmp_path / "x.json", {"zw\u00f6lf": "a \ud800 b"})
    assert b"zw\xc3\xb6lf" in (tmp_path / "x.json").read_bytes()
    assert read_json(tmp_path / "x.json") == {"zw\u00f6lf": "a \ud800 b"}


def test_a_writer_that_stops_leaves_the_old_content_alone(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_text_atomically(path, "old")
    with pytest.raises(KeyboardInterrupt), open_atomically(path) as file:
        file.write(b"half of the ne")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_sees_old_or_new_while_the_file_is_written(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_text_atomically(path, "old")
    with open_atomically(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=10,
)


@given(value=json_values)
def test_json_survives_the_disk(tmp_path: Path, value: object) -> None:
    write_json_atomically(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_json_has_no_nan_and_nothing_is_written(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json_atomically(tmp_path / "x.json", {"loss": value})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist, expected a JSON file"),
        (b'{"a": 1,\n "b": }', "line 2: not JSON"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
    ],
)
@pytest.mark.req("EC-2")
def test_json_that_cannot_be_read_says_why(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_json(path)
    assert str(path) in str(caught.value)
    with pytest.raises(DataError, match="is a directory"):
        read_json(tmp_path)


@given(content=st.binary(max_size=2_000), repeat=st.sampled_from([1, 1_500]))
def test_hash_is_that_of_the_bytes(tmp_path: Path, content: bytes, repeat: int) -> None:
    path = tmp_path / "x"
    path.write_bytes(content * repeat)
    assert sha256_of_file(path) == hashlib.sha256(content * repeat).hexdigest()

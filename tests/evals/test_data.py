"""Where data is found, in which order its rows come, and what is said of what is wrong."""

import gzip
import hashlib
import random
from pathlib import Path

import numpy as np
import pytest
import zstandard

from nanochat.common.errors import DataError
from nanochat.evals.data import DataFiles, Row, checked_row, permuted, shuffled
from tests.evals.bundle import write_rows

LINES = b'{"n": 1}\n\n{"n": 2}\n{"n": 3}\n'


@pytest.mark.req("FR-037")
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_file_is_found_plain_and_packed(tmp_path: Path, suffix: str) -> None:
    packed = {
        "": LINES,
        ".gz": gzip.compress(LINES),
        ".zst": zstandard.ZstdCompressor().compress(LINES),
    }
    (tmp_path / f"a.jsonl{suffix}").write_bytes(packed[suffix])
    files = DataFiles([tmp_path])
    rows = files.rows("a.jsonl")
    assert [(row.value, row.number) for row in rows] == [
        ({"n": 1}, 1),
        ({"n": 2}, 3),
        ({"n": 3}, 4),
    ]
    assert rows[1].where == f"{tmp_path}/a.jsonl{suffix}, line 3"
    assert files.sha256 == {"a.jsonl": hashlib.sha256(LINES).hexdigest()}
    apart = files.apart()
    assert apart.sha256 == {} and apart.rows("a.jsonl") == rows and apart.sha256 == files.sha256


@pytest.mark.req("FR-037")
def test_the_first_folder_wins_then_the_second_then_what_is_fetched(tmp_path: Path) -> None:
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    write_rows(three / "c.jsonl", [{"from": 3}])
    write_rows(two / "b.jsonl", [{"from": 2}])
    for folder, number in ((two, 2), (one, 1)):
        write_rows(folder / "a.jsonl", [{"from": number}])
    asked: list[str] = []

    def fetch(path: str) -> Path:
        asked.append(path)
        return three / path

    files = DataFiles([one, two], fetch)
    found = [files.rows(name)[0].value["from"] for name in ("a.jsonl", "b.jsonl", "c.jsonl")]
    assert found == [1, 2, 3] and set(asked) == {"c.jsonl"}


def test_what_is_nowhere_is_told_with_the_places_and_the_remedy(tmp_path: Path) -> None:
    files = DataFiles([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(DataError, match=r"mmlu/test.jsonl is not in .*/a and .*/b.*--data-dir"):
        files.rows("mmlu/test.jsonl")
    with pytest.raises(DataError, match="there is no folder text/"):
        files.folder("text")


@pytest.mark.req("FR-037", "FR-041")
def test_orders_are_those_of_python_and_of_hugging_face(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [{"n": n} for n in range(50)])
    files = DataFiles([tmp_path])
    expected = list(range(50))
    random.Random(1337).shuffle(expected)
    found = [row.value["n"] for row in files.rows("a.jsonl", order=shuffled(1337))]
    assert found == expected
    first = [row.value["n"] for row in files.rows("a.jsonl", limit=7, order=permuted(42))]
    assert first == np.random.default_rng(42).permutation(50)[:7].tolist()


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_an_empty_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=r"a.jsonl is empty"):
        DataFiles([tmp_path]).rows("a.jsonl")


def test_only_the_rows_that_are_asked_are_parsed(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"n": 1}\nbroken\n')
    files = DataFiles([tmp_path])
    assert files.rows("a.jsonl", limit=1)[0].value == {"n": 1}
    with pytest.raises(DataError, match="line 2: not JSON"):
        files.rows("a.jsonl")


@pytest.mark.req("FR-037")
def test_a_row_that_is_nested_too_deeply_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"n": 1}\n{"n": ' + "[" * 100_000 + "]" * 100_000 + "}\n")
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: not JSON \(.*recursion"):
        DataFiles([tmp_path]).rows("a.jsonl")


def test_words_are_stripped(tmp_path: Path) -> None:
    (tmp_path / "w.txt").write_bytes(b"one\r\ntwo\r\n \r\nthree")
    assert DataFiles([tmp_path]).words("w.txt") == ["one", "two", "three"]
    (tmp_path / "x.txt").write_bytes(b"\xff\n")
    with pytest.raises(DataError, match="not UTF-8"):
        DataFiles([tmp_path]).words("x.txt")


def test_a_row_without_a_field_is_told() -> None:
    row = Row({"a": 1}, "f, line 2", 2)
    assert checked_row(row, a=int) == {"a": 1}
    with pytest.raises(DataError, match="f, line 2: b is None, expected str"):
        checked_row(row, b=str)

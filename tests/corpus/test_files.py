"""Files: found in order, opened whatever packs them, and every fault named with its place."""

import bz2
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common.errors import DataError
from nanochat.corpus import files as files_module
from nanochat.corpus.files import (
    ReadReport,
    Record,
    corpus_fingerprint,
    find_files_with,
    format_of,
    not_utf8,
    read_chunks,
    read_lines,
    read_records,
)

pytestmark = pytest.mark.req("FR-032")

ALL = ("text", "lines", "json", "csv", "parquet", "arrow")


def written(path: Path, data: bytes | str) -> Path:
    """The file, its folder made, packed as its name says."""
    content = data.encode() if isinstance(data, str) else data
    if path.suffix == ".gz":
        content = gzip.compress(content)
    if path.suffix == ".zst":
        content = zstandard.ZstdCompressor(write_checksum=True).compress(content)
    if path.suffix == ".bz2":
        content = bz2.compress(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# ---------------------------------------------------------------------------------------- finding


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.txt", "text"),
        ("a.MD", "text"),
        ("a.b.jsonl", "lines"),
        ("a.ndjson.gz", "lines"),
        ("a.json.zst", "json"),
        ("a.parquet", "parquet"),
        ("a.parquet.gz", None),
        ("a.gz", None),
        ("a.csv.bz2", "csv"),
        ("a.tsv", "csv"),
        ("a.arrow", "arrow"),
        ("a.feather.zst", None),
        ("a.xlsx", None),
        ("README", None),
    ],
)
def test_format_by_name(name: str, expected: str | None) -> None:
    assert format_of(Path(name)) == expected


def test_folders_and_globs_are_sorted_and_nothing_comes_twice(tmp_path: Path) -> None:
    for name in [
        "b.txt",
        "a.txt",
        "in/c.jsonl",
        "in/x.xlsx",
        ".hidden.txt",
        ".git/d.txt",
        "e.md.gz",
    ]:
        written(tmp_path / name, "x")

    def names(*paths: str | Path) -> list[str]:
        return [str(path.relative_to(tmp_path)) for path in find_files_with(ALL, paths)]

    assert names(tmp_path) == ["a.txt", "b.txt", "e.md.gz", "in/c.jsonl"]
    assert names(tmp_path / "b.txt", tmp_path) == ["b.txt", "a.txt", "e.md.gz", "in/c.jsonl"]
    assert names(f"{tmp_path}/*.txt") == ["a.txt", "b.txt"]
    assert names(f"{tmp_path}/**/*.jsonl") == ["in/c.jsonl"]
    assert names(f"{tmp_path}/i*") == ["in/c.jsonl"]
    assert find_files_with(ALL, tmp_path / "a.txt") == [tmp_path / "a.txt"]
    assert find_files_with(["lines"], str(tmp_path)) == [tmp_path / "in" / "c.jsonl"]


def test_a_file_whose_name_looks_like_a_glob(tmp_path: Path) -> None:
    file = written(tmp_path / "part[1].txt", "x")
    assert find_files_with(ALL, file) == [file]


def test_what_cannot_be_found_is_named(tmp_path: Path) -> None:
    written(tmp_path / "table.xlsx", "x")
    for paths, message in [
        ([], "no path was given"),
        (tmp_path / "none.txt", "none.txt does not exist"),
        (f"{tmp_path}/*.txt", r"\*.txt does not exist: expected a file, a folder or a glob"),
        (tmp_path / "table.xlsx", r"table.xlsx: the suffix is unknown, expected one of .txt, .md"),
        (tmp_path, "has no file to read, expected one of .txt"),
    ]:
        with pytest.raises(DataError, match=message):
            find_files_with(ALL, paths)


def test_fingerprint_is_of_names_and_contents(tmp_path: Path) -> None:
    a, b = written(tmp_path / "a.txt", "one"), written(tmp_path / "b.txt", "two")
    moved = written(tmp_path / "elsewhere" / "a.txt", "one")
    first = corpus_fingerprint([a, b])
    assert first == corpus_fingerprint([moved, b])
    changed = written(tmp_path / "elsewhere" / "b.txt", "twx")
    others = [[b, a], [a], [a, changed], [a, written(tmp_path / "c.txt", "two")], []]
    assert len({first, *map(corpus_fingerprint, others)}) == 6
    with pytest.raises(DataError, match=r"d.txt: cannot be read \(No such file"):
        corpus_fingerprint([tmp_path / "d.txt"])


# ---------------------------------------------------------------------------------------- bytes


@given(st.binary(max_size=5000), st.sampled_from(["", ".gz", ".zst", ".bz2"]))
def test_packed_or_not_the_bytes_are_the_same(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, packing: str
) -> None:
    path = written(tmp_path_factory.mktemp("bytes") / f"a.txt{packing}", data)
    assert b"".join(read_chunks(path)) == data


def test_files_of_several_frames(tmp_path: Path) -> None:
    packers = {".gz": gzip.compress, ".zst": zstandard.compress, ".bz2": bz2.compress}
    for suffix, pack in packers.items():
        path = tmp_path / f"a.txt{suffix}"
        path.write_bytes(pack(b"one ") + pack(b"two ") + pack(b"three"))
        assert b"".join(read_chunks(path)) == b"one two three"


def zstd_frame(window_log: int, data: bytes) -> bytes:
    """A frame that asks for such a window, of one block that is not packed (RFC 8878, 3.1.1)."""
    block_header = (1 | len(data) << 3).to_bytes(3, "little")
    return b"\x28\xb5\x2f\xfd" + bytes([0, (window_log - 10) << 3]) + block_header + data


def test_zstd_of_large_windows_is_read(tmp_path: Path) -> None:
    path = tmp_path / "dump.txt.zst"
    path.write_bytes(zstd_frame(31, b"one ") + zstd_frame(28, b"two"))
    assert b"".join(read_chunks(path)) == b"one two"
    path.write_bytes(zstd_frame(32, b"one"))
    with pytest.raises(DataError, match=r"not enough memory .* expected at most --long=31"):
        list(read_chunks(path))


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2"])
def test_truncated_and_damaged_files_are_named(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path / f"a.txt{suffix}", bytes(range(256)) * 1000)
    whole = path.read_bytes()
    for cut in (len(whole) - 1, len(whole) // 2, 5):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=rf"a.txt{suffix}: the file ends in the middle"):
            list(read_chunks(path))
    path.write_bytes(b"this is no archive at all")
    with pytest.raises(DataError, match=rf"a.txt{suffix}: damaged"):
        list(read_chunks(path))
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    path.write_bytes(flipped)
    with pytest.raises(DataError, match=rf"a.txt{suffix}: (damaged|the file ends)"):
        list(read_chunks(path))


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read \(Is a directory\)"):
        list(read_chunks(tmp_path))


# ---------------------------------------------------------------------------------------- lines


@given(st.lists(st.text(alphabet="ab\u00e9\u4e2d\r", max_size=9), min_size=1), st.integers(1, 7))
def test_lines_do_not_depend_on_the_chunks(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], chunk_bytes: int
) -> None:
    path = written(tmp_path_factory.mktemp("lines") / "a.txt", "\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files_module, "CHUNK_BYTES", chunk_bytes)
        found = list(read_lines(path))
    expected = lines if lines[-1] else lines[:-1]  # nothing after the last line end is no line
    assert found == list(enumerate(expected, start=1))


def test_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", b"\xef\xbb\xbfone\ntwo")
    assert list(read_lines(path)) == [(1, "one"), (2, "two")]


@pytest.mark.req("FR-032", "EC-9")
def test_what_is_not_utf8_is_named_with_line_and_byte(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", b"\xef\xbb\xbfone\ntw\xffo\n")
    with pytest.raises(DataError, match=r"a.txt, line 2: not UTF-8 at byte 9 \(0xff\): save"):
        list(read_lines(path))
    error = UnicodeDecodeError("utf-8", b"ab\xfe", 2, 3, "why")
    assert "here: not UTF-8 at byte 12 (0xfe)" in str(not_utf8("here", 10, error))


# ---------------------------------------------------------------------------------------- records


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
def test_json_lines(tmp_path: Path, packing: str) -> None:
    path = written(tmp_path / f"a.jsonl{packing}", '{"text": "one"}\r\n\n  \n["two", 3]')
    assert list(read_records(path)) == [
        Record({"text": "one"}, f"{path}, line 1"),
        Record(["two", 3], f"{path}, line 4"),
    ]


@pytest.mark.req("FR-032", "EC-9")
def test_a_line_that_is_not_json_is_named(tmp_path: Path) -> None:
    for line, reason in [
        ("{'text': 1}", "Expecting property name .* at character 2"),
        ("[" * 100_000, "nested too deeply"),
        ("1" * 5000, "Exceeds the limit"),
    ]:
        path = written(tmp_path / "a.jsonl", f'{{"text": "fine"}}\n{line}\n')
        with pytest.raises(DataError, match=rf"a.jsonl, line 2: not JSON \({reason}"):
            list(read_records(path))


@given(
    st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=9) | st.integers(), max_size=3)),
    st.integers(1, 30),
    st.sampled_from([None, 1, 4]),
    st.booleans(),
)
def test_json_files_whatever_their_form_and_chunks(
    tmp_path_factory: pytest.TempPathFactory,
    values: list[dict[str, object]],
    chunk_bytes: int,
    indent: int | None,
    is_array: bool,
) -> None:
    """An array, pretty or not, or objects one after another."""
    items = [json.dumps(value, indent=indent, ensure_ascii=False) for value in values]
    text = json.dumps(values, indent=indent) if is_array else "\n".join(items)
    path = written(tmp_path_factory.mktemp("json") / "a.json", text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files_module, "CHUNK_BYTES", chunk_bytes)
        records = list(read_records(path))
    assert [record.value for record in records] == values
    assert [record.where for record in records] == [
        f"{path}, item {number}" for number in range(1, len(values) + 1)
    ]


@pytest.mark.req("FR-032", "EC-9")
def test_json_files_that_are_wrong_are_named_with_item_and_line(tmp_path: Path) -> None:
    for text, message in [
        ('[{"a": 1},\n {"b": }]', r"item 2, line 2: not JSON \(Expecting value"),
        ('[{"a": 1},\n {"b": 2', "item 2, line 3: not JSON .Expecting ',' delimiter"),
        ('[{"a": 1}', "the array is not closed after item 1"),
        ('[{"a": 1} {"b": 2}]', "'{' follows item 1, expected ',' or ']'"),
        ('[{"a": 1}]\n[{"b": 2}]', r"'\[' follows the array, .* name the file .jsonl"),
        ("[1,]", "item 2, line 1: not JSON"),
        ("[\n" + "[" * 100_000, "item 1, line 2: not JSON .nested too deeply"),
    ]:
        path = written(tmp_path / "a.json", text)
        with pytest.raises(DataError, match=message):
            list(read_records(path))


@pytest.mark.req("FR-032", "FR-035")
def test_json_arrays_are_read_in_a_small_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_module, "CHUNK_BYTES", 1000)
    items = [{"text": f"{index:04d}" * 20} for index in range(500)]
    path = written(tmp_path / "a.json", json.dumps(items, indent=1))
    windows: list[int] = []
    grow = files_module._JsonText._grow

    def watched(self: files_module._JsonText, num_characters: int) -> bool:
        grew = grow(self, num_characters)
        windows.append(len(self._window))
        return grew

    monkeypatch.setattr(files_module._JsonText, "_grow", watched)
    assert [record.value for record in read_records(path)] == items
    assert max(windows) < 4000


def parquet(path: Path, table: dict[str, list[object]], row_group_size: int = 2) -> Path:
    pq.write_table(pa.table(table), path, row_group_size=row_group_size)
    return path


def test_parquet_rows(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", {"text": ["one", "two", None], "n": [1, 2, 3]})
    assert list(read_records(path, ["text"])) == [
        Record({"text": "one"}, f"{path}, row 1"),
        Record({"text": "two"}, f"{path}, row 2"),
        Record({"text": None}, f"{path}, row 3"),
    ]
    assert [record.value["n"] for record in read_records(path)] == [1, 2, 3]


@pytest.mark.req("FR-032", "EC-9")
def test_parquet_faults_are_named(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", {"body": ["one"], "n": [1]})
    with pytest.raises(DataError, match="no column 'text', the columns are body, n: name one"):
        list(read_records(path, ["text"]))
    whole = path.read_bytes()
    for content in (b"", b"no parquet", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(DataError, match="a.parquet: damaged or not Parquet"):
            list(read_records(path, ["body"]))
    with pytest.raises(DataError, match="b.parquet: cannot be read"):
        list(read_records(tmp_path / "b.parquet"))
    invalid = pa.array([b"\xff\xfe"]).view(pa.string())
    pq.write_table(pa.table({"body": invalid}), path)
    with pytest.raises(DataError, match="a.parquet: damaged or not Parquet .*utf-8"):
        list(read_records(path, ["body"]))


def test_report_is_lines_to_show() -> None:
    report = ReadReport()
    report.shapes["a.jsonl"] = type(report.counts)({"messages": 1200, "Alpaca": 1})
    report.counts["turns dropped"] = 3
    assert report.lines() == ["a.jsonl: 1,200 messages, 1 Alpaca", "3 turns dropped"]

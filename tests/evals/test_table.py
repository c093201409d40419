"""Rows of users' files: what is read, and what is said of what cannot be."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common.errors import DataError
from nanochat.evals.table import TableRow, read_table

pytestmark = pytest.mark.req("FR-044")

CELL = st.text(st.characters(exclude_characters="\r\x00", exclude_categories=["Cs"]), max_size=12)


def put(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_jsonl_and_csv_say_the_same(tmp_path: Path) -> None:
    lines = put(tmp_path / "a.jsonl", '{"q": "one", "a": "1"}\n\n{"q": "two, three", "a": "2"}\n')
    table = put(tmp_path / "a.csv", '\ufeffq, a\r\none,1\r\n"two, three",2\r\n')
    tabs = put(tmp_path / "a.tsv", "q\ta\none\t1\n\ntwo, three\t2\n")
    packed = put(tmp_path / "a.jsonl.gz", gzip.compress(lines.read_bytes()))
    values = [dict(row.values) for row in read_table(lines)]
    assert values == [{"q": "one", "a": "1"}, {"q": "two, three", "a": "2"}]
    for path in (table, tabs, packed):
        assert [dict(row.values) for row in read_table(path)] == values
    assert [row.line for row in read_table(lines)] == [1, 3]
    assert [row.line for row in read_table(table)] == [2, 3]


@given(cells=st.lists(st.tuples(CELL, CELL), min_size=1, max_size=5))
def test_any_text_in_quotes_comes_back(
    tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, str]]
) -> None:
    quoted = ['"' + cell.replace('"', '""') + '"' for row in cells for cell in row]
    lines = [f"{a},{b}" for a, b in zip(quoted[::2], quoted[1::2], strict=True)]
    path = put(tmp_path_factory.mktemp("csv") / "x.csv", "\n".join(["q,a", *lines]))
    kept = [row for row in cells if any(cell.strip() for cell in row)]
    if not kept:
        with pytest.raises(DataError, match="no rows"):
            read_table(path)
        return
    assert [tuple(row.values.values()) for row in read_table(path)] == kept


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"q": 1}\n{"q": }\n', r"a.jsonl, line 2, column 7: not JSON"),
        ("a.jsonl", "[1]\n", r"a.jsonl, line 1: '\[1\]', expected a JSON object"),
        ("a.jsonl", '{"q": ' + "[" * 100_000, "line 1: not JSON|line 1, column"),
        ("a.jsonl", b'{"q": "\xff"}', "line 1: not UTF-8 at byte 7"),
        ("a.jsonl", "\n", "has no rows"),
        ("a.csv", "q,a\n1,2\n1,2,3\n", r"a.csv, line 3: 3 columns, expected 2 \(q, a\)"),
        ("a.csv", "q,q\n1,2\n", "line 1, column 2: 'q', expected a name that no other"),
        ("a.csv", "q,\n1,2\n", "line 1, column 2: ''"),
        ("a.csv", 'q,a\n1,"2\n', "line 2: not CSV"),
        ("a.xlsx", "", "the suffix is unknown, expected .jsonl, .csv or .tsv"),
        ("a.jsonl.gz", b"\x1f\x8bxx", "a.jsonl.gz: "),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_table(put(tmp_path / name, content))


def test_values_and_templates() -> None:
    row = TableRow(
        {"q": "What?", "n": 4, "x": 0.5, "list": ["a"], "o": {"text": ["b"]}, "e": " ", "t.u": "v"},
        Path("f.jsonl"),
        7,
    )
    assert (row.text("q"), row.text("n"), row.text("x"), row.text("t.u")) == (
        "What?", "4", "0.5", "v",
    )  # fmt: skip
    assert row.value("o.text") == ["b"] and row.value("list") == ["a"]
    assert row.fill("q") == "What?" and row.fill("Q: {q} {n}\nA:") == "Q: What? 4\nA:"
    for column, message in (
        ("qq", "not there, did you mean 'q'.: the columns are 'q', 'n'"),
        ("o.txt", "column 'o.txt': not there"),
        ("list", r'column .list.: \["a"\], expected text'),
        ("e", "empty, expected text"),
    ):
        with pytest.raises(DataError, match=f"f.jsonl, line 7, .*{message}"):
            row.text(column)
    with pytest.raises(DataError, match="column 'Q'"):
        row.fill("{Q}")
    assert json.loads(json.dumps(row.values))  # nothing of it was changed

"""Tables: rows of CSV, Parquet and Arrow are the same records, and every fault has its place."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from nanochat.common.errors import DataError
from nanochat.corpus import tables
from nanochat.corpus.conversations import read_conversations
from nanochat.corpus.documents import read_documents
from nanochat.corpus.files import ReadReport, Record, read_records
from nanochat.corpus.tables import TableFacts, read_table, table_facts

pytestmark = pytest.mark.req("FR-032")

ROWS = [{"text": "one", "n": 1}, {"text": "two,\nthree", "n": 2}, {"text": 'so "said"', "n": 3}]
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def arrow(path: Path, rows: list[dict[str, object]], *, is_stream: bool = False) -> Path:
    table = pa.Table.from_pylist(rows)
    opener = pa.ipc.new_stream if is_stream else pa.ipc.new_file
    with opener(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return path


def tables_of(folder: Path, rows: list[dict[str, object]]) -> list[Path]:
    """The same rows in every format but CSV."""
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, folder / "a.parquet")
    feather.write_feather(table, str(folder / "a.feather"))
    return [
        folder / "a.parquet",
        folder / "a.feather",
        arrow(folder / "file.arrow", rows),
        arrow(folder / "stream.arrow", rows, is_stream=True),
    ]


def test_every_format_has_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "ROWS_AT_ONCE", 2)
    for path in tables_of(tmp_path, ROWS):
        assert [record.value for record in read_table(path)] == ROWS
        assert list(read_records(path, ["n"])) == [
            Record({"n": n}, f"{path}, row {n}") for n in (1, 2, 3)
        ]
        rows = None if path.name == "stream.arrow" else 3
        assert table_facts(path) == TableFacts(
            columns={"text": "string", "n": "int64"}, num_rows=rows
        )


@pytest.mark.parametrize(
    ("name", "mark"), [("a.csv", ","), ("a.csv", ";"), ("a.csv", "|"), ("a.tsv", "\t")]
)
def test_cells_of_csv_keep_commas_quotes_and_line_ends(
    tmp_path: Path, name: str, mark: str
) -> None:
    path = tmp_path / name
    lines = [f"text{mark}n", f"one{mark}1", "", f'"two,\r\nthree"{mark}2', f'"so ""said"""{mark}3']
    path.write_bytes("\r\n".join(lines).encode())
    assert list(read_table(path)) == [
        Record({"text": "one", "n": "1"}, f"{path}, line 2"),
        Record({"text": "two,\r\nthree", "n": "2"}, f"{path}, line 4"),
        Record({"text": 'so "said"', "n": "3"}, f"{path}, line 6"),
    ]
    assert [record.value for record in read_table(path, ["n"])] == [{"n": n} for n in "123"]
    assert table_facts(path).columns == {"text": "text", "n": "text"}


def test_a_cell_may_be_as_long_as_a_book(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\n" + "word " * 60_000 + "\n")
    (document,) = read_documents(tmp_path / "a.csv")
    assert len(document.text) == 300_000


@pytest.mark.req("FR-032", "EC-9")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no line, expected a header"),
        ("a,a\n1,2\n", "the column 'a' twice"),
        ("a,b\n1,2\n3\n", "line 3: 1 cells, expected 2 as in the header"),
        ('a,b\n1,"2\n3,4\n', "line 2: not CSV"),
        ('a,b\n1,"2"x\n', "line 2: not CSV"),
        ("b\n1\n", "no column 'a', the columns are b: name one"),
        ("a\n\xff\n", "not UTF-8"),
    ],
)
def test_faults_of_csv_are_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.csv").write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=message):
        list(read_table(tmp_path / "x.csv", ["a"]))


@pytest.mark.req("FR-032", "EC-9")
def test_faults_of_arrow_are_named(tmp_path: Path) -> None:
    path = arrow(tmp_path / "x.arrow", ROWS)
    with pytest.raises(DataError, match="no column 'a', the columns are text, n"):
        list(read_table(path, ["a"]))
    whole = path.read_bytes()
    for content in (b"", b"no arrow at all", whole[: len(whole) // 2]):
        path.write_bytes(content)
        for read in (read_table, table_facts):
            with pytest.raises(DataError, match=r"x.arrow: (damaged or not Arrow|cannot be read)"):
                list(read(path))  # type: ignore[call-overload]
    with pytest.raises(DataError, match="cannot be read"):
        list(read_table(tmp_path / "absent.arrow"))


def test_nested_columns_are_conversations(tmp_path: Path) -> None:
    rows = [{"messages": CHAT, "source": "a"}, {"messages": CHAT, "source": "b"}]
    for path in tables_of(tmp_path, rows):
        report = ReadReport()
        found = list(read_conversations(path, report=report))
        assert [len(conversation) for conversation in found] == [2, 2]
        assert report.shapes == {str(path): {"messages": 2}}


def test_cells_of_csv_are_conversations(tmp_path: Path) -> None:
    for name, content, shape in [
        ("openai", 'messages\n"' + json.dumps(CHAT).replace('"', '""') + '"\n', "messages"),
        ("alpaca", "instruction,input,output\nSay hi,,Hello\n", "Alpaca"),
        ("pairs", "question,answer\nHi?,Hello\n", "question and answer"),
        ("choice", 'question,choices,answer\nWhich?,"[""Hi"", ""Hello""]",1\n', "multiple choice"),
    ]:  # fmt: skip
        path = tmp_path / f"{name}.csv"
        path.write_text(content)
        report = ReadReport()
        (conversation,) = read_conversations(path, report=report)
        assert conversation[-1].content == ("B" if name == "choice" else "Hello")
        assert report.shapes == {str(path): {shape: 1}}


def test_a_column_that_is_named_holds_the_conversation(tmp_path: Path) -> None:
    for path in tables_of(tmp_path, [{"talk": CHAT, "question": "a", "answer": "b"}]):
        (conversation,) = read_conversations(f"{path}#talk")
        assert conversation[0].content == "Hi"
        with pytest.raises(DataError, match="no 'none' in .*, expected that column"):
            list(read_conversations(f"{path}#none"))

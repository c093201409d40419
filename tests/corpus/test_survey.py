"""What is told of files is what training would find in them."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.common.errors import DataError
from nanochat.corpus.survey import FileFacts, SurveyOptions, survey

pytestmark = pytest.mark.req("FR-032")

TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def one(path: Path | str, **options: object) -> FileFacts:
    (facts,) = survey(path, SurveyOptions(**options))  # type: ignore[arg-type]
    return facts


def test_text_and_json_lines(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("A poem\nof two lines")
    facts = one(tmp_path / "a.md")
    assert (facts.kind, facts.format, facts.num_items) == ("documents", "text", 1)
    assert facts.is_counted and facts.examples == ("A poem of two lines",)
    lines = [json.dumps({"text": f"text {number}", "n": number}) for number in range(5)]
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    facts = one(tmp_path / "b.jsonl.gz", most_items=3, num_examples=1)
    assert (facts.num_items, facts.is_counted, facts.format) == (3, False, "JSON lines, gz")
    assert facts.columns == {"text": "string", "n": "int"} and facts.examples == ("text 0",)
    assert one(tmp_path / "b.jsonl.gz", most_items=None).num_items == 5


def test_conversations_with_their_shapes(tmp_path: Path) -> None:
    rows = [json.dumps(TALK), json.dumps({"question": "?", "answer": "!"}), json.dumps(TALK[:1])]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    facts = one(tmp_path / "a.jsonl")
    assert (facts.kind, facts.num_items) == ("conversations", 2)
    assert facts.shapes == {"list of messages": 2, "question and answer": 1}
    assert sum(facts.counts.values()) == 2  # the question without an answer
    assert facts.examples[0] == "user: Hi | assistant: Hello"


def test_tables_with_their_columns(tmp_path: Path) -> None:
    table = {"messages": [TALK] * 3, "text": ["as text"] * 3}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    facts = one(tmp_path / "a.parquet", example_chars=5)
    assert (facts.kind, facts.num_rows, facts.examples[0]) == ("documents", 3, "as...")
    assert list(facts.columns) == ["messages", "text"]
    assert one(f"{tmp_path}/a.parquet#messages").kind == "conversations"
    assert one(tmp_path / "a.parquet", text_column="none").kind == "conversations"


def test_a_fault_does_not_hide_the_other_files(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": ')
    (tmp_path / "b.txt").write_text("two")
    (tmp_path / "c.jsonl").write_text("")
    bad, good, empty = survey(tmp_path)
    assert bad.num_items == 1 and "line 2: not JSON" in str(bad.problem)
    assert good.problem is None and not bad.is_counted
    assert "no text in it" in str(empty.problem)
    with pytest.raises(DataError, match="does not exist"):
        next(survey(tmp_path / "none"))

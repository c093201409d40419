"""Pieces of any size, one after another, are the corpus."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.common.errors import DataError
from nanochat.corpus.documents import read_documents
from nanochat.corpus.pieces import cut_pieces, place_of, read_span

pytestmark = pytest.mark.req("FR-032", "FR-035")

TEXTS = [f"text {number} " + "x" * (number % 7 * 30) for number in range(60)]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (tmp_path / "a.jsonl").write_text("\ufeff" + lines + "\n")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    table = pa.table({"text": TEXTS, "other": list(range(60))})
    pq.write_table(table, tmp_path / "c.parquet", row_group_size=7)
    (tmp_path / "d.txt").write_text("\n<|endoftext|>\n".join(TEXTS))
    (tmp_path / "e.csv").write_text("text\n" + "".join(f"{text}\n" for text in TEXTS))
    (tmp_path / "f.jsonl").write_bytes(lines.rstrip("\n").encode())  # no last line feed
    return sorted(tmp_path.iterdir())


@pytest.mark.parametrize("piece_bytes", [1, 50, 333, 1000, 10**9])
def test_pieces_are_the_corpus_whatever_their_size(files: list[Path], piece_bytes: int) -> None:
    pieces = cut_pieces(files, piece_bytes)
    assert [piece.number for piece in pieces] == list(range(len(pieces)))
    found = [
        text
        for piece in pieces
        for span in piece.spans
        for text, _ in read_span(span, {}, "text")
        if text.strip()
    ]
    assert found == [document.text for document in read_documents(files)]
    assert len(pieces) == 1 if piece_bytes == 10**9 else len(pieces) > len(files)
    assert all(len(piece.spans) == 1 or piece.num_bytes <= piece_bytes for piece in pieces)


def test_small_files_share_a_piece(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / f"{number}.txt").write_text("x" * 100)
    sizes = [len(piece.spans) for piece in cut_pieces(sorted(tmp_path.iterdir()), 350)]
    assert sizes == [3, 3, 3, 1]


def test_numbers_say_where_a_text_is(files: list[Path]) -> None:
    a, b, c, _, _, _ = files
    spans = [span for piece in cut_pieces([a, b, c], 400) for span in piece.spans]
    for path in (b, c):
        numbers = [n for s in spans if s.path == path for _, n in read_span(s, {}, "text")]
        assert numbers == list(range(60))
    data = a.read_bytes()
    for span in (span for span in spans if span.path == a):
        for text, place in read_span(span, {}, "text"):
            line = data[place:].split(b"\n")[0].decode().removeprefix("\ufeff")
            assert json.loads(line)["text"] == text
    assert place_of(a, 1234) == f"{a}, byte 1,234"
    assert place_of(c, 0) == f"{c}, record 1"
    assert place_of(files[3], 9) == f"{files[3]}, text 10"


def test_columns_are_as_in_reading(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "one"}\n{"body": "two"}\n')
    (piece,) = cut_pieces([path], 10**6)
    assert [text for text, _ in read_span(piece.spans[0], {path: "body"}, "text")] == ["one", "two"]
    with pytest.raises(DataError, match=r"the line at byte 0: no 'text', the keys are body"):
        list(read_span(piece.spans[0], {}, "text"))


def test_damage_is_told_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n{"text": \n')
    (piece,) = cut_pieces([path], 10**6)
    with pytest.raises(DataError, match=r"a\.jsonl, the line at byte 16: not JSON"):
        list(read_span(piece.spans[0], {}, "text"))
    path.write_bytes(b'{"text": "one"}\n{"text": "\xff"}\n')
    with pytest.raises(DataError, match="not UTF-8 at byte 26"):
        list(read_span(piece.spans[0], {}, "text"))
    with pytest.raises(DataError, match="cannot be read"):
        cut_pieces([tmp_path / "gone.jsonl"], 10)
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="damaged or not Parquet"):
        cut_pieces([tmp_path / "b.parquet"], 10)

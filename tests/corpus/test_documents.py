"""Documents: every format gives the same texts, long files are cut, faults have a place."""

import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common.errors import DataError
from nanochat.corpus import documents as documents_module
from nanochat.corpus import files as files_module
from nanochat.corpus.documents import (
    MAX_TEXT_CHARS,
    Document,
    corpus_fingerprint,
    find_files,
    read_documents,
    split_documents,
)
from nanochat.corpus.files import ReadReport
from nanochat.corpus.split import SplitRule
from tests.corpus.test_files import parquet, written

pytestmark = pytest.mark.req("FR-032")

TEXTS = ["First text.\n", "Second: \u00e9\u4e2d\U0001f600", "third"]


def texts_of(path: Path | str, text_column: str = "text") -> list[str]:
    return [document.text for document in read_documents(path, text_column=text_column)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.ndjson"])
def test_json_lines(tmp_path: Path, name: str) -> None:
    lines = "\n".join(json.dumps({"id": 1, "text": text}) for text in TEXTS)
    assert texts_of(written(tmp_path / name, lines)) == TEXTS
    assert texts_of(written(tmp_path / name, "\n".join(map(json.dumps, TEXTS)))) == TEXTS


def test_json_arrays_and_parquet(tmp_path: Path) -> None:
    array = json.dumps([{"body": text} for text in TEXTS])
    assert texts_of(written(tmp_path / "a.json.gz", array), "body") == TEXTS
    assert texts_of(written(tmp_path / "b.json", json.dumps(TEXTS)), "body") == TEXTS
    path = parquet(tmp_path / "c.parquet", {"body": TEXTS, "n": [1, 2, 3]})
    assert texts_of(path, "body") == TEXTS


def test_documents_know_where_they_are_from(tmp_path: Path) -> None:
    first = written(tmp_path / "a.txt", "one")
    second = written(tmp_path / "b.jsonl", '"two"\n" "\n"three"')
    report = ReadReport()
    assert list(read_documents(tmp_path, report=report)) == [
        Document("one", str(first), 0),
        Document("two", str(second), 0),
        Document("three", str(second), 1),
    ]
    assert report.num_kept == 3
    assert report.counts == {"empty documents left out": 1}


# ------------------------------------------------------------------------------------- text files


def test_a_text_file_is_a_document(tmp_path: Path) -> None:
    assert texts_of(written(tmp_path / "a.md.gz", "# Title\n\nText.\n")) == ["# Title\n\nText.\n"]
    assert texts_of(written(tmp_path / "b.txt", b"\xef\xbb\xbfmarked")) == ["marked"]


@given(
    st.lists(st.text(alphabet="ab \n", min_size=1, max_size=30).filter(str.strip), min_size=1),
    st.integers(1, 40),
    st.booleans(),
)
def test_separators_between_documents(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], chunk_bytes: int, is_closed: bool
) -> None:
    content = "\n<|endoftext|>\n".join(texts) + ("\n<|endoftext|>" if is_closed else "")
    path = written(tmp_path_factory.mktemp("separated") / "a.txt", content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files_module, "CHUNK_BYTES", chunk_bytes)
        found = texts_of(path)
    last = texts[-1] + "\n" if is_closed else texts[-1]
    assert found == [*(text + "\n" for text in texts[:-1]), last]


def test_only_lines_of_their_own_are_separators(tmp_path: Path) -> None:
    text = "What <|endoftext|> means:\nsee <|endoftext|>\n"
    assert texts_of(written(tmp_path / "a.txt", text)) == [text]
    windows = "one\r\n <|end_of_text|>\r\ntwo\r\n<|bos|>"
    assert texts_of(written(tmp_path / "b.txt", windows)) == ["one\r\n", "two\r\n"]


@given(
    st.lists(st.sampled_from(["\n\n", "\n", " ", "word", "x" * 30]), max_size=60),
    st.integers(1, 200),
)
def test_long_text_is_cut_into_all_its_parts(
    tmp_path_factory: pytest.TempPathFactory, words: list[str], chunk_bytes: int
) -> None:
    text = "start" + "".join(words) + "end"
    path = written(tmp_path_factory.mktemp("long") / "a.txt", text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents_module, "MAX_TEXT_CHARS", 40)
        patch.setattr(documents_module, "SEPARATOR_ROOM", 7)
        in_one = texts_of(path)
        patch.setattr(files_module, "CHUNK_BYTES", chunk_bytes)
        assert texts_of(path) == in_one
    assert all(len(piece) <= 40 for piece in in_one)
    assert "".join(in_one).split() == text.split()  # pieces of white space alone are left out


def test_cuts_are_at_paragraphs_lines_or_words(tmp_path: Path) -> None:
    near = MAX_TEXT_CHARS - 1000
    for mark in ("\n\n", "\n", " "):
        first = "x" * near + mark
        pieces = texts_of(written(tmp_path / "a.txt", first + "y" * 5000))
        assert pieces == [first, "y" * 5000]
    assert [len(piece) for piece in texts_of(written(tmp_path / "a.txt", "z" * 60_000))] == [
        MAX_TEXT_CHARS,
        60_000 - MAX_TEXT_CHARS,
    ]


@pytest.mark.req("FR-032", "FR-035")
def test_memory_does_not_grow_with_a_text_file(tmp_path: Path) -> None:
    def peak(num_bytes: int) -> int:
        path = written(tmp_path / f"{num_bytes}.txt", b"Twenty letters here.\n" * (num_bytes // 21))
        tracemalloc.start()
        num_characters = sum(len(document.text) for document in read_documents(path))
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert num_characters > num_bytes - 21
        return used

    assert peak(12_000_000) < 1.1 * peak(4_000_000)


# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.req("FR-032", "EC-9")
def test_text_that_is_not_utf8_is_named_with_its_byte(tmp_path: Path) -> None:
    for chunk_bytes in (1, 3, 1000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files_module, "CHUNK_BYTES", chunk_bytes)
            path = written(tmp_path / "a.txt", "\u00e9\u4e2d ok ".encode() + b"\xe9t\xe9")
            with pytest.raises(DataError, match=r"a.txt: not UTF-8 at byte 9 \(0xe9\): save"):
                texts_of(path)
            path = written(tmp_path / "b.txt", "ends in the middle \u4e2d".encode()[:-1])
            with pytest.raises(DataError, match=r"b.txt: not UTF-8 at byte 19 \(0xe4\)"):
                texts_of(path)


@pytest.mark.req("FR-032", "EC-9")
def test_wrong_columns_and_types_are_named(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", '{"text": "one"}\n{"body": "two", "n": 1}')
    with pytest.raises(DataError, match="a.jsonl, line 2: no 'text', the keys are body, n: name"):
        texts_of(path)
    for value in ("1", "[1]", '{"text": 3}'):
        path = written(tmp_path / "a.jsonl", value)
        with pytest.raises(DataError, match="line 1: 'text' is .*, expected a string"):
            texts_of(path)
    path = parquet(tmp_path / "a.parquet", {"text": [1, 2]})
    with pytest.raises(DataError, match="a.parquet, row 1: 'text' is 1, expected a string"):
        texts_of(path)


@pytest.mark.req("FR-032", "EC-3")
def test_an_empty_corpus_is_an_error(tmp_path: Path) -> None:
    for name, content in [
        ("a.txt", ""),
        ("b.txt", " \n\n"),
        ("c.jsonl", '{"text": null}'),
        ("d.json", "[]"),
        ("e.txt.gz", ""),
        ("f.txt", "\n<|endoftext|>\n"),
    ]:
        with pytest.raises(DataError, match=f"{name}: no text in it"):
            texts_of(written(tmp_path / name, content))
    with pytest.raises(DataError, match="a.txt and the others: no text in it"):
        texts_of(tmp_path)


def test_paths_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_documents(tmp_path / "none")
    with pytest.raises(DataError, match="the suffix is unknown"):
        find_files(written(tmp_path / "a.xlsx", "x"))


# ---------------------------------------------------------------------------------------- the split


def test_split_gives_documents(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps({"body": f"text {index}"}) for index in range(300))
    path = written(tmp_path / "a.jsonl", lines)
    split = split_documents(path, SplitRule(fraction=0.1), text_column="body")
    train = [document.text for document in split.train()]
    held_out = [document.text for document in split.validation()]
    assert sorted(train + held_out) == sorted(f"text {index}" for index in range(300))
    assert 10 < len(held_out) < 60


def test_split_by_named_files(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        written(tmp_path / f"{name}.txt", f"text of {name}")
    rule = SplitRule(validation_files=(tmp_path / "b.txt",))
    split = split_documents(tmp_path, rule)
    assert [document.text for document in split.train()] == ["text of a", "text of c"]
    assert [document.text for document in split.validation()] == ["text of b"]
    with pytest.raises(DataError, match="does not exist"):
        split_documents(tmp_path, SplitRule(validation_files=(tmp_path / "none.txt",)))


def test_real_corpora(shared_dir: Path) -> None:
    report = ReadReport()
    count = sum(
        1 for _ in read_documents(shared_dir / "data" / "text" / "*.parquet", report=report)
    )
    assert count == report.num_kept == 6475
    rule = SplitRule(is_last_file=True)
    split = split_documents(shared_dir / "data" / "text" / "shard_*.parquet", rule)
    assert [path.name for path in split.validation_files] == ["shard_00005.parquet"]
    assert len(corpus_fingerprint(split.train_files)) == 64
    plays = split_documents(shared_dir / "data" / "text" / "tinyshakespeare")
    assert (sum(1 for _ in plays.train()), sum(1 for _ in plays.validation())) == (22, 1)

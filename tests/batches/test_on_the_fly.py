"""A short text is the store it always was; a longer one is read while it is tokenized."""

import shutil
from pathlib import Path

import pytest

from nanochat.batches import on_the_fly
from nanochat.batches.chapters import Chapters
from nanochat.batches.on_the_fly import OpenText, open_text
from nanochat.batches.sources import Texts, text_stores
from nanochat.batches.store import TokenStore
from nanochat.batches.store_cache import cache_place, kept_store
from nanochat.batches.store_writer import tokenize_corpus
from nanochat.common.errors import DataError
from nanochat.corpus.documents import Document
from nanochat.corpus.files import ReadReport
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.batches.conftest import Corpus

pytestmark = pytest.mark.req("FR-033", "FR-034", "FR-035", "EC-7")


def num_chars(corpus: Corpus) -> int:
    return sum(len(text) for text in corpus.train())


def opened(corpus: Corpus, home: Path, chapter_chars: int, is_writer: bool = True) -> OpenText:
    return open_text(
        corpus.texts, corpus.tokenizer, home, chapter_chars=chapter_chars, is_writer=is_writer
    )


def test_a_short_text_is_what_it_was(corpus: Corpus, tmp_path: Path) -> None:
    report, before = ReadReport(), ReadReport()
    train, validation = text_stores(corpus.texts, corpus.tokenizer, tmp_path / "before", before)
    text = open_text(corpus.texts, corpus.tokenizer, tmp_path / "now", report=report)
    assert isinstance(text.train, TokenStore) and isinstance(text.validation, TokenStore)
    assert text.train.fingerprint == train.fingerprint
    assert text.train.directory.name == train.directory.name
    assert text.validation.fingerprint == validation.fingerprint
    assert report.lines() == before.lines() != []
    assert text.lines() == [
        f"tokens: {train.num_tokens:,} to train on, {validation.num_tokens:,} held out"
    ]
    assert text.helper is None and text.left_out() == []
    text.close()
    left = {path.name for path in (tmp_path / "now/data/tokens").iterdir() if path.is_dir()}
    assert left == {train.directory.name, validation.directory.name}
    again = open_text(corpus.texts, corpus.tokenizer, tmp_path / "before")  # from the cache
    assert again.train.fingerprint == train.fingerprint


def test_one_character_decides(corpus: Corpus, tmp_path: Path) -> None:
    size = num_chars(corpus)
    assert isinstance(opened(corpus, tmp_path / "short", size).train, TokenStore)
    long = opened(corpus, tmp_path / "long", size - 1)
    assert isinstance(long.train, Chapters)
    long.close()


def test_what_the_cache_has_does_not_decide(corpus: Corpus, tmp_path: Path) -> None:
    """The whole text may have been tokenized before, and chapters of another size."""
    size = num_chars(corpus)
    assert isinstance(opened(corpus, tmp_path, size).train, TokenStore)
    for chapter_chars in (2000, 3000):
        long = opened(corpus, tmp_path, chapter_chars)
        fresh = opened(corpus, tmp_path / f"fresh {chapter_chars}", chapter_chars)
        assert isinstance(long.train, Chapters) and isinstance(fresh.train, Chapters)
        assert long.train.fingerprint == fresh.train.fingerprint
        long.close()
        fresh.close()
    assert isinstance(opened(corpus, tmp_path, size).train, TokenStore)


def test_a_long_text_is_there_at_once_and_whole_at_the_end(corpus: Corpus, tmp_path: Path) -> None:
    text = opened(corpus, tmp_path, 2000)
    other_rank = opened(corpus, tmp_path, 2000, is_writer=False)
    assert isinstance(text.train, Chapters) and other_rank.helper is None
    assert text.lines()[0].startswith("tokens: about ")
    assert isinstance(other_rank.train, Chapters)
    whole, _ = text_stores(corpus.texts, corpus.tokenizer, tmp_path / "whole")
    number = num_tokens = 0
    while (chapter := text.train.chapter(number)) is not None:
        found = other_rank.train.chapter(number)
        assert found is not None and found.fingerprint == chapter.fingerprint
        num_tokens, number = num_tokens + chapter.num_tokens, number + 1
    assert num_tokens == whole.num_tokens
    assert other_rank.validation.num_tokens == text.validation.num_tokens > 0
    assert text.left_out() == ["44 empty documents left out"]
    text.close()
    again = opened(corpus, tmp_path, 2000)
    assert f"({number} are there)" in again.lines()[0]
    assert again.helper is not None and again.helper.process_id is None  # nothing to be done
    again.close()


def test_more_is_held_out_where_more_is_validated_on(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_the_fly, "VALIDATION_CHARS", 8)
    sizes = []
    for eval_tokens in (1, 1000):
        text = open_text(
            corpus.texts, corpus.tokenizer, tmp_path, chapter_chars=2000, eval_tokens=eval_tokens
        )
        sizes.append(text.validation.num_documents)
        text.close()
    assert sizes[0] == 1 < sizes[1]


def test_a_text_that_cannot_be_read_is_an_error_at_once(
    byte_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n{"text"\n')
    (tmp_path / "held out.txt").write_text("c")
    texts = Texts.from_files([str(tmp_path / "broken.jsonl")], [str(tmp_path / "held out.txt")])
    for chapter_chars in (1_000, 2):
        with pytest.raises(DataError, match="line 3: not JSON"):
            open_text(texts, byte_tokenizer, tmp_path / "home", chapter_chars=chapter_chars)


def test_a_kept_store_is_written_once(byte_tokenizer: Tokenizer, tmp_path: Path) -> None:
    place = cache_place(tmp_path, "a text", byte_tokenizer)
    assert place.parent == tmp_path and place != cache_place(tmp_path, "other", byte_tokenizer)
    written = []

    def write(directory: Path) -> TokenStore:
        written.append(directory)
        return tokenize_corpus([Document("a", "test", 0)], byte_tokenizer, directory)

    for _ in range(2):
        assert kept_store(place, byte_tokenizer, write).num_documents == 1
    shutil.rmtree(place)
    kept_store(place, byte_tokenizer, write)
    assert written == [place, place]

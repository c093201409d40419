"""Chapters: a text cut by its length, whoever writes it, whenever, and from wherever on."""

import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from nanochat.batches import chapters as chapters_module
from nanochat.batches import rows as rows_module
from nanochat.batches.batch import Batch
from nanochat.batches.chapter_writer import (
    BEGINNING,
    ChapterWriter,
    Place,
    beginning,
    chapter_name,
    ending_of,
    is_written,
)
from nanochat.batches.chapters import (
    CHAPTER_CHARS,
    Chapters,
    StoreToCome,
    chapters_fingerprint,
    wait_until,
)
from nanochat.batches.sources import Texts
from nanochat.batches.store import TokenStore
from nanochat.batches.store_writer import tokenize_corpus
from nanochat.batches.stream import PackedStream
from nanochat.common.errors import DataError
from nanochat.corpus.documents import Document
from nanochat.corpus.files import ReadReport
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.batches.conftest import Corpus, write_corpus

pytestmark = pytest.mark.req("FR-033", "FR-034", "FR-035", "EC-7")

CHARS = 2000


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "GROUP_DOCUMENTS", 16)


def writer_of(corpus: Corpus, directory: Path, chars: int = CHARS) -> ChapterWriter:
    return ChapterWriter(directory, corpus.texts.onward, corpus.tokenizer, chars)


def written(corpus: Corpus, directory: Path, chars: int = CHARS) -> Chapters:
    """All chapters, by one writer."""
    writer, number = writer_of(corpus, directory, chars), 0
    while writer.write(number) is not None:
        number += 1
    return chapters_of(corpus, directory, chars)


def chapters_of(corpus: Corpus, directory: Path, chars: int = CHARS) -> Chapters:
    fingerprint = chapters_fingerprint(corpus.texts.identity("train"), corpus.tokenizer, chars)
    num_bytes = corpus.texts.num_bytes
    return Chapters(directory, corpus.tokenizer, fingerprint=fingerprint, num_bytes=num_bytes)


def texts_in(store: TokenStore, tokenizer: Tokenizer) -> list[str]:
    lengths = store.lengths(np.arange(store.num_documents))
    return [tokenizer.decode(store.tokens(i, 1, int(n))) for i, n in enumerate(lengths)]


def all_of(chapters: Chapters) -> list[TokenStore]:
    found = []
    while (store := chapters.chapter(len(found))) is not None:
        found.append(store)
    return found


def equal(first: Batch, second: Batch) -> bool:
    return torch.equal(first.inputs_BT, second.inputs_BT) and torch.equal(
        first.targets_BT, second.targets_BT
    )


def test_chapters_are_the_text_in_order(corpus: Corpus, tmp_path: Path) -> None:
    stores = all_of(written(corpus, tmp_path / "chapters"))
    assert len(stores) == 8
    texts = [text for store in stores for text in texts_in(store, corpus.tokenizer)]
    assert texts == corpus.train()
    for store, following in zip(stores, stores[1:], strict=False):
        first = texts_in(following, corpus.tokenizer)[0]
        assert store.num_characters <= CHARS < store.num_characters + len(first)


def test_a_document_longer_than_a_chapter_is_one(corpus: Corpus, tmp_path: Path) -> None:
    write_corpus(tmp_path / "small", num_files=1, num_documents=20)
    corpus = corpus._replace(texts=Texts.from_files([str(tmp_path / "small")]))
    stores = all_of(written(corpus, tmp_path / "chapters", chars=1))
    assert [store.num_documents for store in stores] == [1] * len(corpus.train())


def test_writing_goes_on_from_anywhere(corpus: Corpus, tmp_path: Path) -> None:
    """A writer that knows nothing writes what the one would have written that had gone on."""
    whole = all_of(written(corpus, tmp_path / "whole"))
    for number in range(len(whole) + 1):
        writer_of(corpus, tmp_path / "parts").write(number)
    parts = all_of(chapters_of(corpus, tmp_path / "parts"))
    assert [each.fingerprint for each in parts] == [each.fingerprint for each in whole]
    for number in range(len(whole)):
        first, second = (ending_of(tmp_path / name, number) for name in ("whole", "parts"))
        assert first == second


def test_what_is_left_out_is_counted_once(corpus: Corpus, tmp_path: Path) -> None:
    report = ReadReport()
    for _ in corpus.texts.documents("train", report):
        pass
    assert report.counts["empty documents left out"] > 20
    for number in range(9):
        writer_of(corpus, tmp_path / "parts").write(number)
    assert chapters_of(corpus, tmp_path / "parts").left_out() == report.counts
    assert written(corpus, tmp_path / "whole").left_out() == report.counts


def test_a_chapter_that_was_interrupted_is_written_again(corpus: Corpus, tmp_path: Path) -> None:
    whole = written(corpus, tmp_path / "whole")
    directory = tmp_path / "interrupted"
    writer_of(corpus, directory).write(0)
    (directory / ".00001.left.tmp").mkdir()
    (directory / ".00001.left.tmp" / "tokens.bin").write_bytes(b"half")
    (directory / "00001").mkdir()  # not even an index
    writer = writer_of(corpus, directory)
    for number in range(3):
        writer.write(number)
    found = chapters_of(corpus, directory)
    for number in range(3):
        ours, theirs = found.chapter(number), whole.chapter(number)
        assert ours is not None and theirs is not None
        assert ours.fingerprint == theirs.fingerprint
    assert not list(directory.glob(".*.tmp"))


def test_several_writers_write_the_same(corpus: Corpus, tmp_path: Path) -> None:
    whole = all_of(written(corpus, tmp_path / "whole"))
    errors: list[BaseException] = []

    def write() -> None:
        try:
            written(corpus, tmp_path / "shared")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    shared = all_of(chapters_of(corpus, tmp_path / "shared"))
    assert [each.fingerprint for each in shared] == [each.fingerprint for each in whole]


def test_the_fingerprint_is_known_before_and_says_what_decides(
    corpus: Corpus, tmp_path: Path
) -> None:
    identity, tokenizer = corpus.texts.identity("train"), corpus.tokenizer
    before = chapters_fingerprint(identity, tokenizer, CHARS)
    assert written(corpus, tmp_path / "chapters").fingerprint == before
    other = Tokenizer([bytes([byte]) for byte in range(256)] + [b"xy"])
    assert len(before) == 64 and before not in (
        chapters_fingerprint(identity, tokenizer, CHARS + 1),
        chapters_fingerprint(identity + "x", tokenizer, CHARS),
        chapters_fingerprint(identity, other, CHARS),
    )


def test_the_estimate_does_not_depend_on_what_is_there(corpus: Corpus, tmp_path: Path) -> None:
    writer_of(corpus, tmp_path / "one").write(0)
    one, all_there = chapters_of(corpus, tmp_path / "one"), written(corpus, tmp_path / "all")
    assert one.num_tokens == all_there.num_tokens
    assert one.num_tokens >= sum(store.num_tokens for store in all_of(all_there))
    assert (one.num_written, all_there.num_written) == (1, 8)
    assert one.bos == corpus.tokenizer.bos


# -------------------------------------------------------------------------------- as a stream


def stream_of(chapters: Chapters, seed: int = 3) -> PackedStream:
    return PackedStream(chapters, 24, seed=seed)


def test_an_epoch_has_every_token_once(corpus: Corpus, tmp_path: Path) -> None:
    stream = PackedStream(written(corpus, tmp_path / "chapters"), 24, num_epochs=2)
    expected = Counter(corpus.train())
    ends = [stream.num_rows_per_epoch, stream.num_batches(1)]
    assert stream.report().num_rows == ends[0]
    for start, end in zip([0, *ends], ends, strict=False):
        told: Counter[str] = Counter()
        for index in range(start, end):
            row = stream.row(index)
            assert row is not None
            for document, begin, length in row.pieces:
                stop = begin + length - (1 if begin else 0)  # a <|bos|> of its own
                tokens = row.store.tokens(document, begin, stop)
                told.update(corpus.tokenizer.decode(tokens).removeprefix("<|bos|>"))
        assert told == Counter("".join(expected.elements()))
    assert stream.row(ends[1]) is None


def test_chapters_come_in_order_then_shuffled(corpus: Corpus, tmp_path: Path) -> None:
    chapters = written(corpus, tmp_path / "chapters")
    numbers = {store.fingerprint: number for number, store in enumerate(all_of(chapters))}
    fresh = chapters_of(corpus, tmp_path / "chapters")
    orders = []
    for epoch in range(4):
        sections = [fresh.section(epoch * 8 + place, seed=3) for place in range(8)]
        assert {section.epoch for section in sections} == {epoch}
        orders.append([numbers[section.store.fingerprint] for section in sections])
        assert [section.key for section in sections] == [
            (3, epoch, number) for number in orders[-1]
        ]
    assert orders[0] == [*range(8)]
    assert all(sorted(order) == orders[0] for order in orders)
    assert len({tuple(order) for order in orders}) == 4


@pytest.mark.req("FR-036")
def test_a_batch_depends_on_nothing_but_its_number(corpus: Corpus, tmp_path: Path) -> None:
    chapters = written(corpus, tmp_path / "chapters")
    stream = stream_of(chapters)
    batches = [stream.batch(index, 7) for index in range(200)]  # some epochs
    for index in (150, 0, 199, 80, 81, 3):
        fresh = stream_of(chapters_of(corpus, tmp_path / "chapters"))
        assert equal(fresh.batch(index, 7), batches[index])
    assert not equal(stream_of(chapters, seed=4).batch(0, 7), batches[0])


@pytest.mark.req("FR-036", "FR-016")
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_rows(corpus: Corpus, tmp_path: Path, world_size: int) -> None:
    stream = stream_of(written(corpus, tmp_path / "chapters"))
    for index in (0, 20, 90):
        whole = stream.batch(index, 7)
        for rank in range(world_size):
            part = stream.batch(index, 7, rank, world_size)
            assert torch.equal(part.inputs_BT, whole.inputs_BT[rank::world_size])


@pytest.mark.req("FR-036")
def test_it_makes_no_difference_whether_chapters_are_there(corpus: Corpus, tmp_path: Path) -> None:
    """One stream waits for each chapter, the other finds them all."""
    there = stream_of(written(corpus, tmp_path / "there"))
    directory = tmp_path / "to come"
    writer, is_over = writer_of(corpus, directory), threading.Event()
    wanted = [0]

    class Wants:
        def want(self, number: int) -> None:
            wanted.append(number)

        def check(self) -> None:
            assert not is_over.is_set()

    def write() -> None:
        number = 0
        while not is_over.wait(0.001):
            if number <= max(wanted) and writer.write(number) is not None:
                number += 1

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    fingerprint = chapters_fingerprint(corpus.texts.identity("train"), corpus.tokenizer, CHARS)
    chapters = Chapters(
        directory, corpus.tokenizer, fingerprint=fingerprint, num_bytes=1, helper=Wants()
    )
    to_come = stream_of(chapters)
    assert to_come.fingerprint == there.fingerprint
    for index in range(120):
        assert equal(to_come.batch(index, 7), there.batch(index, 7)), index
    is_over.set()
    thread.join()
    assert wanted == sorted(wanted) and wanted[1] == chapters_module.AHEAD


def test_few_chapters_are_open(corpus: Corpus, tmp_path: Path) -> None:
    chapters = written(corpus, tmp_path / "chapters", chars=300)
    stream = stream_of(chapters)
    for index in range(150):
        stream.batch(index, 8)
    assert len(chapters._open) <= chapters_module.NUM_OPEN < 40
    assert len(stream._parts) <= 2


def test_a_damaged_chapter_is_an_error(corpus: Corpus, tmp_path: Path) -> None:
    written(corpus, tmp_path / "chapters")
    (tmp_path / "chapters/00001/tokens.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"00001/tokens.bin has 0 bytes"):
        chapters_of(corpus, tmp_path / "chapters").chapter(1)
    (tmp_path / "chapters/00002.json").unlink()
    with pytest.raises(DataError, match=r"00002.json does not exist"):
        chapters_of(corpus, tmp_path / "chapters").chapter(3)


# --------------------------------------------------------------------------------- small parts


def test_places_go_on_in_files(corpus: Corpus) -> None:
    whole = list(corpus.texts.onward(BEGINNING)[0])
    assert [document.text for _, document in whole] == corpus.train()
    assert [place for place, _ in whole] == sorted(place for place, _ in whole)
    for start in (Place(0, 50), Place(1, 0), Place(2, 99), Place(2, 100)):
        documents, _ = corpus.texts.onward(start)
        assert list(documents) == [each for each in whole if each[0] >= start]


def test_places_go_on_in_the_world() -> None:
    texts = Texts.from_world(5_000, seed=2)
    whole = list(texts.onward(BEGINNING)[0])
    assert [document.text for _, document in whole] == [
        document.text for document in texts.documents("train", None)
    ]
    assert list(texts.onward(Place(0, 3))[0]) == whole[3:]


def test_another_process_has_the_same_texts(corpus: Corpus) -> None:
    for texts in (corpus.texts, Texts.from_world(5_000, seed=2)):
        again = Texts.from_recipe(texts.recipe)
        for part in ("train", "validation"):
            assert again.identity(part) == texts.identity(part)
        assert list(again.onward(Place(0, 9))[0]) == list(texts.onward(Place(0, 9))[0])
        assert (again.recipe, again.num_bytes) == (texts.recipe, texts.num_bytes)


def test_a_beginning_has_whole_documents() -> None:
    documents = [Document("x" * length, "test", length) for length in (5, 4, 3)]
    taken = [len(list(beginning(iter(documents), num_chars))) for num_chars in (1, 5, 8, 9, 12, 99)]
    assert taken == [1, 1, 1, 2, 3, 3]


def test_a_store_to_come_is_waited_for(corpus: Corpus, tmp_path: Path) -> None:
    place = tmp_path / "late"
    store = StoreToCome(place, corpus.tokenizer)
    assert store.bos == corpus.tokenizer.bos and not is_written(tmp_path, 0)
    assert chapter_name(12) == "00012"
    documents = [Document("ab", "test", 0), Document("c", "test", 1)]
    timer = threading.Timer(0.05, tokenize_corpus, (documents, corpus.tokenizer, place))
    timer.start()
    assert (store.num_documents, store.num_tokens) == (2, 5)
    there = TokenStore.open(place)
    assert store.fingerprint == there.fingerprint
    assert store.lengths(np.arange(2)).tolist() == [3, 2]
    assert store.tokens(0, 1, 3).tolist() == [97, 98] and store.mask(0, 0, 1) is None
    timer.join()


def test_what_ends_the_helper_ends_the_waiting() -> None:
    class Dead:
        def want(self, number: int) -> None:
            pass

        def check(self) -> None:
            raise DataError("line 7 is no JSON")

    with pytest.raises(DataError, match="line 7"):
        wait_until(lambda: False, Dead())


def test_a_chapter_is_some_seconds_of_work() -> None:
    """A change of the constant changes the batches of every large text: it is one on purpose."""
    assert CHAPTER_CHARS == 64_000_000

"""A corpus is prepared the same way by one process, by several, in large and in small pieces, and
after having been stopped anywhere."""

import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.batches import prepare as prepare_module
from nanochat.batches import prepare_duplicates
from nanochat.batches.prepare import Prepared, PrepareSettings, prepare
from nanochat.batches.prepare_place import begin_anew
from nanochat.batches.prepare_report import report_lines
from nanochat.batches.shards import PreparedStore
from nanochat.common.errors import ConfigError, DataError
from nanochat.common.pool import InTurn, Processes
from nanochat.corpus.documents import split_documents
from nanochat.corpus.prepare.clean import CleanRules, clean
from nanochat.tokenizer.tokenizer import Tokenizer

pytestmark = pytest.mark.req("FR-032", "FR-033", "FR-034", "FR-035")

T = TypeVar("T")
R = TypeVar("R")
QUESTION = "In which of the four seasons do the swallows of the valley come back from the south?"


def written(dice: random.Random, num_words: int) -> str:
    return " ".join(f"word{dice.randrange(3000)}" for _ in range(num_words))


def changed(text: str, dice: random.Random, num_changes: int) -> str:
    words = text.split()
    for place in dice.sample(range(len(words)), num_changes):
        words[place] = "other"
    return " ".join(words)


class Corpus:
    """Texts of all kinds, in files of two formats, and what is expected of them."""

    def __init__(self, folder: Path) -> None:
        dice = random.Random(7)
        long = (20, 21, 30, 31, 150)
        self.plain = [
            written(dice, 200 if index in long else dice.randrange(30, 200)) for index in range(240)
        ]
        self.equal = [self.plain[5], f"{self.plain[9]}  \r\n", self.plain[100]]
        self.alike = [changed(self.plain[index], dice, 1) for index in (20, 21, 150)]
        self.unlike = [changed(self.plain[index], dice, 20) for index in (30, 31)]
        self.contaminated = [f"{written(dice, 40)} {QUESTION} {written(dice, 40)}"]
        self.short = ["tiny", "   ", ""]
        texts = [*self.plain, *self.equal, *self.alike, *self.unlike, *self.contaminated]
        texts += self.short
        dice.shuffle(texts)
        self.texts = texts
        self.folder = folder / "corpus"
        self.folder.mkdir()
        half = len(texts) // 2
        lines = [json.dumps({"text": text}) + "\n" for text in texts[:half]]
        (self.folder / "a.jsonl").write_text("".join(lines))
        pq.write_table(
            pa.table({"text": texts[half:]}), self.folder / "b.parquet", row_group_size=20
        )
        self.questions = folder / "questions"
        self.questions.mkdir()
        (self.questions / "quiz.jsonl").write_text(json.dumps({"question": QUESTION}) + "\n")
        self.tokenizer = folder / "bytes.json"
        Tokenizer([bytes([byte]) for byte in range(256)]).save(self.tokenizer)

    def settings(self, **changes: Any) -> PrepareSettings:
        settings = PrepareSettings(
            data=(str(self.folder),),
            tokenizer=self.tokenizer,
            evaluation=(self.questions,),
            shard_tokens=20_000,
            piece_bytes=40_000,
        )
        return replace(settings, **changes)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(tmp_path_factory.mktemp("prepare"))


@pytest.fixture(scope="module")
def prepared(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(corpus.settings(), tmp_path_factory.mktemp("made") / "it", InTurn())


def texts_of(store: PreparedStore, tokenizer: Tokenizer) -> list[str]:
    lengths = store.lengths(np.arange(store.num_documents)).tolist()
    found = []
    for document, length in enumerate(lengths):
        tokens = store.tokens(document, 0, length).tolist()
        assert tokens[0] == tokenizer.bos
        found.append(tokenizer.decode(tokens[1:]))
    return found


def everything(prepared: Prepared, corpus: Corpus) -> list[str]:
    tokenizer = Tokenizer.load(corpus.tokenizer)
    return texts_of(prepared.train, tokenizer) + texts_of(prepared.validation, tokenizer)


def identity(prepared: Prepared) -> tuple[Any, ...]:
    told = {key: prepared.report[key] for key in ("read", "cleaned", "evaluation", "duplicates")}
    return (
        prepared.train.fingerprint,
        prepared.validation.fingerprint,
        json.dumps(told, sort_keys=True),
    )


def test_what_stays_is_clean_and_there_once(prepared: Prepared, corpus: Corpus) -> None:
    found = everything(prepared, corpus)
    expected: dict[str, None] = {}
    for text in map(clean, corpus.texts):
        if len(text) >= 20:
            expected.setdefault(text)
    # Of texts that are alike the first stays.
    for index, alike in zip((20, 21, 150), corpus.alike, strict=True):
        pair = sorted((clean(corpus.plain[index]), alike), key=list(expected).index)
        del expected[pair[1]]
    assert sorted(found) == sorted(expected)
    assert prepared.train.num_documents + prepared.validation.num_documents == len(found)


def test_documents_are_shuffled_over_the_whole(prepared: Prepared, corpus: Corpus) -> None:
    found = texts_of(prepared.train, Tokenizer.load(corpus.tokenizer))
    order = {clean(text): place for place, text in reversed(list(enumerate(corpus.texts)))}
    places = np.array([order[text] for text in found])
    assert abs(np.corrcoef(places, np.arange(len(places)))[0, 1]) < 0.2
    ends = np.cumsum([shard.num_documents for shard in prepared.train.shards])
    assert len(ends) >= 5
    for shard in np.split(places, ends[:-1]):  # each has documents from all over
        assert shard.min() < len(places) / 4 and shard.max() > len(places) * 3 / 4


def test_held_out_is_what_training_from_raw_text_holds_out(
    prepared: Prepared, corpus: Corpus
) -> None:
    held_out = {clean(document.text) for document in split_documents(corpus.folder).validation()}
    found = set(texts_of(prepared.validation, Tokenizer.load(corpus.tokenizer)))
    assert found and found <= held_out
    assert not found & set(texts_of(prepared.train, Tokenizer.load(corpus.tokenizer)))


def test_the_report_says_what_went_and_why(prepared: Prepared, corpus: Corpus) -> None:
    report = prepared.report
    assert report["read"]["texts"] == len(corpus.texts)
    assert report["cleaned"]["left_out"] == {"empty": 2, "shorter than 20 characters": 1}
    assert report["cleaned"]["changed"] == 1
    assert (report["duplicates"]["equal"], report["duplicates"]["alike"]) == (3, 3)
    assert report["evaluation"]["documents"] == 1
    assert report["evaluation"]["is_removed"] is False
    (alike, *_) = report["duplicates"]["alike_examples"]
    assert alike["alike"] >= 0.8 and alike["place"] != alike["other"]
    kept = report["kept"]
    assert kept["train"]["documents"] == prepared.train.num_documents
    assert kept["train"]["tokens"] == prepared.train.num_tokens
    assert kept["train"]["characters_per_token"] == pytest.approx(
        kept["train"]["characters"] / kept["train"]["tokens"]
    )
    lengths = prepared.train.lengths(np.arange(prepared.train.num_documents))
    assert kept["train"]["lengths"]["most"] == lengths.max()
    assert kept["train"]["lengths"]["50%"] == np.quantile(lengths, 0.5, method="nearest")
    (example,) = report["evaluation"]["examples"]
    assert example["file"] == "quiz.jsonl"
    lines = report_lines(report)
    text = "\n".join(lines)
    assert lines[0].split()[:2] == ["read", str(len(corpus.texts))]
    assert "equal to an earlier one" in text and "80% like an earlier one" in text
    assert "1 documents have words of 1 of 1 entries; kept" in text
    assert not (prepared.directory / "work").exists()


def test_the_result_depends_on_nothing_but_texts_and_settings(
    prepared: Prepared, corpus: Corpus, tmp_path: Path
) -> None:
    settings = corpus.settings(piece_bytes=4_000)
    with Processes(2) as executor:
        many = prepare(settings, tmp_path / "many", executor)
    assert identity(many)[:2] == identity(prepared)[:2]
    (one_piece,) = {
        identity(prepare(corpus.settings(piece_bytes=10**9), tmp_path / "one", InTurn()))[:2]
    }
    assert one_piece == identity(prepared)[:2]
    other_seed = prepare(corpus.settings(seed=1), tmp_path / "seed", InTurn())
    assert other_seed.train.fingerprint != prepared.train.fingerprint
    assert sorted(everything(other_seed, corpus)) == sorted(everything(prepared, corpus))


def test_a_shard_does_not_depend_on_what_else_is_read(corpus: Corpus, tmp_path: Path) -> None:
    small = prepare(corpus.settings(shard_tokens=5_000), tmp_path / "small", InTurn())
    large = prepare(corpus.settings(shard_tokens=10**9), tmp_path / "large", InTurn())
    assert len(large.train.shards) == 1 < len(small.train.shards)
    tokenizer = Tokenizer.load(corpus.tokenizer)
    assert texts_of(small.train, tokenizer) == texts_of(large.train, tokenizer)


class Stopped(Exception):
    """As if the process had been killed."""


class StopsAfter(InTurn):
    """Gives up after so many tasks, of all stages together."""

    def __init__(self, num_tasks: int) -> None:
        self.left = num_tasks

    def map(self, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[R]:
        for task in tasks:
            if not self.left:
                raise Stopped
            self.left -= 1
            yield function(task)


def test_what_was_stopped_anywhere_goes_on(
    prepared: Prepared, corpus: Corpus, tmp_path: Path
) -> None:
    num_tasks = stops = 0
    while True:
        directory = tmp_path / str(num_tasks)
        try:
            prepare(corpus.settings(), directory, StopsAfter(num_tasks))
            break
        except Stopped:
            stops += 1
        # What a killed process leaves beside what it finished.
        for half in ("work/pieces/.000001.x.tmp", "train/.00001.y.tmp"):
            (directory / half).mkdir(parents=True)
            (directory / half / "tokens.bin").write_bytes(b"half")
        done = _contents(directory)
        finished = prepare(corpus.settings(), directory, InTurn())
        assert identity(finished) == identity(prepared)
        assert not finished.was_there
        assert not list(directory.rglob(".*.tmp"))
        kept = {path: state for path, state in done.items() if path.exists()}
        assert all(path.stat().st_mtime_ns == state for path, state in kept.items())
        num_tasks += 5
    assert stops >= 6, "every stage is stopped in its middle"


def _contents(directory: Path) -> dict[Path, int]:
    """Finished shards, which are not to be written again."""
    shards = (path for part in ("train", "validation") for path in directory.glob(f"{part}/0*/*"))
    return {path: path.stat().st_mtime_ns for path in shards}


def test_documents_are_compared_part_by_part_with_the_same_result(
    prepared: Prepared, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A corpus of more than PART_DOCUMENTS: no search holds more than a part of it."""
    sizes: list[int] = []
    for name in ("equal_pairs", "alike_pairs"):
        search = getattr(prepare_duplicates, name)

        def counted(values: Any, numbers: Any, *more: Any, search: Any = search) -> Any:
            sizes.append(len(numbers))
            assert (np.diff(numbers) > 0).all()
            return search(values, numbers, *more)

        monkeypatch.setattr(prepare_duplicates, name, counted)
    monkeypatch.setattr(prepare_duplicates, "PART_DOCUMENTS", 30)
    found = prepare(corpus.settings(), tmp_path / "it", InTurn())
    assert identity(found) == identity(prepared)
    assert found.report["duplicates"]["equal"] and found.report["duplicates"]["alike"]
    assert len(sizes) == 22 * 9 and max(sizes) < 60


def test_what_is_complete_is_found(corpus: Corpus, prepared: Prepared) -> None:
    again = prepare(corpus.settings(), prepared.directory, StopsAfter(0))
    assert again.was_there and identity(again) == identity(prepared)


def test_other_settings_are_refused_by_name(corpus: Corpus, prepared: Prepared) -> None:
    with pytest.raises(ConfigError) as refused:
        prepare(
            corpus.settings(seed=3, rules=CleanRules(min_chars=5)), prepared.directory, InTurn()
        )
    message = str(refused.value)
    assert "begun with other settings" in message and "seed (0, now 3)" in message
    assert '"min_chars": 20' in message and "threshold" not in message


def test_changed_files_are_refused_by_name(corpus: Corpus, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(corpus.folder, folder)
    settings = corpus.settings(data=(str(folder),))
    with pytest.raises(Stopped):
        prepare(settings, tmp_path / "it", StopsAfter(1))
    with (folder / "a.jsonl").open("a") as file:
        file.write('{"text": "one more text, long enough"}\n')
    with pytest.raises(ConfigError, match=r"files \(a\.jsonl changed\)"):
        prepare(settings, tmp_path / "it", InTurn())
    begin_anew(tmp_path / "it")
    assert prepare(settings, tmp_path / "it", InTurn()).train.num_documents > 100


def test_contaminated_documents_can_be_removed(
    prepared: Prepared, corpus: Corpus, tmp_path: Path
) -> None:
    clean_one = prepare(corpus.settings(removes_contaminated=True), tmp_path / "it", InTurn())
    gone = set(everything(prepared, corpus)) - set(everything(clean_one, corpus))
    assert gone == set(corpus.contaminated)
    assert "entries; removed" in "\n".join(report_lines(clean_one.report))
    with pytest.raises(ConfigError, match="no evaluation sets are here"):
        corpus.settings(removes_contaminated=True, evaluation=())


@pytest.mark.parametrize(("duplicates", "removed"), [("keep", 0), ("equal", 3)])
def test_duplicates_can_stay(duplicates: Any, removed: int, corpus: Corpus, tmp_path: Path) -> None:
    settings = corpus.settings(duplicates=duplicates, evaluation=())
    found = prepare(settings, tmp_path / "it", InTurn())
    assert len(everything(found, corpus)) == len(corpus.texts) - 3 - removed
    assert found.report["duplicates"]["alike"] == 0
    assert "evaluation sets: none were here" in "\n".join(report_lines(found.report))


def test_named_validation_files_are_held_out_whole(corpus: Corpus, tmp_path: Path) -> None:
    validation = tmp_path / "val.jsonl"
    texts = [f"held out text of number {number}" for number in range(30)] + [corpus.plain[0]]
    validation.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    found = prepare(corpus.settings(val_data=(str(validation),)), tmp_path / "it", InTurn())
    held_out = texts_of(found.validation, Tokenizer.load(corpus.tokenizer))
    assert sorted(held_out) == sorted(texts[:30])  # the last is trained on, so that it is not here


def test_a_tokenizer_is_learnt_where_none_is_named(corpus: Corpus, tmp_path: Path) -> None:
    found = prepare(corpus.settings(tokenizer=None, vocab_size=400), tmp_path / "it", InTurn())
    tokenizer = Tokenizer.load(tmp_path / "it" / "tokenizer.json")
    assert tokenizer.vocab_size == 400
    assert found.train.tokenizer_hash == tokenizer.content_hash
    assert set(texts_of(found.train, tokenizer)) <= set(map(clean, corpus.texts))


def test_nothing_left_is_told(corpus: Corpus, tmp_path: Path) -> None:
    settings = corpus.settings(rules=CleanRules(min_chars=10**5), evaluation=())
    with pytest.raises(DataError, match="nothing is left of the text; .* shorter than 100,000"):
        prepare(settings, tmp_path / "none", InTurn())
    path = tmp_path / "two.jsonl"
    path.write_text('{"text": "the same text as the other"}\n' * 2)
    both = corpus.settings(data=(str(path),), val_data=(str(path),))
    with pytest.raises(DataError):
        prepare(both, tmp_path / "empty", InTurn())
    settings = corpus.settings(
        data=(str(corpus.folder),), val_data=(str(corpus.folder / "a.jsonl"),), evaluation=()
    )
    assert prepare(settings, tmp_path / "by file", InTurn()).validation.num_documents > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": ()}, "no data was named"),
        ({"threshold": 0.1}, "threshold is 0.1"),
        ({"shard_tokens": 0, "seed": -1}, "shard_tokens is 0, .*; seed is -1"),
    ],
)
def test_settings_out_of_range(changes: dict[str, Any], message: str, corpus: Corpus) -> None:
    with pytest.raises(ConfigError, match=message):
        corpus.settings(**changes)


def test_relative_paths_and_columns(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, few in (("train", corpus.plain[:30]), ("held", corpus.plain[40:50])):
        lines = (json.dumps({"body": text, "text": "not this one, but another"}) for text in few)
        Path(f"{name}.jsonl").write_text("\n".join(lines))
    settings = corpus.settings(data=("train.jsonl#body",), val_data=("held.jsonl#body",))
    with Processes(2) as executor:
        found = prepare(settings, tmp_path / "it", executor)
    tokenizer = Tokenizer.load(corpus.tokenizer)
    assert sorted(texts_of(found.train, tokenizer)) == sorted(corpus.plain[:30])
    assert sorted(texts_of(found.validation, tokenizer)) == sorted(corpus.plain[40:50])


def test_progress_reaches_the_end(corpus: Corpus, tmp_path: Path) -> None:
    told: dict[str, list[tuple[int, int]]] = {}
    prepare(
        corpus.settings(),
        tmp_path / "it",
        InTurn(),
        lambda stage, done, total: told.setdefault(stage, []).append((done, total)),
    )
    assert list(told) == ["pieces", "duplicates", "shards"]
    for steps in told.values():
        assert [done for done, _ in steps] == sorted(done for done, _ in steps)
        assert steps[-1][0] == steps[-1][1]


def test_no_torch_is_needed() -> None:
    import subprocess
    import sys

    code = f"import sys, {prepare_module.__name__}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

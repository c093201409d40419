"""Words of evaluation sets are found where they are, and only there."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common.errors import DataError
from nanochat.corpus.prepare import contamination
from nanochat.corpus.prepare.contamination import EvaluationSets
from nanochat.corpus.prepare.entry_files import entry_files, has_entry_files
from nanochat.corpus.prepare.words import words_of

pytestmark = pytest.mark.req("FR-032", "EC-9")

LONG = "If a train leaves at noon and travels sixty miles an hour, when does it arrive in Ely?"
SHORT = "Which of these animals can sleep standing up, and why?"
TWELVE = "one two three four five six seven eight nine ten eleven twelve"
SAME_BEGINNING = "Which of these animals can sleep standing under water?"
TINY = "What is red?"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [
        {"question": LONG, "choices": ["noon", SHORT], "answer": 1},
        {"messages": [{"content": TWELVE}, {"content": TINY}]},
        {"question": SAME_BEGINNING},
    ]
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    other = "a passage that nobody has ever seen before and nobody will see again in here"
    (tmp_path / "passages.csv").write_text(f"id,text\n1,{other}\n")
    learnt = "what is to be learnt from may of course be learnt from by everybody at any time"
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": learnt}) + "\n")
    (tmp_path / "notes.md").write_text("No questions here. " * 20)
    return tmp_path


def found(sets: EvaluationSets, *texts: str) -> list[tuple[int, int]]:
    hits = sets.hits(words_of([text.encode() for text in texts]))
    return list(zip(hits.texts.tolist(), hits.entries.tolist(), strict=True))


def test_entries_are_strings_of_eight_words(folder: Path) -> None:
    sets = EvaluationSets.read([folder])
    assert sets.files == ("passages.csv", "sub/quiz.jsonl")
    assert sets.num_entries == 5
    assert sets.file_of(np.arange(5)).tolist() == [0, 1, 1, 1, 1]


def test_what_is_left_out_is_a_word_of_the_name_and_is_told(folder: Path) -> None:
    row = json.dumps({"text": LONG}) + "\n"
    for name in ("constrained_qa.jsonl", "arc-Train.jsonl", "training.jsonl"):
        (folder / name).write_text(row)
    (folder / "downloads").mkdir()
    (folder / "downloads" / "gsm8k--test.jsonl.json").write_text(json.dumps({"url": LONG}))
    (folder / ".lock").touch()
    files = entry_files([folder])
    assert files.names == (
        "constrained_qa.jsonl", "passages.csv", "sub/quiz.jsonl", "training.jsonl",
    )  # fmt: skip
    assert files.left_out == (
        "arc-Train.jsonl", "downloads/gsm8k--test.jsonl.json", "train.jsonl",
    )  # fmt: skip
    assert EvaluationSets.read([folder]).files == files.names
    assert entry_files([folder / "train.jsonl"]).names == ("train.jsonl",)  # it was named itself


def test_a_folder_without_evaluation_sets_is_known_as_one(tmp_path: Path) -> None:
    assert not has_entry_files(tmp_path / "nowhere")
    (tmp_path / "spellingbee").mkdir()
    (tmp_path / "spellingbee" / "words_alpha.txt").write_text("a\nab\n")
    (tmp_path / ".lock").touch()
    (tmp_path / "train.jsonl").write_text("{}\n")
    assert not has_entry_files(tmp_path)
    (tmp_path / "quiz.jsonl").write_text("{}\n")
    assert has_entry_files(tmp_path)


def test_words_are_found_whatever_their_dress(folder: Path) -> None:
    sets = EvaluationSets.read([folder])
    dressed = "Q: IF a train leaves\nat noon -- and travels \u201csixty\u201d miles an hour... when"
    assert found(sets, "nothing of it", f"before {LONG} after", dressed) == [(1, 1), (2, 1)]
    assert found(sets, f"{SHORT} {TWELVE}", SAME_BEGINNING) == [(0, 2), (0, 3), (1, 4)]


def test_thirteen_words_are_needed_or_the_whole_of_a_short_entry(folder: Path) -> None:
    sets = EvaluationSets.read([folder])
    words = LONG.split()
    assert found(sets, " ".join(words[2:14])) == []
    assert found(sets, " ".join(words[2:15])) == [(0, 1)]
    assert found(sets, " ".join(TWELVE.split()[:11]), " ".join(TWELVE.split()[1:])) == []
    assert found(sets, SHORT.replace("and why", "or how")) == []
    assert found(sets, TINY) == []


def test_words_of_two_texts_are_no_run(folder: Path) -> None:
    sets = EvaluationSets.read([folder])
    words = LONG.split()
    assert found(sets, " ".join(words[:8]), " ".join(words[8:])) == []
    short = SHORT.split()
    assert found(sets, " ".join(short[:5]), " ".join(short[5:])) == []


def test_what_is_saved_finds_the_same(folder: Path, tmp_path: Path) -> None:
    sets = EvaluationSets.read([folder])
    sets.save(tmp_path / "saved")
    again = EvaluationSets.load(tmp_path / "saved")
    assert (again.files, again.num_entries) == (sets.files, sets.num_entries)
    texts = (f"x {LONG}", SHORT, "nothing")
    assert found(again, *texts) == found(sets, *texts) != []


def test_short_entries_alone_and_long_ones_alone(tmp_path: Path) -> None:
    for number, text in enumerate((SHORT, LONG)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "a.jsonl").write_text(json.dumps({"text": text}) + "\n")
        sets = EvaluationSets.read([folder])
        sets.save(folder / "saved")
        again = EvaluationSets.load(folder / "saved")
        assert found(sets, text, "none") == found(again, text, "none") == [(0, 0)]


def test_a_folder_without_entries_and_a_damaged_file_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "too short"}\n')
    with pytest.raises(DataError, match="no entry of 8 words or more"):
        EvaluationSets.read([tmp_path])
    (tmp_path / "b.jsonl").write_text('{"text": \n')
    with pytest.raises(DataError, match=r"b\.jsonl, line 1: not JSON"):
        EvaluationSets.read([tmp_path])


@given(
    highs=st.lists(st.integers(0, 3), max_size=60),
    lows=st.lists(st.integers(0, 5), min_size=60, max_size=60),
)
def test_hashes_are_ordered_as_by_argsort(highs: list[int], lows: list[int]) -> None:
    """Few values that differ in their lowest bits alone: what the shortcut has to mend."""
    pairs = zip(highs, lows, strict=False)
    hashes = np.array([(high << 40) + low for high, low in pairs], np.uint64)
    order = contamination._order(hashes)
    assert order.tolist() == np.argsort(hashes, kind="stable").tolist()

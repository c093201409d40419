"""The built-in tasks: their questions, their judges, their names."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from nanochat.common.errors import ConfigError, DataError
from nanochat.common.messages import Message, Part
from nanochat.corpus.world import held_out
from nanochat.corpus.world.held_out import CATEGORIES
from nanochat.evals.data import DataFiles
from nanochat.evals.task import Mode, Sample, Selection, Task
from nanochat.evals.tasks import BUILT_IN, GROUPS, named_tasks
from nanochat.evals.tasks.bits import BITS_PER_BYTE
from nanochat.evals.tasks.gsm8k import GSM8K, final_number, gsm8k_conversation, judge_number
from nanochat.evals.tasks.humaneval import HUMANEVAL
from nanochat.evals.tasks.lettered import ARC_EASY, MMLU, lettered_question
from nanochat.evals.tasks.spelling import (
    SIMPLE_SPELLING,
    SPELLING_BEE,
    judge_spelling,
    phrasings,
    simple_spelling_conversation,
    spelling_bee_conversation,
)
from nanochat.evals.tasks.world import WORLD, judge_held_out, world_sample
from tests.evals.bundle import write_bundle


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("data"))


def selection(folder: Path, limit: int | None = None, mode: Mode = "default") -> Selection:
    return Selection(source=DataFiles([folder]), limit=limit, mode=mode)


@pytest.mark.req("FR-038", "FR-041")
def test_the_letter_stands_behind_its_choice_without_a_blank(folder: Path) -> None:
    assert lettered_question("Why?", ["so", "no"], ["A", "B"]) == (
        "Multiple Choice question: Why?\n- so=A\n- no=B\n\n"
        "Respond only with the letter of the correct answer."
    )
    sample = MMLU.load(selection(folder, 1))[0]
    assert sample.choices == ("A", "B", "C", "D") and sample.extra == {"subject": "hues"}
    samples = ARC_EASY.load(selection(folder))
    assert {sample.gold for sample in samples} == {0} and samples[0].choices == ("A", "B", "C")


@pytest.mark.req("FR-041")
@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("mmlu/test.jsonl", '{"question": "?", "choices": ["a"], "answer": 0, "subject": "s"}',
         "answer 0 of 1 choices"),
        ("arc/ARC-Easy/test.jsonl", '{"question": "?", "choices": {}, "answerKey": "A"}',
         "without as many labels"),
        ("arc/ARC-Easy/test.jsonl",
         '{"question": "?", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "E"}',
         "'E' is none of"),
        ("gsm8k/test.jsonl", '{"question": "?", "answer": "12"}', "no number behind ####"),
    ],
)  # fmt: skip
def test_malformed_rows_are_named(tmp_path: Path, name: str, row: str, message: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    path.write_text(row + "\n")
    task = {"mmlu": MMLU, "arc": ARC_EASY, "gsm8k": GSM8K}[name.split("/")[0]]
    with pytest.raises(DataError, match=f"line 1: .*{message}"):
        task.load(selection(tmp_path))


@pytest.mark.req("FR-039")
@pytest.mark.parametrize(
    ("output", "is_right", "is_right_in_the_reference"),
    [
        ("so #### 1,234", True, True),
        ("#### 1234.", True, False),
        ("#### 1234.0", True, False),
        ("####1234", True, False),
        ("#### $1234", True, False),
        ("#### 12 and #### 1234", False, False),
        ("1234", False, False),
        ("#### -1234", False, False),
        ("#### .", False, False),
    ],
)
def test_the_number_behind_the_marks_is_compared(
    output: str, is_right: bool, is_right_in_the_reference: bool
) -> None:
    ours = Sample(sample_id="1", prompt="", gold="1234", extra={"mode": "default"})
    theirs = Sample(sample_id="1", prompt="", gold="1234", extra={"mode": "nanochat"})
    assert judge_number(ours, output).score == is_right
    assert judge_number(theirs, output).score == is_right_in_the_reference


@pytest.mark.req("FR-039")
def test_calculations_become_parts(folder: Path) -> None:
    question, answer = gsm8k_conversation("Q", "a <<1+2=3>>3 <<x>>\n#### 3")
    assert question == Message("user", "Q")
    assert answer.content == (
        Part("text", "a "),
        Part("python", "1+2"),
        Part("python_output", "3"),
        Part("text", "3 "),
        Part("python", "x"),
        Part("python_output", ""),
        Part("text", "\n#### 3"),
    )
    assert final_number("#### 1,000") == "1000" and final_number("none") is None
    assert {sample.gold for sample in GSM8K.load(selection(folder))} == {"3", "4", "5"}


@pytest.mark.req("FR-040")
def test_humaneval_brings_what_the_sandbox_judges_by(folder: Path) -> None:
    [sample] = HUMANEVAL.load(selection(folder))
    assert sample.extra["entry_point"] == "double"
    assert str(sample.extra["tests"]).endswith("check(double)")
    assert HUMANEVAL.runs_code and HUMANEVAL.tools


def test_spelling_has_as_many_phrasings_as_the_reference_and_its_dice() -> None:
    assert len(phrasings()) == 51
    assert all("{l}" in each and "{w}" in each for each in phrasings())
    words = ["strawberry"]
    conversations = [spelling_bee_conversation(words, seed) for seed in range(300)]
    assert conversations[7] == spelling_bee_conversation(words, 7)
    shares = Counter(str(question.content).endswith("?") for question, _ in conversations)
    assert 0.4 < shares[True] / 300 < 0.65
    for _, answer in conversations[:20]:
        parts = answer.content
        assert isinstance(parts, tuple)
        kinds = [part.kind for part in parts]
        assert kinds == ["text", "text", "python", "python_output", "text"]
        count = parts[3].text
        assert f"This gives us {count}." in parts[0].text
        assert parts[4].text.endswith(f"#### {count}")
        assert parts[0].text.count("hit!") == int(count)


def test_spelling_tasks_ask_of_the_list_of_words(folder: Path) -> None:
    bee = SPELLING_BEE.load(selection(folder, 9))
    assert len(bee) == 9 and len(SPELLING_BEE.load(selection(folder))) == 256
    assert all(str(sample.gold).isdigit() for sample in bee)
    question, answer = simple_spelling_conversation(["ox"], 3)
    assert (question.content, answer.content) == ("Spell the word: ox", "ox:o,x")
    sample = SIMPLE_SPELLING.load(selection(folder, 1))[0]
    assert judge_spelling(sample, f" {sample.gold}\n").score == 1.0
    assert judge_spelling(sample, "no").score == 0.0


def test_documents_are_the_samples_of_bits_per_byte(folder: Path) -> None:
    samples = BITS_PER_BYTE.load(selection(folder))
    assert [str(sample.prompt).strip() for sample in samples] == ["A short text.", "Another one."]
    assert len(BITS_PER_BYTE.load(selection(folder, 1))) == 1


@pytest.mark.req("FR-044")
def test_the_demo_and_the_task_ask_and_mark_alike(folder: Path) -> None:
    samples = WORLD.load(selection(folder))
    questions = held_out()
    assert len(samples) == len(questions)
    asked = sorted(samples, key=lambda sample: int(sample.sample_id))
    assert [sample.sample_id for sample in asked] == [f"{n + 1}" for n in range(len(questions))]
    assert [(sample.prompt, sample.gold) for sample in asked] == [
        (each.conversation, each.answer) for each in questions
    ]
    sample = world_sample(1, questions[0])
    assert judge_held_out(sample, f" {questions[0].answer} ").score == 1.0
    assert judge_held_out(sample, "no").explanation == f"expected {questions[0].answer}"
    assert 0 < WORLD.baseline < 0.5


@pytest.mark.req("FR-044")
def test_a_limit_asks_the_world_of_every_category(folder: Path) -> None:
    whole = WORLD.load(selection(folder))
    assert WORLD.load(selection(folder)) == whole
    for limit in (1, 36):
        assert WORLD.load(selection(folder, limit)) == whole[:limit]
    found = {sample.extra["category"] for sample in whole[:36]}
    assert found == set(CATEGORIES)


def test_tasks_are_named_by_name_glob_and_group() -> None:
    assert [task.name for task in named_tasks(["ARC-*,copa", "world"])] == [
        "copa", "ARC-Easy", "ARC-Challenge", "world",
    ]  # fmt: skip
    assert tuple(task.name for task in named_tasks(["core"])) == GROUPS["core"]
    assert len(GROUPS["core"]) == 22
    assert named_tasks(["all"]) == list(BUILT_IN)
    own = Task(name="own", version="1", kind="multiple_choice", load=lambda selection: [])
    assert named_tasks(["copa"], [own])[-1] is own
    for name in ("world", "copa", "core", "all", "own"):
        with pytest.raises(ConfigError, match=f"a task of your own is called '{name}', and so is"):
            named_tasks([], [own, replace(own, name=name)])
    with pytest.raises(ConfigError, match="no task is called 'arc': there are core, chatcore"):
        named_tasks(["arc"])

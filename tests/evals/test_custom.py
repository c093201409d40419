"""Tasks of one's own: four kinds of file, and every mistake answered with file, line and column."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nanochat.common.errors import ConfigError, DataError
from nanochat.common.messages import Message
from nanochat.evals.custom import TaskFileOptions, load_task
from nanochat.evals.questions import TaskSpec, ask, baseline_of, judge_of, samples_of
from nanochat.evals.table import read_table
from nanochat.evals.task import Sample, Selection, Task

pytestmark = pytest.mark.req("FR-044")

CAPITALS = [
    {"question": "The capital of France?", "choices": ["Paris", "Rome"], "answer": "Paris"},
    {"question": "The capital of Italy?", "choices": ["Paris", "Rome"], "answer": "B"},
    {"question": "The capital of Spain?", "choices": ["Oslo", "Bern", "Madrid"], "answer": 2},
]
ALL = Selection(source=SimpleNamespace())  # type: ignore[arg-type]
CHOICES = TaskSpec(kind="multiple-choice")
CODE = TaskSpec(kind="code")


def put(path: Path, rows: list[Any] | str) -> str:
    text = rows if isinstance(rows, str) else "".join(f"{json.dumps(row)}\n" for row in rows)
    path.write_text(text)
    return str(path)


def samples(task: Task) -> list[Sample]:
    """In the order of the file."""
    return sorted(task.load(ALL), key=lambda sample: int(sample.sample_id))


def test_choices_by_hand(tmp_path: Path) -> None:
    task = load_task(put(tmp_path / "capitals.jsonl", CAPITALS), CHOICES)
    assert (task.name, task.kind, task.judge) == ("capitals", "multiple_choice", None)
    assert task.baseline == pytest.approx((1 / 2 + 1 / 2 + 1 / 3) / 3)
    first, second, third = samples(task)
    assert first == Sample(
        sample_id="1",
        prompt="The capital of France?\nAnswer:",
        choices=(" Paris", " Rome"),
        gold=0,
    )
    assert (second.gold, third.gold, third.texts[2]) == (
        1, 2, "The capital of Spain?\nAnswer: Madrid",
    )  # fmt: skip
    assert "3 questions of capitals.jsonl, multiple-choice" in task.notes


def test_csv_with_a_column_for_each_choice_and_a_template(tmp_path: Path) -> None:
    path = put(
        tmp_path / "x.csv", "q,a,b,c,right,year\nWho?,I,you,they,they,1969\nWho?,1,2,3,0,1\n"
    )
    spec = replace(
        CHOICES, question="In {year}: {q}", choices="a, b,c", answer="right", delimiter=" "
    )
    one, two = samples(load_task(path, spec))
    assert one.prompt == "In 1969: Who?" and one.choices == (" I", " you", " they")
    assert (one.gold, two.gold) == (2, 0)  # "0" is no choice's text, so it is an index
    listed = put(tmp_path / "y.csv", 'question,choices,answer\nWho?,"[""I"", ""you""]",you\n')
    assert samples(load_task(listed, CHOICES))[0].gold == 1


def test_a_number_that_is_a_choice_is_the_choice(tmp_path: Path) -> None:
    row = {"question": "1 + 1?", "choices": ["1", "2"], "answer": "1"}
    assert samples(load_task(put(tmp_path / "x.jsonl", [row]), CHOICES))[0].gold == 0
    assert samples(load_task(put(tmp_path / "x.jsonl", [{**row, "answer": 1}]), CHOICES))[0].gold


def test_shots_are_other_questions_answered_and_do_not_depend_on_a_limit(tmp_path: Path) -> None:
    path = put(tmp_path / "capitals.jsonl", CAPITALS)
    task = load_task(path, replace(CHOICES, shots=2))
    first = samples(task)[0]
    assert first.prompt.endswith("\n\nThe capital of France?\nAnswer:")
    assert "The capital of Italy?\nAnswer: Rome\n\n" in str(first.prompt)
    assert "The capital of Spain?\nAnswer: Madrid\n\n" in str(first.prompt)
    limited = task.load(replace(ALL, limit=2))
    assert len(limited) == 2 and all(sample in task.load(ALL) for sample in limited)
    assert task.load(ALL) == load_task(path, replace(CHOICES, shots=2)).load(ALL)
    with pytest.raises(DataError, match="capitals.jsonl, line 3, .* lower --shots"):
        load_task(path, replace(CHOICES, shots=3))


WRITTEN = [{"question": "2 + 2?", "answer": 4}, {"question": "Who?", "answer": ["I", "me"]}]


@pytest.mark.parametrize(
    ("spec", "outputs"),
    [
        (TaskSpec(kind="exact-match"), {" 4.\n": 1, "It is 4": 0, "": 0}),
        (TaskSpec(kind="generative"), {"It is 4.": 1, "It is 42.": 0, "3.4": 1, "four": 0}),
        (TaskSpec(kind="regex", pattern=r"#### (\d+)"), {"so\n#### 4": 1, "#### 5": 0, "4": 0}),
        (TaskSpec(kind="regex", pattern=r"\d"), {"4 or 5": 1, "5 or 4": 0}),
        (TaskSpec(kind="regex"), {"It is 4": 1, "5": 0}),
    ],
)
def test_who_is_right(tmp_path: Path, spec: TaskSpec, outputs: dict[str, int]) -> None:
    task = load_task(put(tmp_path / "x.jsonl", WRITTEN), spec)
    assert task.kind == "generative" and task.judge is not None and task.baseline == 0
    first, second = samples(task)
    assert first.prompt == (Message("user", "2 + 2?"),) and first.gold == "4"
    assert second.extra == {"answers": ["I", "me"]}
    for output, score in outputs.items():
        judgement = task.judge(first, output)
        assert judgement.score == score, output
        assert bool(judgement.explanation) != bool(score)


def test_any_of_several_answers_and_what_the_system_says(tmp_path: Path) -> None:
    spec = TaskSpec(kind="exact-match", system="One word.", answer_tokens=9, calculator=True)
    task = load_task(put(tmp_path / "x.jsonl", WRITTEN), spec)
    second = samples(task)[1]
    assert second.prompt == ask("Who?", "One word.") != ask("Who?")
    assert task.judge is not None
    assert [task.judge(second, said).score for said in ("I", "ME!", "you")] == [1, 1, 0]
    assert (task.max_tokens, task.tools) == (9, True)


def test_numbers(tmp_path: Path) -> None:
    rows = [{"question": "?", "answer": "1,000"}, {"question": "?", "answer": "-2.5"}]
    task = load_task(put(tmp_path / "x.jsonl", rows), TaskSpec(kind="generative", match="number"))
    first, second = samples(task)
    assert task.judge is not None
    for said, score in (("5, so 1000.0", 1), ("$1,000.", 1), ("1000 or 5", 0), ("many", 0)):
        assert task.judge(first, said).score == score, said
    assert task.judge(second, "it is -2.50").score == 1
    rows[1]["answer"] = "two"
    with pytest.raises(DataError, match="line 2, column 'answer': 'two', expected a number"):
        load_task(put(tmp_path / "x.jsonl", rows), TaskSpec(kind="generative", match="number"))


def test_programs_are_given_to_the_sandbox(tmp_path: Path) -> None:
    rows = [
        {"question": "Write add(a, b).", "tests": "assert add(1, 2) == 3", "entry_point": "add"},
        {"question": "def f():\n    # one\n", "tests": "assert f() == 1", "entry_point": "f"},
    ]
    task = load_task(put(tmp_path / "x.jsonl", rows), CODE)
    assert (task.kind, task.runs_code, task.judge, task.baseline) == ("generative", True, None, 0)
    first, second = samples(task)
    assert first.prompt == ask("Write add(a, b).")
    assert first.extra == {"prompt": "", "entry_point": "add", "tests": "assert add(1, 2) == 3"}
    assert second.extra["prompt"] == rows[1]["question"]  # the beginning of the program


def test_toml_says_the_same_as_flags(tmp_path: Path) -> None:
    put(tmp_path / "capitals.jsonl", CAPITALS)
    toml = put(
        tmp_path / "t.toml",
        'name = "cities"\nfile = "capitals.jsonl"\nkind = "multiple-choice"\nshots = 1\n',
    )
    by_file = load_task(toml)
    by_flags = load_task(str(tmp_path / "capitals.jsonl"), replace(CHOICES, shots=1))
    assert by_file.load(ALL) == by_flags.load(ALL) and by_file.version == by_flags.version
    assert (by_file.name, by_flags.name) == ("cities", "capitals")


def test_a_version_changes_with_what_matters(tmp_path: Path) -> None:
    path = put(tmp_path / "capitals.jsonl", CAPITALS)
    options = TaskFileOptions(kind="multiple-choice", task_file=path)
    versions = [
        load_task(path, CHOICES).version,
        load_task(path, replace(CHOICES, delimiter=" ")).version,
        load_task(put(tmp_path / "capitals.jsonl", CAPITALS[:2]), CHOICES).version,
    ]
    assert len(set(versions)) == 3
    assert load_task(path, options).version == versions[2]  # where it lies does not


PYTHON = '''"""Words backwards."""
from nanochat.evals.questions import ask
from nanochat.evals.task import Judgement, Sample, Task

WORDS = ["level", "stone", "river"]


def load(selection):
    return [Sample(sample_id=word, prompt=ask(f"Spell {word} backwards."), gold=word[::-1])
            for word in WORDS]


def judge(sample, output):
    return Judgement(float(sample.gold in output.lower()), f"expected {sample.gold}")


TASK = Task(name="backwards", version="1", kind="generative", load=load, judge=judge)


def task():
    return TASK
'''


def test_python(tmp_path: Path) -> None:
    path = put(tmp_path / "backwards.py", PYTHON)
    for reference in (path, f"{path}:TASK", f"{path}:task"):
        task = load_task(reference)
        assert task.name == "backwards" and len(task.load(ALL)) == 3
        assert len(task.load(replace(ALL, limit=2))) == 2
    assert task.version.startswith("1+")
    assert load_task(put(tmp_path / "backwards.py", PYTHON + "\n")).version != task.version


BROKEN = PYTHON.replace('f"expected {sample.gold}"', "sample.goal")


def test_what_a_python_task_raises_is_said_with_its_line(tmp_path: Path) -> None:
    path = put(tmp_path / "broken.py", BROKEN)
    task = load_task(path)
    assert task.judge is not None
    with pytest.raises(DataError, match="broken.py, line 14: AttributeError: 'Sample' object"):
        task.judge(task.load(ALL)[0], "x")
    put(tmp_path / "broken.py", PYTHON.replace("word[::-1])", "word[9])"))
    with pytest.raises(DataError, match="broken.py, line 9: IndexError: string index out"):
        load_task(path).load(ALL)
    put(tmp_path / "broken.py", PYTHON.replace("return Judgement(", "return tuple((").replace(
        'expected {sample.gold}")', 'expected {sample.gold}"))'))  # fmt: skip
    judge = load_task(path).judge
    assert judge is not None
    with pytest.raises(DataError, match=r"judge gave \(.* for sample level, expected a nanochat"):
        judge(load_task(path).load(ALL)[0], "x")
    put(tmp_path / "broken.py", PYTHON.replace("return [Sample(", "return [dict("))
    with pytest.raises(DataError, match="load gave {.*expected nanochat.evals.task.Sample"):
        load_task(path).load(ALL)


def test_samples_with_one_id_and_scores_out_of_range_are_refused(tmp_path: Path) -> None:
    initials = PYTHON.replace("sample_id=word", "sample_id=word[0]")
    path = put(tmp_path / "own.py", initials.replace("stone", "lemon"))
    for limit in (None, 1):  # found whatever the limit
        with pytest.raises(DataError, match=r"own.py: load gave samples 1 and 2 the same sample_i"):
            load_task(path).load(replace(ALL, limit=limit))
    assert len(load_task(put(tmp_path / "own.py", initials)).load(ALL)) == 3
    for score in ("1.25", "-0.5", "float('nan')", "float('inf')"):
        put(tmp_path / "own.py", PYTHON.replace("float(sample.gold in output.lower())", score))
        task = load_task(path)
        assert task.judge is not None
        with pytest.raises(DataError, match="for sample level, expected .* a score from 0 to 1"):
            task.judge(task.load(ALL)[0], "x")
    for score in ("0", "1", "0.5"):
        put(tmp_path / "own.py", PYTHON.replace("float(sample.gold in output.lower())", score))
        task = load_task(path)
        assert task.judge is not None
        assert task.judge(task.load(ALL)[0], "x").score == float(score)


def test_flags_that_would_change_nothing_are_refused_by_name(tmp_path: Path) -> None:
    put(tmp_path / "capitals.jsonl", CAPITALS)
    toml = put(tmp_path / "t.toml", 'file = "capitals.jsonl"\nkind = "multiple-choice"\n')
    python = put(tmp_path / "p.py", PYTHON)
    assert load_task(toml, TaskFileOptions(task_file=toml)).name == "t"
    for path in (toml, python, f"{python}:TASK"):
        with pytest.raises(ConfigError, match="--kind, --shots would change nothing: [tp]"):
            load_task(path, TaskFileOptions(task_file=path, kind="multiple-choice", shots=2))
    with pytest.raises(ConfigError, match="pattern is 'x', which says nothing .* it is for regex"):
        TaskSpec(kind="generative", pattern="x")
    with pytest.raises(ConfigError, match="shots is 2, which says nothing about .* kind code"):
        TaskSpec(kind="code", shots=2)


MULTIPLE = '{"question": "?", "choices": ["a", "b"], "answer": "%s"}\n'


@pytest.mark.parametrize(
    ("name", "content", "spec", "message"),
    [
        ("x.jsonl", MULTIPLE % "c", CHOICES, "x.jsonl, line 1, column 'answer': .c., .*A to B"),
        ("x.jsonl", MULTIPLE % "2", CHOICES, "line 1, column 'answer': 2, expected one of"),
        ("x.jsonl", '{"question": "?", "answer": 0}', CHOICES, "column 'choices': not there"),
        ("x.jsonl", '{"question": "?", "choices": ["a"], "answer": 0}', CHOICES, "1 choices"),
        ("x.jsonl", '{"question": "?", "choices": "a", "answer": 0}', CHOICES, "--choices a,b,c"),
        ("x.csv", 'question,choices,answer\n?,"[a",0\n', CHOICES, "line 2, .*not a JSON list"),
        ("x.jsonl", MULTIPLE % "a", TaskSpec(), "--kind: no kind for x.jsonl, expected multiple-"),
        ("x.jsonl", '{"question": "?", "answer": []}', TaskSpec(kind="regex"), "expected texts"),
        ("x.jsonl", '{"question": "?", "answer": "("}', TaskSpec(kind="regex"), "line 1.*regular"),
        ("x.jsonl", '{"question": "?", "tests": "(", "entry_point": "f"}', CODE, "'tests': not Py"),
        ("x.jsonl", '{"question": "?", "tests": "1", "entry_point": "("}', CODE, "name of a func"),
        ("x.jsonl", '{"question": "?", "tests": "1"}', CODE, "column 'entry_point': not there"),
        ("x y.jsonl", MULTIPLE % "a", CHOICES, "'x y' cannot be the name of a task"),
        ("x.toml", "kind = \n", None, "x.toml is not TOML: .*line 1"),
        ("x.toml", b"\xff", None, "x.toml is not UTF-8 at byte 0"),
        ("x.toml", 'file = "a"\n\nknid = "regex"\n', None, "x.toml, line 3: .*'kind'"),
        ("x.toml", 'file = "a"\nshots = "2"\n', None, "x.toml, line 2: shots is '2', exp"),
        ("x.toml", 'kind = "regex"\n', None, "x.toml: expected a value for file"),
        ("x.toml", 'file = "a.jsonl"\n', None, "x.toml: no kind for a.jsonl"),
        ("x.py", "def task(:\n", None, "x.py, line 1, column 10: "),
        ("x.py", "import json\n\njson.loads('')\n", None, "x.py, line 3: JSONDecodeError"),
        ("x.py", "X = 1\n", None, "x.py has no TASK and no task"),
        ("x.py", "TASK = 1\n", None, "x.py: int, expected a nanochat.evals.task.Task"),
        ("x.txt", "", CHOICES, "x.txt: the suffix is unknown"),
    ],
)  # fmt: skip
def test_mistakes(
    tmp_path: Path, name: str, content: str | bytes, spec: TaskSpec | None, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises((DataError, ConfigError), match=message):
        load_task(str(path), spec)


def test_mistakes_in_flags(tmp_path: Path) -> None:
    for values, message in (
        ({"shots": -1}, "shots is -1"),
        ({"task_baseline": 1.0}, "task_baseline is 1.0"),
        ({"pattern": "["}, "pattern: '\\[' is no regular expression"),
    ):
        with pytest.raises(ConfigError, match=message):
            TaskSpec(**values)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="absent.jsonl does not exist"):
        load_task(str(tmp_path / "absent.jsonl"))


def test_the_parts_alone(tmp_path: Path) -> None:
    rows = read_table(Path(put(tmp_path / "x.jsonl", CAPITALS)))
    found = samples_of(CHOICES, rows)
    assert [sample.sample_id for sample in found] == ["1", "2", "3"]
    assert baseline_of(replace(CHOICES, task_baseline=0.1), found) == 0.1
    assert judge_of(CHOICES) is None

"""Rows -> questions, and who marks them.   in: TableRow, TaskSpec   out: Sample, Judge
who calls: custom.py   (imports no torch)

Read next: custom.py (which files), marking.py (who is right).
"""

import ast
import dataclasses
import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nanochat.common.errors import ConfigError
from nanochat.common.messages import Conversation, Message
from nanochat.evals.marking import mark_contains, mark_exact, mark_number, pattern_judge
from nanochat.evals.table import TableRow
from nanochat.evals.task import Judge, Sample

__all__ = [
    "CustomKind",
    "TaskSpec",
    "ask",
    "baseline_of",
    "judge_of",
    "samples_of",
    "told_flags",
]

CustomKind = Literal["multiple-choice", "exact-match", "regex", "generative", "code"]
EXAMPLES_SEED = 1234  # as in CORE
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CHOSEN: tuple[CustomKind, ...] = ("multiple-choice",)
WRITTEN: tuple[CustomKind, ...] = ("exact-match", "regex", "generative", "code")
KINDS_OF: dict[str, tuple[CustomKind, ...]] = {
    "choices": CHOSEN, "delimiter": CHOSEN, "shots": CHOSEN,
    "answer": ("multiple-choice", "exact-match", "regex", "generative"),
    "pattern": ("regex",), "match": ("generative",),
    "code_tests": ("code",), "entry_point": ("code",),
    "system": WRITTEN, "answer_tokens": WRITTEN, "calculator": WRITTEN,
}  # fmt: skip
"""Which kinds a setting says anything about; one that is not here, about all."""


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """What the columns of a file are, and how an answer is judged."""

    kind: CustomKind | None = None
    """With --task-file: multiple-choice takes the likeliest choice; exact-match, regex, generative
    and code judge what is written."""
    question: str = "question"
    """Column with the question, or a text with {columns} in it: 'Q: {question}'."""
    choices: str = "choices"
    """multiple-choice: column with the list of choices, or their columns: a,b,c,d."""
    answer: str = "answer"
    """Column with the right answer: of choices the text, the letter or the index from 0; else a
    text, or a list of texts that are all right."""
    delimiter: str = "\nAnswer: "
    """multiple-choice: what stands between question and choice."""
    shots: int = 0
    """multiple-choice: so many other questions of the file, answered, stand before each."""
    pattern: str | None = None
    """regex: its first match in what is written, or that match's first group, is compared with the
    answer. None: the answer is a pattern, and has to be found."""
    match: Literal["contains", "number"] = "contains"
    """generative: the answer has to stand in what is written, or be the last number of it."""
    code_tests: str = "tests"
    """code: column with Python that raises (assert ...) where the program written is wrong."""
    entry_point: str = "entry_point"
    """code: column with the name of the function that is wanted."""
    system: str | None = None
    """What the system says before each question that is answered in writing."""
    answer_tokens: int = 256
    """Most tokens of a written answer."""
    calculator: bool = False
    """Whether a written answer may use the calculator."""
    task_baseline: float | None = None
    """What guessing gets, 0 to 1. None: one in the number of choices, else 0."""

    def __post_init__(self) -> None:
        if self.shots < 0 or self.answer_tokens < 1:
            raise ConfigError(
                f"shots is {self.shots} and answer_tokens is {self.answer_tokens}, expected at "
                "least 0 and 1"
            )
        if self.task_baseline is not None and not 0 <= self.task_baseline < 1:
            raise ConfigError(f"task_baseline is {self.task_baseline}, expected 0 to below 1")
        if self.pattern is not None:
            _checked_pattern(self.pattern, "pattern")
        for name in _told(self):
            if self.kind is not None and self.kind not in KINDS_OF.get(name, (self.kind,)):
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r:.40}, which says nothing about a task of "
                    f"kind {self.kind}: it is for {', '.join(KINDS_OF[name])}"
                )


def told_flags(spec: TaskSpec) -> list[str]:
    """The flags about a file of questions that are not at their default."""
    return [f"--{name.replace('_', '-')}" for name in _told(spec)]


def _told(spec: TaskSpec) -> list[str]:
    return [
        field.name
        for field in dataclasses.fields(TaskSpec)
        if getattr(spec, field.name) != field.default
    ]


def samples_of(spec: TaskSpec, rows: Sequence[TableRow]) -> list[Sample]:
    """One question a row, in the order of the file.

    Raises: DataError naming file, line and column of what is missing or does not fit.
    """
    if spec.kind == "multiple-choice":
        return _with_choices(spec, rows)
    return [(_program if spec.kind == "code" else _written)(spec, row) for row in rows]


def judge_of(spec: TaskSpec) -> Judge | None:
    """Who marks what is written; None where a choice is taken, or a program is run."""
    if spec.kind in ("multiple-choice", "code"):
        return None
    if spec.kind == "exact-match":
        return mark_exact
    if spec.kind == "regex":
        return pattern_judge(spec.pattern)
    return mark_number if spec.match == "number" else mark_contains


def baseline_of(spec: TaskSpec, samples: Sequence[Sample]) -> float:
    """What guessing gets, as told or one in the number of choices."""
    if spec.task_baseline is not None:
        return spec.task_baseline
    if spec.kind != "multiple-choice":
        return 0.0
    return sum(1 / len(sample.choices) for sample in samples) / len(samples)


def ask(question: str, system: str | None = None) -> Conversation:
    """The conversation that a written answer follows."""
    asked = Message("user", question)
    return (asked,) if system is None else (Message("system", system), asked)


# -------------------------------------------------------------------------------------- choices


def _with_choices(spec: TaskSpec, rows: Sequence[TableRow]) -> list[Sample]:
    """The examples before a question depend on nothing but the file, not on a limit.

    A blank before a choice is part of the choice: in most vocabularies it is part of its first
    token too, and what is scored must not depend on whether it is.
    """
    queries = [f"{row.fill(spec.question)}{spec.delimiter.rstrip(' ')}" for row in rows]
    blank = spec.delimiter[len(spec.delimiter.rstrip(" ")) :]
    choices = [_choices(spec, row) for row in rows]
    golds = [_gold(spec, row, each) for row, each in zip(rows, choices, strict=True)]
    if spec.shots >= len(rows):
        raise rows[-1].error(
            spec.question, f"{spec.shots} shots need more than {spec.shots} rows: lower --shots"
        )
    answered = [
        f"{query}{blank}{each[gold]}\n\n"
        for query, each, gold in zip(queries, choices, golds, strict=True)
    ]
    return [
        Sample(
            sample_id=str(row.line),
            prompt=f"{_examples(spec.shots, index, answered)}{queries[index]}",
            choices=tuple(f"{blank}{choice}" for choice in choices[index]),
            gold=golds[index],
        )
        for index, row in enumerate(rows)
    ]


def _examples(shots: int, index: int, answered: Sequence[str]) -> str:
    others = [other for other in range(len(answered)) if other != index] if shots else []
    drawn = random.Random(EXAMPLES_SEED + index).sample(others, shots)
    return "".join(answered[other] for other in drawn)


def _choices(spec: TaskSpec, row: TableRow) -> tuple[str, ...]:
    columns = [column.strip() for column in spec.choices.split(",")]
    if len(columns) > 1:
        return tuple(row.text(column) for column in columns)
    found = row.value(spec.choices)
    if isinstance(found, str) and found.lstrip().startswith("["):  # a list inside a CSV cell
        try:
            found = json.loads(found)
        except ValueError as error:
            raise row.error(spec.choices, f"not a JSON list ({error})") from None
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise row.error(
            spec.choices,
            f"{json.dumps(found)[:60]}, expected a list of texts, or name a column for each "
            "choice: --choices a,b,c",
        )
    if len(found) < 2:
        raise row.error(spec.choices, f"{len(found)} choices, expected at least two")
    return tuple(found)


def _gold(spec: TaskSpec, row: TableRow, choices: Sequence[str]) -> int:
    """The text of a choice, else its letter, else its index from 0; a number is an index."""
    value = row.value(spec.answer)
    if isinstance(value, str):
        said = value.strip()
        texts = [choice.strip() for choice in choices]
        if said in texts:
            return texts.index(said)
        if said in LETTERS[: len(choices)] and len(said) == 1:
            return LETTERS.index(said)
        value = int(said) if re.fullmatch(r"\d+", said) else value
    if type(value) is int and 0 <= value < len(choices):
        return value
    raise row.error(
        spec.answer,
        f"{json.dumps(value)[:60]}, expected one of the {len(choices)} choices as text, a letter "
        f"A to {LETTERS[: len(choices)][-1]}, or an index from 0 to {len(choices) - 1}",
    )


def _written(spec: TaskSpec, row: TableRow) -> Sample:
    answers = _answers(spec, row)
    return Sample(
        sample_id=str(row.line),
        prompt=ask(row.fill(spec.question), spec.system),
        gold=answers[0],
        extra={"answers": answers} if len(answers) > 1 else {},
    )


def _program(spec: TaskSpec, row: TableRow) -> Sample:
    """What code.py judges by."""
    question, name = row.fill(spec.question), row.text(spec.entry_point)
    if not name.isidentifier():
        raise row.error(spec.entry_point, f"{name!r:.60}, expected the name of a function")
    tests = row.text(spec.code_tests)
    try:
        ast.parse(tests)
    except (SyntaxError, ValueError) as error:
        raise row.error(spec.code_tests, f"not Python ({error})") from None
    is_program = re.search(rf"^def {name}\b", question, re.MULTILINE) is not None
    return Sample(
        sample_id=str(row.line),
        prompt=ask(question, spec.system),
        gold="",
        extra={"prompt": question if is_program else "", "entry_point": name, "tests": tests},
    )


def _answers(spec: TaskSpec, row: TableRow) -> list[str]:
    """One, or all of a list; checked for what their kind needs."""
    found = row.value(spec.answer)
    if isinstance(found, list):
        answers = [row_text for each in found if (row_text := _plain_text(each))]
        if not answers or len(answers) < len(found):
            raise row.error(spec.answer, f"{json.dumps(found)[:60]}, expected texts")
    else:
        answers = [row.text(spec.answer)]
    if spec.kind == "regex" and spec.pattern is None:
        for answer in answers:
            _checked_pattern(answer, f"{row.path}, line {row.line}, column {spec.answer!r}")
    if spec.kind == "generative" and spec.match == "number":
        for answer in answers:
            if not re.search(r"\d", answer):
                raise row.error(spec.answer, f"{answer!r:.60}, expected a number")
    return answers


def _plain_text(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return json.dumps(value)
    return value if isinstance(value, str) and value.strip() else ""


def _checked_pattern(pattern: str, where: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{where}: {pattern!r:.60} is no regular expression: {error}") from None

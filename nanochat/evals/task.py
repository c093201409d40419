"""What is asked of a model, and what came of it.   in: nothing   out: Task, Sample, Verdict
who calls: evals, cli, train   (imports no torch)

A task says what to ask and who is right; how a model is asked is the runner's affair.  Six kinds:

    multiple_choice    the likeliest of several endings of one text
    schema             the likeliest of several beginnings, judged by the ending they share
    language_modeling  whether the model would write exactly this continuation
    letter_choice      a question with lettered answers: the likeliest letter of a chat answer
    generative         what the model writes, judged by a function
    bits_per_byte      how well documents are predicted
To add a task without Python see custom.py; with Python: a function that makes samples, and a Task.
Read next: results.py (verdicts on disk), runner.py (who asks), tasks/ (the built-in ones).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from nanochat.common.errors import EvalError
from nanochat.common.messages import Conversation

__all__ = [
    "TIMEOUT",
    "Judge",
    "Judgement",
    "Kind",
    "Mode",
    "Sample",
    "Selection",
    "Source",
    "Task",
    "Verdict",
]

Kind = Literal[
    "multiple_choice", "schema", "language_modeling", "letter_choice", "generative", "bits_per_byte"
]
Mode = Literal["default", "nanochat"]
"""nanochat: the procedure of karpathy/nanochat bit by bit, its defects included."""


TIMEOUT = "timeout"
"""The flag of a verdict that a less busy machine may not repeat."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One question.

    What is scored of a likelihood kind are the texts `prompt + choice + ending`.
    """

    sample_id: str
    """Unique within its task and the same in every run."""
    prompt: str | Conversation
    """Examples included.  A conversation for letter_choice and generative."""
    choices: tuple[str, ...] = ()
    """multiple_choice: endings; schema: beginnings; language_modeling: the one continuation;
    letter_choice: the letters."""
    ending: str = ""
    """schema: what every text ends with."""
    gold: int | str = 0
    """Index of the right choice, or what a judge compares with."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What a judge or a report needs besides, as JSON has it."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The whole texts, one for each choice."""
        if not isinstance(self.prompt, str):
            raise EvalError(f"sample {self.sample_id} is a conversation, expected a text")
        return tuple(f"{self.prompt}{choice}{self.ending}" for choice in self.choices)


class Judgement(NamedTuple):
    """What a judge says of one answer."""

    score: float
    """1 right, 0 wrong, or a share between."""
    explanation: str = ""
    """Why, in a few words; shown beside failures."""
    is_final: bool = True
    """False where time ran out: the next run judges again."""


Judge = Callable[[Sample, str], Judgement]


class Source(Protocol):
    """Where a task finds its files; data.py has it."""

    def rows(
        self,
        path: str,
        *,
        limit: int | None = None,
        order: Callable[[int], Sequence[int]] | None = None,
    ) -> list[Any]:
        """The first rows of a JSONL file, in this order (None: the file's own); see data.Row."""

    def words(self, path: str) -> list[str]:
        """The lines of a text file that are not empty, stripped."""

    def folder(self, path: str) -> Path:
        """A folder of data."""

    def note(self, name: str, path: Path) -> None:
        """Remember that a file of such a folder was read."""

    def apart(self) -> "Source":
        """The same files; what is read of them from here is noted apart."""

    @property
    def sha256(self) -> Mapping[str, str]:
        """Of what has been read, by its name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """Which samples of a task are wanted, and how they are prepared."""

    source: Source
    limit: int | None = None
    """The first so many after the task's own shuffle.  None: all."""
    mode: Mode = "default"


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One examination."""

    name: str
    """Its label in results, and what --tasks matches."""
    version: str
    """Changes whenever samples, prompt or judgement do: results of two versions are not alike."""
    kind: Kind
    load: Callable[[Selection], Sequence[Sample]]
    """The samples.  Raises DataError naming file and line, which fails this task alone."""
    baseline: float = 0.0
    """What guessing gets, 0 to 1: the zero of the centred accuracy."""
    judge: Judge | None = None
    """Who marks what was written; generative tasks have one, unless they run code."""
    max_tokens: int = 512
    """Most tokens of a written answer."""
    stop: tuple[str, ...] = ()
    """A written answer ends before any of these."""
    tools: bool = False
    """Whether the model may use the calculator."""
    runs_code: bool = False
    """Whether what is written is a program, run in the sandbox and judged by code.py: `extra` of a
    sample has `tests`, and may have `prompt` and `entry_point` (see CodeProblem)."""
    notes: tuple[str, ...] = ()
    """What a reader of its numbers should know."""

    def __post_init__(self) -> None:
        if self.kind == "generative" and self.judge is None and not self.runs_code:
            raise EvalError(f"task {self.name} is generative and has no judge: give it one")
        if not 0 <= self.baseline < 1:
            raise EvalError(f"task {self.name} has baseline {self.baseline}, expected 0 to below 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What came of one sample."""

    sample_id: str
    score: float
    """1 right, 0 wrong; with several answers the share that is right.  bits_per_byte: bits."""
    output: str | None = None
    """What was written, or the choice that won; with several answers the first."""
    choice: int | None = None
    """Index of the choice that won."""
    choice_logprobs: tuple[float, ...] = ()
    """Of each choice the sum over its scored tokens, nats."""
    choice_tokens: tuple[int, ...] = ()
    """How many tokens were scored of each choice."""
    explanation: str = ""
    outputs: tuple[str, ...] = ()
    """All answers, where several were asked for."""
    scores: tuple[float, ...] = ()
    """Theirs."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Numbers that a reader may check, as JSON has it: mean losses, tokens."""

    @property
    def is_correct(self) -> bool:
        """Whether all of it is right."""
        return self.score >= 1.0

    @property
    def is_final(self) -> bool:
        """Whether judging again could come to nothing else: no program ran out of time."""
        return TIMEOUT not in self.details.get("flags", ())

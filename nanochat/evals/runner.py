"""Tasks -> results.   in: an Examinee, tasks, options   out: TaskResult by label
who calls: cli/eval.py, train (through cli), bench

    samples -> chunks -> the processes take turns -> verdicts, each kept at once -> TaskResult

A chunk of likelihoods is what is computed together.  Chunks depend on the samples alone, not on
the number of processes or on what a killed run left, so that the numbers do not either.  Answers
are written by the process they fall to, a share each, in the engine's own batches: a token depends
on its row's logits, the seed and the step, and logits agree within 1e-4 in any batch, in float32
(docs/engine.md), so that answers are the same unless two tokens are as close as that.
A task whose data is missing or malformed, or whose own code fails, fails alone; what could fail is
looked at before the first question is asked.
Read next: examinee.py (who answers), judging.py (who judges), cache.py (what is kept).
"""

import contextlib
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from nanochat import __version__
from nanochat.common.env import is_debug
from nanochat.common.errors import ConfigError, EvalError, NanochatError, SandboxError
from nanochat.evals.cache import Journal, digest_of, prune
from nanochat.evals.examinee import Asking, Examinee
from nanochat.evals.judging import judge_of, judged, pass_at
from nanochat.evals.records import SampleRecord
from nanochat.evals.results import TaskResult
from nanochat.evals.scorers import FLAGS
from nanochat.evals.task import Mode, Sample, Selection, Source, Task, Verdict

if TYPE_CHECKING:
    from nanochat.common.sandbox.box import Sandbox

__all__ = [
    "Processes",
    "Reporter",
    "RunOptions",
    "run_tasks",
    "settings_of",
]

CHUNK_SAMPLES = 256  # at most, however short they are
# Raised whenever questions of a task's own version come to another verdict by our own procedure:
# how prompts are laid out and cut, scored, stopped, marked, and how programs are run (questions.py,
# scorers.py, examinee.py, remote.py, judging.py, marking.py, code.py).  What was kept before is
# then asked again.
PROCEDURE = 1
SERVICE_S = 86_400.0  # for so long a stopped run takes a name at an address for the same model
CHARACTERS_PER_TOKEN = 3  # roughly; only the size of chunks depends on it

T = TypeVar("T")


class Processes(Protocol):
    """What is needed of several processes: common/dist.py's World has it."""

    @property
    def rank(self) -> int:
        """Which this is."""

    @property
    def size(self) -> int:
        """How many there are."""

    def largest(self, number: int) -> int:
        """The largest of all processes' numbers, once all are here."""


class Reporter(Protocol):
    """Who is told how far it is; progress.py has one."""

    def start(self, label: str, num_samples: int, num_known: int) -> None:
        """A task begins; some of its samples may be known from an earlier run."""

    def advance(self, num_samples: int) -> None:
        """So many more are judged, by this process."""

    def finish(self, result: TaskResult) -> None:
        """A task is done."""

    def close(self) -> None:
        """Nothing more will be told: all is done, or the run was broken off."""


@dataclass(frozen=True, slots=True)
class _Alone:
    rank: int = 0
    size: int = 1

    def largest(self, number: int) -> int:
        """This process's own."""
        return number


class _Silent:
    def start(self, label: str, num_samples: int, num_known: int) -> None:
        """Say nothing."""

    def advance(self, num_samples: int) -> None:
        """Say nothing."""

    def finish(self, result: TaskResult) -> None:
        """Say nothing."""

    def close(self) -> None:
        """There was nothing to see."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """How tasks are run.

    Raises: ConfigError for values out of range.
    """

    source: Source
    limit: int | None = None
    mode: Mode = "default"
    num_samples: int = 1
    """Answers to each question of a generative task."""
    temperature: float = 0.0
    top_k: int | None = 50
    seed: int = 0
    max_tokens: int | None = None
    """Most tokens of an answer.  None: what each task says."""
    keep: Path | None = None
    """The folder of the journal.  None: verdicts live in this process alone."""
    processes: Processes = _Alone()
    reporter: Reporter = field(default_factory=_Silent)
    open_sandbox: Callable[[], "Sandbox"] | None = None
    """Called before the first question where a task runs code; raises SandboxError where that may
    not be done.  None: the default sandbox."""
    unsafe_code: bool = False
    """Whether that sandbox may lack walls; part of the settings."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit is {self.limit}, expected at least 1")
        if self.num_samples > 1 and self.temperature == 0:
            raise ConfigError(
                f"samples is {self.num_samples} at temperature 0, where all are alike: expected a "
                "temperature above 0, such as --temperature 0.8"
            )
        if self.processes.size > 1 and self.keep is None:
            raise EvalError(f"{self.processes.size} processes share no folder: pass one to keep")


def run_tasks(
    examinee: Examinee, tasks: Sequence[Task], options: RunOptions
) -> dict[str, TaskResult]:
    """The result of each task, by label; one that failed says why."""
    if options.keep is not None and options.processes.rank == 0:
        prune(options.keep)
    with contextlib.ExitStack() as stack:
        stack.callback(options.reporter.close)
        sandbox: Sandbox | SandboxError | None = None
        if any(task.runs_code for task in tasks):
            try:
                sandbox = stack.enter_context((options.open_sandbox or _default_sandbox)())
            except (OSError, SandboxError) as error:
                sandbox = SandboxError(str(error))
        results = {task.name: _run(examinee, task, options, sandbox) for task in tasks}
    if not examinee.model_hash:  # what a stopped run goes on with; the next one asks anew
        for task in tasks:
            if results[task.name].is_scored:
                _journal(examinee, task, _asking(task, options), options, sandbox).forget()
    return results


def settings_of(examinee: Examinee, options: RunOptions) -> dict[str, Any]:
    """What a result says of how it was made; two are compared where all that is not the model's
    own agrees."""
    return {
        "nanochat": __version__,
        "model_sha256": examinee.model_hash,
        **examinee.settings,
        "limit": options.limit,
        "samples": options.num_samples,
        "temperature": options.temperature,
        "top_k": options.top_k,
        "max_tokens": options.max_tokens,
        "seed": options.seed,
        "unsafe_code": options.unsafe_code,
    }


def _default_sandbox() -> "Sandbox":
    from nanochat.common.sandbox.box import Sandbox

    return Sandbox()


# ---------------------------------------------------------------------------------- one task


def _run(
    examinee: Examinee, task: Task, options: RunOptions, sandbox: "Sandbox | SandboxError | None"
) -> TaskResult:
    start_s = time.monotonic()
    empty = TaskResult(
        label=task.name, version=task.version, kind=task.kind, baseline=task.baseline
    )
    options = replace(options, source=options.source.apart())
    try:
        task, samples = _agreed(task, options.processes, lambda: _opened(task, options, sandbox))
        verdicts = _verdicts(examinee, task, samples, options, sandbox)
    except EvalError as error:
        result = replace(empty, error=str(error))
    else:
        records = tuple(
            SampleRecord(task=task.name, sample=sample, verdict=verdict)
            for sample, verdict in zip(samples, verdicts, strict=True)
        )
        result = replace(
            empty,
            records=records,
            pass_at=pass_at(verdicts, options.num_samples),
            data_sha256=dict(options.source.sha256),
            notes=(*task.notes, *_flag_notes(records)),
        )
    result = replace(result, seconds=time.monotonic() - start_s)
    options.reporter.finish(result)
    return result


def _opened(
    task: Task, options: RunOptions, sandbox: "Sandbox | SandboxError | None"
) -> tuple[Task, Sequence[Sample]]:
    """The task with its judge, and its questions."""
    judge = judge_of(task, options.mode, sandbox)
    samples = task.load(Selection(source=options.source, limit=options.limit, mode=options.mode))
    if not samples:
        raise EvalError(f"{task.name} has no samples")
    return replace(task, judge=judge), samples


def _agreed(task: Task, processes: Processes, work: Callable[[], T]) -> T:
    """What comes of `work` here, once it has come to its end in all processes.

    Raises: EvalError where it failed in any, whatever it raised: one task's code must not end the
            others.
    """
    done: list[T] = []
    problem: Exception | None = None
    try:
        done.append(work())
    except Exception as error:
        problem = error
        if not isinstance(error, NanochatError) and is_debug():
            traceback.print_exception(error)
    if processes.largest(int(problem is not None)):
        if problem is None:
            raise EvalError(f"{task.name} failed in another process")
        raise EvalError(_told(problem)) from problem
    return done[0]


def _told(error: Exception) -> str:
    """A user's mistake in its own words; what nobody expected with the line it came from."""
    if isinstance(error, NanochatError):
        return str(error)
    *_, last = traceback.extract_tb(error.__traceback__)
    return (
        f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno}; "
        "NANOCHAT_LOG=debug shows how it came to this)"
    )


def _verdicts(
    examinee: Examinee,
    task: Task,
    samples: Sequence[Sample],
    options: RunOptions,
    sandbox: "Sandbox | SandboxError | None",
) -> list[Verdict]:
    """The verdicts on all samples, whichever process gave them."""
    asking = _asking(task, options)
    processes = options.processes
    journal = _journal(examinee, task, asking, options, sandbox)
    digests = _agreed(task, processes, lambda: [digest_of(sample) for sample in samples])
    read = _agreed(task, processes, lambda: journal.known(samples))  # before anybody writes
    known = {digest: verdict for digest, verdict in read.items() if verdict.is_final}
    options.reporter.start(task.name, len(samples), sum(digest in known for digest in digests))

    def ask() -> None:
        for chunk in _own_chunks(samples, examinee.chunk_tokens, task, processes):
            missing = [sample for sample in chunk if digest_of(sample) not in known]
            if not missing:
                continue
            # A likelihood depends on its chunk by a rounding, so a chunk is computed as a whole.
            asked = missing if task.kind == "generative" else chunk
            for sample, verdict in judged(examinee, task, asked, asking):
                journal.add(sample, verdict)
                options.reporter.advance(1)

    try:
        _agreed(task, processes, ask)
    finally:
        journal.close()
    found = _agreed(task, processes, lambda: {**known, **journal.known(samples)})
    num_missing = sum(digest not in found for digest in digests)
    if num_missing:
        raise EvalError(
            f"{task.name}: {num_missing} verdicts of other processes are not in {journal.folder}: "
            "expected a folder that all of them see"
        )
    return [found[digest] for digest in digests]


def _journal(
    examinee: Examinee,
    task: Task,
    asking: Asking,
    options: RunOptions,
    sandbox: "Sandbox | SandboxError | None",
) -> Journal:
    """Where the verdicts of a task are kept, if it is known whose they are."""
    is_known = bool(examinee.model_hash or examinee.service)
    return Journal(
        options.keep if is_known else None,
        _key(examinee, task, asking, sandbox),
        most_age_s=None if examinee.model_hash else SERVICE_S,
    )


def _own_chunks(
    samples: Sequence[Sample], chunk_tokens: int, task: Task, processes: Processes
) -> Iterator[Sequence[Sample]]:
    """What this process computes, by what is computed together."""
    if task.kind == "generative":  # the engine batches them as they come
        yield samples[processes.rank :: processes.size]
        return
    for number, chunk in enumerate(_chunks(samples, chunk_tokens)):
        if number % processes.size == processes.rank:
            yield chunk


def _chunks(samples: Sequence[Sample], chunk_tokens: int) -> Iterator[Sequence[Sample]]:
    chunk: list[Sample] = []
    num_characters = 0
    for sample in samples:
        prompt = sample.prompt
        length = len(prompt) if isinstance(prompt, str) else len(str(prompt))
        length += sum(map(len, sample.choices)) + len(sample.ending)
        is_full = num_characters + length > CHARACTERS_PER_TOKEN * chunk_tokens
        if chunk and (is_full or len(chunk) == CHUNK_SAMPLES):
            yield chunk
            chunk, num_characters = [], 0
        chunk.append(sample)
        num_characters += length
    yield chunk


def _asking(task: Task, options: RunOptions) -> Asking:
    return Asking(
        max_tokens=options.max_tokens or task.max_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        seed=options.seed,
        num_samples=options.num_samples,
        stop=task.stop,
        tools=task.tools,
        mode=options.mode,
    )


def _key(
    examinee: Examinee, task: Task, asking: Asking, sandbox: "Sandbox | SandboxError | None"
) -> Mapping[str, Any]:
    """Everything that decides a verdict but the sample itself."""
    key: dict[str, Any] = {
        "procedure": PROCEDURE,
        "model": examinee.model_hash or examinee.service,
        **examinee.settings,
        "task": task.name,
        "version": task.version,
        "kind": task.kind,
        "mode": asking.mode,
    }
    if task.kind == "generative":
        key |= {
            "max_tokens": asking.max_tokens,
            "temperature": asking.temperature,
            "top_k": asking.top_k,
            "seed": asking.seed,
            "num_samples": asking.num_samples,
            "stop": list(asking.stop),
            "tools": asking.tools,
        }
    if task.runs_code and not (sandbox is None or isinstance(sandbox, SandboxError)):
        key |= {"sandbox": sandbox.driver, "unsafe_code": sandbox.is_unsafe}
    return key


def _flag_notes(records: Sequence[SampleRecord]) -> list[str]:
    """What is particular about some samples, or about how they were answered, counted."""
    counts = Counter(
        flag
        for each in records
        for about in (each.sample.extra, each.verdict.details)
        for flag in about.get("flags", ())
    )
    return [f"{counts[flag]} of {len(records)}: {FLAGS[flag]}" for flag in FLAGS if counts[flag]]

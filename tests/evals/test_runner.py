"""The runner: what is asked, kept, shared among processes, and told."""

import hashlib
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from nanochat.common.errors import ConfigError, EvalError, SandboxError
from nanochat.common.messages import Message
from nanochat.common.sandbox.box import CheckedOutcome
from nanochat.common.sandbox.limits import Outcome
from nanochat.engine.engine import Engine
from nanochat.evals import runner
from nanochat.evals.cache import Journal, digest_of, prune
from nanochat.evals.data import DataFiles
from nanochat.evals.examinee import Asking, EngineExaminee
from nanochat.evals.judging import pass_at_k
from nanochat.evals.results import TaskResult
from nanochat.evals.runner import RunOptions, run_tasks
from nanochat.evals.task import Judgement, Kind, Mode, Sample, Selection, Task, Verdict
from nanochat.evals.tasks.bits import BITS_PER_BYTE
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.engine.conftest import random_model
from tests.evals.bundle import write_rows

SOURCE = DataFiles([])
T = TypeVar("T")


@dataclass
class Counting:
    """Is right about even samples; remembers what it was asked."""

    name: str = "counting"
    model_hash: str = "abc"
    service: str = ""
    settings: dict[str, str] = field(default_factory=dict)
    chunk_tokens: int = 40
    asked: list[list[str]] = field(default_factory=list)
    fails_after: int | None = None

    def likelihoods(self, samples: Sequence[Sample], kind: Kind, mode: Mode) -> list[Verdict]:
        if self.fails_after is not None and len(self.asked) >= self.fails_after:
            raise KeyboardInterrupt
        self.asked.append([sample.sample_id for sample in samples])
        return [
            Verdict(sample_id=each.sample_id, score=float(int(each.sample_id) % 2 == 0))
            for each in samples
        ]

    def answers(
        self, samples: Sequence[Sample], asking: Asking
    ) -> Iterator[tuple[int, tuple[str, ...]]]:
        self.asked.append([sample.sample_id for sample in samples])
        for index in reversed(range(len(samples))):
            yield index, tuple(f"{(index + k) % 3}" for k in range(asking.num_samples))


def choices(count: int = 20) -> Task:
    samples = [
        Sample(sample_id=f"{n}", prompt="ten chars " * 4, choices=("a", "b")) for n in range(count)
    ]
    return Task(
        name="choices", version="1", kind="multiple_choice", load=lambda s: samples[: s.limit]
    )


def written(**fields: object) -> Task:
    def judge(sample: Sample, output: str) -> Judgement:
        return Judgement(float(output == sample.gold), f"said {output}")

    samples = [Sample(sample_id=f"{n}", prompt=(Message("user", "?"),), gold="0") for n in range(6)]
    return Task(
        name="written", version="1", kind="generative", load=lambda s: samples, judge=judge,
        **fields,  # type: ignore[arg-type]
    )  # fmt: skip


def options(keep: Path | None = None, **more: object) -> RunOptions:
    return RunOptions(source=SOURCE, keep=keep, **more)  # type: ignore[arg-type]


@pytest.mark.req("FR-043")
def test_a_task_gives_accuracy_interval_and_all_samples() -> None:
    found = run_tasks(Counting(), [choices()], options())["choices"]
    assert found.accuracy == 0.5 and found.count == 20
    assert found.interval == pytest.approx((0.2993, 0.7007), abs=1e-4)
    assert [each.sample.sample_id for each in found.records] == [str(n) for n in range(20)]


@pytest.mark.req("FR-043")
def test_a_killed_run_goes_on_and_asks_nothing_twice(tmp_path: Path) -> None:
    first = Counting(fails_after=3)
    with pytest.raises(KeyboardInterrupt):
        run_tasks(first, [choices()], options(tmp_path))
    second = Counting()
    found = run_tasks(second, [choices()], options(tmp_path))["choices"]
    assert found.count == 20
    asked = [*first.asked, *second.asked]
    assert sorted(sum(asked, []), key=int) == [str(n) for n in range(20)]
    third = Counting()
    assert run_tasks(third, [choices()], options(tmp_path))["choices"].verdicts == found.verdicts
    assert third.asked == []


@pytest.mark.req("FR-043")
def test_half_a_line_that_a_killed_process_left_is_asked_again(tmp_path: Path) -> None:
    run_tasks(Counting(), [choices()], options(tmp_path))
    [path] = tmp_path.rglob("*.jsonl")
    path.write_bytes(path.read_bytes()[:-25])
    again = Counting()
    assert run_tasks(again, [choices()], options(tmp_path))["choices"].count == 20
    assert len(again.asked) == 1


@pytest.mark.req("FR-043")
@pytest.mark.parametrize(
    "change", ["weights", "vocabulary", "version", "mode", "sample", "procedure"]
)
def test_nothing_is_taken_from_a_run_that_differs(
    tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_tasks(Counting(), [choices()], options(tmp_path))
    model, task, mode = Counting(), choices(), "default"
    if change == "weights":
        model.model_hash = "def"
    if change == "vocabulary":
        model.settings = {"tokenizer": "other"}
    if change == "version":
        task = Task(name="choices", version="2", kind="multiple_choice", load=task.load)
    if change == "mode":
        mode = "nanochat"
    if change == "procedure":
        monkeypatch.setattr(runner, "PROCEDURE", runner.PROCEDURE + 1)
    if change == "sample":
        samples = [Sample(sample_id=f"{n}", prompt="new", choices=("a",)) for n in range(3)]
        task = Task(name="choices", version="1", kind="multiple_choice", load=lambda s: samples)
    run_tasks(model, [task], options(tmp_path, mode=mode))
    assert model.asked


def test_a_model_of_unknown_weights_is_asked_each_time(tmp_path: Path) -> None:
    run_tasks(Counting(model_hash=""), [choices()], options(tmp_path))
    assert not list(tmp_path.iterdir())


class Together:
    """Two processes as two threads."""

    def __init__(self, rank: int, barrier: threading.Barrier, numbers: list[int]) -> None:
        self.rank, self.size, self._barrier, self._numbers = rank, 2, barrier, numbers

    def wait(self) -> None:
        self._barrier.wait(20)

    def largest(self, number: int) -> int:
        self._numbers[self.rank] = number
        self.wait()
        largest = max(self._numbers)
        self.wait()
        return largest


@pytest.mark.req("FR-043")
@pytest.mark.parametrize("task", [choices(), written()], ids=["choices", "written"])
def test_two_processes_find_what_one_does_and_share_the_work(tmp_path: Path, task: Task) -> None:
    alone = run_tasks(Counting(), [task], options())[task.name]
    barrier, numbers = threading.Barrier(2), [0, 0]
    found: dict[int, TaskResult] = {}
    models = [Counting(), Counting()]

    def work(rank: int) -> None:
        together = Together(rank, barrier, numbers)
        found[rank] = run_tasks(models[rank], [task], options(tmp_path, processes=together))[
            task.name
        ]

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found[0].error is None and found[0].count == alone.count
    assert found[0].verdicts == found[1].verdicts
    if task.kind != "generative":
        assert found[0].verdicts == alone.verdicts
    assert all(model.asked for model in models)
    asked = sum(models[0].asked + models[1].asked, [])
    assert sorted(asked, key=int) == [f"{n}" for n in range(alone.count)]


@pytest.mark.req("FR-043", "SC-004")
@pytest.mark.parametrize("num_samples", [1, 2], ids=["greedy", "sampled"])
def test_two_processes_write_the_answers_one_does(
    tmp_path: Path, tiny_tokenizer: Tokenizer, num_samples: int
) -> None:
    """Batches differ between the two, answers do not (float32; docs/engine.md, Exactness)."""
    questions = [f"{n} " + "the quick brown fox " * (n % 4) for n in range(9)]
    samples = [
        Sample(sample_id=f"{n}", prompt=(Message("user", question),), gold="")
        for n, question in enumerate(questions)
    ]
    task = Task(
        name="said", version="1", kind="generative", load=lambda s: samples, max_tokens=12,
        judge=lambda sample, output: Judgement(len(output) % 3 / 2),
    )  # fmt: skip
    asked = {"num_samples": num_samples, "temperature": 0.0 if num_samples == 1 else 1.0}

    def examinee() -> EngineExaminee:
        engine = Engine(random_model(), tiny_tokenizer, format="float32")
        return EngineExaminee(name="tiny", engine=engine, model_hash="abc")

    alone = run_tasks(examinee(), [task], options(**asked))["said"]
    shared = in_two(lambda rank, both: run_tasks(
        examinee(), [task], options(tmp_path, processes=both, **asked)
    )["said"])  # fmt: skip
    assert alone.error is None and len({each.output for each in alone.verdicts}) > 1
    for found in shared:
        assert found.verdicts == alone.verdicts and found.pass_at == alone.pass_at


@pytest.mark.req("FR-043")
def test_what_fails_in_one_process_fails_the_task_in_both(tmp_path: Path) -> None:
    def load(selection: Selection) -> list[Sample]:
        if threading.current_thread().name == "1":
            raise ZeroDivisionError("no such disk")
        return [Sample(sample_id="0", prompt="p", choices=("a",))]

    tasks = [Task(name="half", version="1", kind="multiple_choice", load=load), choices()]
    found = in_two(
        lambda rank, both: run_tasks(Counting(), tasks, options(tmp_path, processes=both))
    )
    assert found[0]["half"].error == "half failed in another process"
    assert str(found[1]["half"].error).startswith("ZeroDivisionError: no such disk (test_runner.py")
    assert all(each["choices"].count == 20 for each in found)


def in_two(work: Callable[[int, Together], T]) -> list[T]:
    """What two processes, as two threads, find."""
    barrier, numbers = threading.Barrier(2), [0, 0]
    found: dict[int, T] = {}

    def one(rank: int) -> None:
        found[rank] = work(rank, Together(rank, barrier, numbers))

    threads = [threading.Thread(target=one, args=(rank,), name=f"{rank}") for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [found[0], found[1]]


def test_several_processes_need_a_folder() -> None:
    together = Together(0, threading.Barrier(2), [0, 0])
    with pytest.raises(EvalError, match="2 processes share no folder"):
        options(processes=together)


@pytest.mark.req("FR-043")
def test_a_task_that_cannot_be_loaded_fails_alone() -> None:
    source = DataFiles([Path("/nowhere")])
    missing = Task(
        name="missing", version="1", kind="multiple_choice", load=lambda s: s.source.rows("x.jsonl")
    )
    found = run_tasks(Counting(), [missing, choices()], RunOptions(source=source))
    assert "x.jsonl is not in /nowhere" in str(found["missing"].error)
    told = json.dumps({each.label: each.to_json() for each in found.values()}, allow_nan=False)
    assert json.loads(told)["missing"]["accuracy"] is None
    assert math.isnan(found["missing"].accuracy) and found["choices"].accuracy == 0.5


@pytest.mark.req("FR-044")
def test_a_judge_that_raises_ends_its_task_alone() -> None:
    task = replace(written(), judge=lambda sample, output: Judgement(1 / len(output[5:])))
    found = run_tasks(Counting(), [task, choices()], options())
    assert "ZeroDivisionError: division by zero (test_runner.py" in str(found["written"].error)
    assert found["choices"].accuracy == 0.5


@pytest.mark.req("FR-043")
def test_every_task_says_what_it_read_also_what_another_had_read_before(tmp_path: Path) -> None:
    write_rows(tmp_path / "x.jsonl", [{"n": 1}])
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.txt").write_text("A text.")

    def load(selection: Selection) -> list[Sample]:
        selection.source.rows("x.jsonl")
        return [Sample(sample_id="0", prompt="p", choices=("a",))]

    tasks = [
        Task(name=name, version="1", kind="multiple_choice", load=load) for name in ("one", "two")
    ]
    setting = RunOptions(source=DataFiles([tmp_path]))
    first = run_tasks(Counting(), [*tasks, BITS_PER_BYTE], setting)
    again = run_tasks(Counting(), [*tasks, BITS_PER_BYTE], setting)
    digest = hashlib.sha256((tmp_path / "x.jsonl").read_bytes()).hexdigest()
    for found in (first, again):
        assert found["one"].data_sha256 == found["two"].data_sha256 == {"x.jsonl": digest}
        text = hashlib.sha256(b"A text.").hexdigest()
        assert found["bits_per_byte"].data_sha256 == {"text/a.txt": text}


def test_a_run_that_is_broken_off_lets_the_display_go() -> None:
    closed: list[bool] = []

    class Shown:
        def start(self, label: str, num_samples: int, num_known: int) -> None: ...
        def advance(self, num_samples: int) -> None: ...
        def finish(self, result: TaskResult) -> None: ...
        def close(self) -> None:
            closed.append(True)

    with pytest.raises(KeyboardInterrupt):
        run_tasks(Counting(fails_after=0), [choices()], options(reporter=Shown()))
    assert closed == [True]


@pytest.mark.req("FR-040")
def test_a_program_that_ran_out_of_time_is_judged_again(tmp_path: Path) -> None:
    scores = iter([Judgement(0.0, "timeout", is_final=False)] + 11 * [Judgement(1.0)])
    task = replace(written(), judge=lambda sample, output: next(scores))
    first = run_tasks(Counting(), [task], options(tmp_path))["written"]
    assert first.accuracy == pytest.approx(5 / 6)
    assert any(note.startswith("1 of 6: a program ran out of time") for note in first.notes)
    model = Counting()
    second = run_tasks(model, [task], options(tmp_path))["written"]
    assert second.accuracy == 1.0 and len(model.asked[0]) == 1
    model = Counting()
    assert run_tasks(model, [task], options(tmp_path))["written"].accuracy == 1.0
    assert model.asked == []


@pytest.mark.req("FR-040")
def test_verdicts_of_one_sandbox_are_not_taken_for_those_of_another(tmp_path: Path) -> None:
    @dataclass
    class Box:
        driver: str
        is_unsafe: bool = False

        def __enter__(self) -> "Box":
            return self

        def __exit__(self, *_: object) -> None: ...
        def check(self, *_: object) -> CheckedOutcome:
            fine = Outcome(status="finished", exit_code=0)
            return CheckedOutcome(passed=True, reason="", detail="", program=fine, checks=fine)

    samples = [Sample(sample_id="0", prompt=(Message("user", "?"),), extra={"tests": "pass"})]
    task = replace(written(runs_code=True), judge=None, load=lambda s: samples)
    for box, is_asked in (
        (Box("linux"), True),
        (Box("linux"), False),
        (Box("landlock"), True),
        (Box("linux", is_unsafe=True), True),
    ):
        model = Counting()
        setting = options(tmp_path, open_sandbox=lambda box=box: box)
        assert run_tasks(model, [task], setting)["written"].error is None
        assert bool(model.asked) == is_asked


def test_of_a_service_only_a_run_that_was_stopped_is_kept(tmp_path: Path) -> None:
    def served(**fields: Any) -> Counting:
        return Counting(model_hash="", service="m at http://here/v1", **fields)

    with pytest.raises(KeyboardInterrupt):
        run_tasks(served(fails_after=3), [choices()], options(tmp_path))
    second, third = served(), served()
    assert run_tasks(second, [choices()], options(tmp_path))["choices"].count == 20
    assert len(second.asked) == 7 and not list(tmp_path.iterdir())
    run_tasks(third, [choices()], options(tmp_path))
    assert len(third.asked) == 10
    with pytest.raises(KeyboardInterrupt):
        run_tasks(served(fails_after=3), [choices()], options(tmp_path))
    [kept] = tmp_path.rglob("*.jsonl")
    os.utime(kept, (0, 0))  # of another day: who knows what answers there now
    fourth = served()
    run_tasks(fourth, [choices()], options(tmp_path))
    assert len(fourth.asked) == 10


def test_what_lay_longest_unused_goes_when_there_is_too_much(tmp_path: Path) -> None:
    sample, ages = Sample(sample_id="1", prompt="p"), {"old": 9e5, "used": 8e5, "new": 0.0}
    journals = {}
    for name, age_s in ages.items():
        journals[name] = journal = Journal(tmp_path, {"model": name})
        journal.add(sample, Verdict(sample_id="1", score=1.0))
        journal.close()
        assert journal.folder is not None
        then_s = time.time() - age_s
        os.utime(journal.folder / "key.json", (then_s, then_s))
    prune(tmp_path)
    assert all(journal.known([sample]) for journal in journals.values())
    for name, age_s in ages.items():
        os.utime(journals[name].folder / "key.json", (time.time() - age_s,) * 2)  # type: ignore[operator]
    folder = journals["new"].folder
    assert folder is not None
    num_bytes = sum(file.stat().st_size for file in tmp_path.rglob("*.json*"))
    prune(tmp_path, num_bytes - 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        journal.folder.name
        for name, journal in journals.items()
        if name != "old" and journal.folder
    )
    prune(tmp_path, 0)  # what was used today stays
    assert [path for path in tmp_path.iterdir()] == [folder]


@pytest.mark.req("FR-040")
def test_pass_at_k_is_the_share_of_draws_with_a_right_one() -> None:
    assert pass_at_k(5, 0, 3) == 0.0
    assert pass_at_k(5, 5, 1) == 1.0
    assert pass_at_k(4, 2, 2) == pytest.approx(1 - 1 / 6)
    assert pass_at_k(10, 3, 1) == pytest.approx(0.3)
    assert pass_at_k(3, 1, 3) == 1.0
    with pytest.raises(EvalError, match="pass@4 of 3"):
        pass_at_k(3, 1, 4)


@pytest.mark.req("FR-040")
def test_several_answers_give_a_share_and_in_the_reference_any_counts() -> None:
    settings = {"num_samples": 2, "temperature": 0.5}
    found = run_tasks(Counting(), [written()], options(**settings))["written"]
    # outputs of sample i: i and i + 1, modulo 3; "0" is right
    assert [verdict.score for verdict in found.verdicts] == [0.5, 0.0, 0.5, 0.5, 0.0, 0.5]
    assert found.pass_at == {1: pytest.approx(2 / 6), 2: pytest.approx(4 / 6)}
    assert found.verdicts[0].outputs == ("0", "1") and found.verdicts[0].scores == (1.0, 0.0)
    compat = run_tasks(Counting(), [written()], options(mode="nanochat", **settings))["written"]
    assert [verdict.score for verdict in compat.verdicts] == [1.0, 0.0, 1.0, 1.0, 0.0, 1.0]


def test_settings_that_contradict_are_refused() -> None:
    with pytest.raises(ConfigError, match="at temperature 0"):
        options(num_samples=4)
    with pytest.raises(ConfigError, match="limit is 0"):
        options(limit=0)


@pytest.mark.req("FR-040")
def test_code_is_not_run_where_the_sandbox_refuses_and_nothing_is_generated() -> None:
    def refuse() -> None:
        raise SandboxError("a wall does not hold")

    model = Counting()
    tasks = [written(runs_code=True), choices()]
    found = run_tasks(model, tasks, options(open_sandbox=refuse))
    assert found["written"].error == "a wall does not hold"
    assert found["choices"].error is None and len(model.asked) == 10


def test_a_digest_is_of_everything_that_is_asked() -> None:
    sample = Sample(sample_id="1", prompt="p", choices=("a",), gold=0)
    others = [
        Sample(sample_id="2", prompt="p", choices=("a",), gold=0),
        Sample(sample_id="1", prompt="q", choices=("a",), gold=0),
        Sample(sample_id="1", prompt="p", choices=("b",), gold=0),
        Sample(sample_id="1", prompt="p", choices=("a",), gold=1),
        Sample(sample_id="1", prompt="p", choices=("a",), gold=0, ending="."),
        Sample(sample_id="1", prompt="p", choices=("a",), gold=0, extra={"x": 1}),
    ]
    assert len({digest_of(each) for each in (sample, *others)}) == 7


def test_a_journal_says_what_its_key_is(tmp_path: Path) -> None:
    journal = Journal(tmp_path, {"model": "m"})
    sample = Sample(sample_id="1", prompt="p")
    journal.add(sample, Verdict(sample_id="1", score=1.0))
    journal.close()
    assert json.loads((journal.folder / "key.json").read_text()) == {"model": "m"}  # type: ignore[operator]
    assert Journal(tmp_path, {"model": "m"}).known([sample]) == journal.known([sample])

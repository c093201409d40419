"""The runner: what is asked, kept, shared among processes, and told."""

import json
import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nanochat.common.errors import ConfigError, EvalError, SandboxError
from nanochat.common.messages import Message
from nanochat.evals.cache import Journal, digest_of
from nanochat.evals.data import DataFiles
from nanochat.evals.examinee import Asking
from nanochat.evals.judging import pass_at_k
from nanochat.evals.results import TaskResult
from nanochat.evals.runner import RunOptions, run_tasks
from nanochat.evals.task import Judgement, Kind, Mode, Sample, Task, Verdict

SOURCE = DataFiles([])


@dataclass
class Counting:
    """Is right about even samples; remembers what it was asked."""

    name: str = "counting"
    model_hash: str = "abc"
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
@pytest.mark.parametrize("change", ["weights", "vocabulary", "version", "mode", "sample"])
def test_nothing_is_taken_from_a_run_that_differs(tmp_path: Path, change: str) -> None:
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
    assert math.isnan(found["missing"].accuracy) and found["choices"].accuracy == 0.5


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

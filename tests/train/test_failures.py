"""A rank that dies, lags or differs: all ranks say which one, and a restarted job goes on."""

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as torch_dist

from nanochat.common import watch as watch_module
from nanochat.common.dist import World
from nanochat.common.errors import ConfigError, TrainingError
from nanochat.common.watch import Watch
from nanochat.tokenizer.tokenizer import Tokenizer
from nanochat.train import loop
from nanochat.train.keeper import check_alike
from nanochat.train.loop import fit
from nanochat.train.loss import loss_sum
from tests.conftest import REPOSITORY
from tests.patience import wait_until
from tests.train.makers import Recorder, stage_of
from tests.train.ranks import PATIENCE_S, exit_codes
from tests.train.test_world import Rows

Report = tuple[str, list[str]]

# ------------------------------------------------------------------------------------ the watch


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beats are quick; nobody loses patience, however busy the machine."""
    monkeypatch.setattr(watch_module, "BEAT_S", 0.02)
    monkeypatch.setattr(watch_module, "SILENCE_S", 100.0)
    monkeypatch.setattr(watch_module, "SILENCE_AFTER_ERROR_S", 100.0)
    monkeypatch.setattr(watch_module, "GRACE_S", 100.0)


@pytest.fixture
def impatient(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """For silences that are to be noticed."""
    monkeypatch.setattr(watch_module, "SILENCE_AFTER_ERROR_S", 1.5)


def ring(size: int) -> list[Watch]:
    store = torch_dist.HashStore()
    watches = [Watch(store, rank, size) for rank in range(size)]
    for each in watches:
        each.start()
    return watches


@pytest.mark.req("FR-016")
def test_last_words_reach_all(quick: None) -> None:
    first, second, third = ring(3)
    second.step = 7
    second.tell("ValueError: no more")
    third.tell("RuntimeError: what came of it")
    for each in (first, second, third):
        fault = each.explain()
        assert fault is not None and fault.startswith(f"{second.name} ended after step 7: ValueErr")
    assert f"process {os.getpid()}" in second.name and second.name.startswith("rank 1 (")


@pytest.mark.req("FR-016")
def test_who_goes_silent_is_missed(impatient: None) -> None:
    first, second, third = ring(3)
    second.step = 4
    wait_until(lambda: second._store.get("beat/1").endswith(b"|4"))
    second._has_left.set()  # as when its process is killed
    fault = first.explain()
    assert fault is not None and "after step 4: it was killed, or its machine is gone" in fault
    assert fault.startswith("rank 1 (") and third.explain() == fault


class GoneStore:
    """What is left of the connection to a store whose holder was killed."""

    def set(self, key: str, value: str) -> None:
        raise RuntimeError("Broken pipe")


@pytest.mark.req("FR-016", "EC-5")
def test_who_holds_the_store_is_known_by_name_before_the_first_step(quick: None) -> None:
    """Killed in its first second, and late with its first beat."""
    store = torch_dist.HashStore()
    first, second = (Watch(store, rank, 2) for rank in range(2))
    starting = threading.Thread(target=second.start)
    starting.start()
    wait_until(lambda: store.check(["beat/1"]))
    first.start()
    starting.join(60)
    second._store = GoneStore()
    fault = second.explain()
    assert fault is not None and fault.startswith(f"{first.name} is gone after step 0, and the st")
    first.leave()


@pytest.mark.req("FR-016")
def test_who_leaves_in_order_is_missed_only_where_a_collective_failed(impatient: None) -> None:
    first, second = ring(2)
    second.leave()
    second.leave()
    wait_until(lambda: first._last_beat.startswith("left"))
    assert not first._has_left.is_set()
    fault = first.explain()
    assert fault is not None and fault.endswith("left after step 0, before the others")
    alone, other = ring(2)
    assert alone.explain() is None  # all are well: the error is one's own
    other.leave()


@pytest.mark.req("FR-016")
def test_a_process_that_waits_for_the_dead_is_ended(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(watch_module, "GRACE_S", 0.1)
    first, second = ring(2)
    told: list[str] = []
    first.on_fault = told.append
    second.tell("RuntimeError: gone")
    second.leave()
    first._thread.join(60)
    assert ended == [1] and "gone" in told[0]


# ------------------------------------------------------------------------------------ processes


def in_ranks(size: int, task: str, folder: Path) -> list[tuple[int | None, Any]]:
    """Exit code and what was written of each of so many ranks, of which some may die."""

    def run(world: World) -> None:
        said = TASKS[task](world)
        (folder / f"{task}_{world.rank}.json").write_text(json.dumps(said))
        os._exit(0)  # as the end of a job: nobody waits for the others

    codes = exit_codes(size, run)
    files = [folder / f"{task}_{rank}.json" for rank in range(size)]
    said = [json.loads(file.read_text()) if file.exists() else None for file in files]
    return list(zip(codes, said, strict=True))


def _train(world: World, trouble: Callable[[int], None], num_steps: int = 30) -> Report:
    """How the training ended, and what was noted, where a rank has trouble at a step."""
    display = Recorder()
    stage = stage_of(num_steps=num_steps, display=display, stream=Rows(), world=world)

    def loss(model: Any, batch: Any) -> torch.Tensor:
        trouble(stage.optimizer.num_steps)
        return loss_sum(model, batch)

    loop.loss_sum = loss  # type: ignore[assignment]
    try:
        fit(stage)
    except (TrainingError, ValueError) as error:
        return f"{type(error).__name__}: {error}", [str(line) for line in display.told]
    return "finished", [str(line) for line in display.told]


def _raise(world: World) -> Report:
    def trouble(step: int) -> None:
        if world.rank == 1 and step == 3:
            raise ValueError("a batch that cannot be")

    return _train(world, trouble)


def _die(world: World, dying: int = 1) -> Report:
    def trouble(step: int) -> None:
        if world.rank == dying and step == 3:
            Path(os.environ["KILLED"]).touch()
            os.kill(os.getpid(), signal.SIGKILL)

    return _train(world, trouble)


def _lag(world: World) -> Report:
    def trouble(step: int) -> None:
        if world.rank == 1:
            time.sleep(0.1)  # its own part takes a few ms, on a busy machine some tens

    return _train(world, trouble, num_steps=20)


def _differ(world: World) -> str:
    facts = {"plan": {"num_steps": 5}, "data": f"{world.rank:02}" * 32, "torch": "2"}
    try:
        check_alike(world, facts)
    except ConfigError as error:
        return str(error)
    return ""


TASKS: dict[str, Callable[[World], Any]] = {
    "raise": _raise,
    "die": _die,
    "first dies": lambda world: _die(world, dying=0),
    "lag": _lag,
    "differ": _differ,
}


@pytest.mark.req("FR-016")
def test_an_error_on_one_rank_is_read_on_all(tmp_path: Path) -> None:
    (code, first), (_, second) = in_ranks(2, "raise", tmp_path)
    assert code == 0 and second[0] == "ValueError: a batch that cannot be"
    assert re.fullmatch(
        r"TrainingError: rank 1 \(.+, process \d+\) ended after step 3: ValueError: a batch that "
        "cannot be",
        first[0],
    )


@pytest.mark.req("FR-016", "EC-5")
def test_a_killed_rank_is_named_within_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KILLED", str(tmp_path / "killed"))
    (_, first), (code, second) = in_ranks(2, "die", tmp_path)
    assert code == -signal.SIGKILL and second is None
    assert re.match(r"TrainingError: rank 1 \(.+, process \d+\) has been silent for", first[0])
    assert "after step 3: it was killed" in first[0]
    told_s, killed_s = ((tmp_path / name).stat().st_mtime for name in ("die_0.json", "killed"))
    assert told_s - killed_s < 60


@pytest.mark.req("FR-016", "EC-5")
def test_the_first_rank_is_named_though_the_store_goes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under SLURM, where no launcher holds the store."""
    monkeypatch.setenv("KILLED", str(tmp_path / "killed"))
    (code, first), *others = in_ranks(3, "first dies", tmp_path)
    assert code == -signal.SIGKILL and first is None
    for ended, said in others:
        assert ended == 0
        assert re.match(
            r"TrainingError: rank 0 \(.+, process \d+\) is gone after step 3, and the store of all "
            "ranks with it: it was killed",
            said[0],
        )
    told_s, killed_s = (
        (tmp_path / name).stat().st_mtime for name in ("first dies_2.json", "killed")
    )
    assert told_s - killed_s < 60


@pytest.mark.req("FR-016")
def test_who_dies_before_its_first_beat_is_missed(impatient: None) -> None:
    first = Watch(torch_dist.HashStore(), 0, 2)
    first.start()  # the other one was there, and has never said so here
    fault = first.explain()
    assert fault is not None and fault.startswith("rank 1 has been silent for")


@pytest.mark.req("FR-016")
def test_a_slow_rank_is_named(tmp_path: Path) -> None:
    for _, (end, noted) in in_ranks(2, "lag", tmp_path):
        assert end == "finished"
        told = [line for line in noted if "is slow" in line]
        assert len(told) == 1 and told[0].startswith("  step 20: rank 1 (")
        assert re.search(r"[\d.]+ s a thousand tokens for its own part, [\d.]+ times the", told[0])


@pytest.mark.req("FR-016")
def test_ranks_that_differ_are_found(tmp_path: Path) -> None:
    for _, said in in_ranks(2, "differ", tmp_path):
        assert "on rank 1 data is 010101010101... instead of 000000000000... (rank 0" in said
        assert "num_steps" not in said
    check_alike(World(), {})


# ------------------------------------------------------------------------------------- torchrun


def command(home: Path, *more: str) -> list[str]:
    return [
        *("pretrain", "--home", str(home), "--run", "tiny", "--world-chars", "20000"),
        *(
            "--tokenizer",
            str(home.parent / "tokenizer.json"),
            "--depth",
            "2",
            "--context-len",
            "64",
            "--head-dim",
            "16",
        ),
        *("--aspect-ratio", "16", "--num-steps", "40", "--batch-tokens", "256", "--device", "cpu"),
        *("--dtype", "float32", "--compile", "off", "--save-every", "10", "--eval-every", "20"),
        *("--eval-tokens", "256", *more),
    ]


def losses_of(stage: Path) -> list[float]:
    lines = (stage / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def _pretrain(world: World) -> int:
    from nanochat.cli.main import main

    return main(command(Path(os.environ["UNDISTURBED"])))


TASKS["pretrain"] = _pretrain


# Read by every Python that starts: the second rank's kills itself, the first time it is there, in
# the middle of a step after step 12, once its last checkpoint is on the disk.
KILL = """
import os, signal, time

if os.environ.get("RANK") == "1" and os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0":
    from nanochat.train import loop
    from nanochat.train.optim import Optimizer

    loss_sum, step, seen = loop.loss_sum, Optimizer.step, []

    def killed(*arguments, **more):
        if len(seen) >= 12:
            while not os.path.exists({checkpoint!r}):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        return loss_sum(*arguments, **more)

    def counted(*arguments, **more):
        seen.append(step(*arguments, **more))

    loop.loss_sum, Optimizer.step = killed, counted
"""


@pytest.mark.timeout(2 * PATIENCE_S)
@pytest.mark.req("FR-016", "FR-020", "EC-5", "SC-011")
def test_torchrun_restarts_after_a_rank_is_killed(
    tmp_path: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, warm_python: str
) -> None:
    """One of two ranks is killed in the middle of a step after step 12; the job goes on from
    its last checkpoint by itself, and ends with the losses of one that nobody disturbed."""
    tiny_tokenizer.save(tmp_path / "tokenizer.json")  # training one has threads, which do not fork
    monkeypatch.setenv("UNDISTURBED", str(tmp_path / "undisturbed"))
    assert [code for code, _ in in_ranks(2, "pretrain", tmp_path)] == [0, 0]
    stage = tmp_path / "disturbed" / "runs" / "tiny" / "pretrain"
    launcher = [warm_python, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    # Without -- torchrun takes our --run for an abbreviation of one of its own flags.
    launcher += ["--max-restarts", "1", "--standalone", "-m", "--", "nanochat"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHON_EXEC": warm_python}
    (tmp_path / "hook").mkdir()
    checkpoint = stage / "checkpoints" / "step_000010"
    (tmp_path / "hook" / "sitecustomize.py").write_text(KILL.format(checkpoint=str(checkpoint)))
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path / "hook"), str(REPOSITORY)])
    done = subprocess.run(
        [*launcher, *command(tmp_path / "disturbed", "--overwrite")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    expected = losses_of(tmp_path / "undisturbed" / "runs" / "tiny" / "pretrain")
    assert len(expected) == 40
    assert losses_of(stage) == pytest.approx(expected, rel=1e-5)
    log, second_log = ((stage / name).read_text() for name in ("log.txt", "log.rank1.txt"))
    assert "going on after step 10 of 40" in log
    assert "start 2" in log and "start 2" in second_log
    assert re.search(r"TrainingError: rank 1 \(.+\) has been silent for .* killed", log)

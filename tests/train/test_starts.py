"""Ranks that belong together find each other, whatever the launcher counts and the store keeps."""

import os
import signal
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch.distributed as torch_dist

from nanochat.common.dist import World
from nanochat.common.errors import ConfigError, TrainingError
from nanochat.common.meeting import Start, meet
from nanochat.train import stages
from nanochat.train.config import PretrainConfig, SftConfig
from nanochat.train.stages import open_stage
from tests.conftest import REPOSITORY
from tests.deploy.jobs import running
from tests.deploy.test_two_nodes import environment, free_port
from tests.patience import wait_until
from tests.train.ranks import PATIENCE_S

pytestmark = pytest.mark.req("FR-016", "EC-5")


def met(store: object, counted: list[int]) -> list[Start]:
    """What ranks are told of which the launcher counts so many restarts each."""
    starts: dict[int, Start] = {}

    def rank(number: int) -> None:
        starts[number] = meet(store, number, len(counted), counted[number], limit_s=60)

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(len(counted))]
    for thread in reversed(threads):  # the first one comes last
        thread.start()
    for thread in threads:
        thread.join()
    return [starts[number] for number in range(len(counted))]


def test_counts_that_differ_make_one_start() -> None:
    store = torch_dist.HashStore()
    for number, counted in enumerate([[0, 0, 0], [0, 1, 0], [0, 2, 1]]):
        starts = met(store, counted)
        assert len(set(starts)) == 1
        assert starts[0].number == max(number, *counted)


def test_what_was_left_in_the_store_misleads_nobody() -> None:
    store = torch_dist.HashStore()
    first = met(store, [0, 0])[0]
    # A rank of a start that came to nothing has said hello, and is no more.
    with pytest.raises(TrainingError, match="rank 1 of 2 has waited 0 s in vain for rank 0"):
        meet(store, 1, 2, 0, limit_s=0.05)
    second = met(store, [0, 0])[0]
    assert second.word != first.word and second.number == 1


def test_who_does_not_come_is_named() -> None:
    with pytest.raises(TrainingError, match="rank 0 of 3 has waited 0 s in vain for rank 1, 2:"):
        meet(torch_dist.HashStore(), 0, 3, 0, limit_s=0.05)


def test_a_job_remembers_what_it_has_done() -> None:
    store = torch_dist.HashStore()
    first = World(size=2, memory=store)
    again = World(size=2, num_restarts=1, memory=store)
    assert not first.has_done("it") and not again.has_done("it")
    first.remember("it")
    assert again.has_done("it") and not again.has_done("another")
    assert not World(size=2).has_done("it")  # another job, with another store
    assert World(size=2, num_restarts=1).has_done("it")  # SLURM: nothing remembers


def test_overwrite_deletes_once_in_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = PretrainConfig(home=tmp_path, overwrite=True)
    stage = tmp_path / "runs" / "d2" / "pretrain"

    def left_by_start(number: int, store: object) -> list[str]:
        world = World(num_restarts=number, memory=store)
        monkeypatch.setattr(stages, "current_world", lambda: world)
        open_stage(config, "d2", "pretrain")
        found = sorted(path.name for path in stage.iterdir())
        (stage / f"metrics{number}.jsonl").touch()
        return found

    stage.mkdir(parents=True)
    (stage / "of another run").touch()
    job = torch_dist.HashStore()
    assert left_by_start(1, job) == ["checkpoints"]  # the first start died before it came to this
    assert left_by_start(2, job) == ["checkpoints", "metrics1.jsonl"]
    assert left_by_start(0, None) == ["checkpoints"]


def test_overwrite_and_resume_contradict_each_other() -> None:
    """A job that goes back into SLURM's queue has --resume, and a count that begins anew."""
    for config in (PretrainConfig, SftConfig):
        model = {} if config is PretrainConfig else {"model": "d2"}
        with pytest.raises(ConfigError, match="overwrite and resume are both given"):
            config(**model, overwrite=True, resume=True)


def test_starts_are_counted_where_the_launchers_meet() -> None:
    """Each start has a store of its own there, and no launcher needs to have counted it."""
    memory = torch_dist.HashStore()
    assert [meet(torch_dist.HashStore(), 0, 1, 0, memory).number for _ in range(3)] == [0, 1, 2]


# Two machines with a rank each.  At the first start the second rank is killed, once it has added
# something up with the first; the machine of the first one then counts no restart.
RANK = """
import os, signal, sys, time
from pathlib import Path
from nanochat.common.dist import current_world

world = current_world()
with world.together():
    world.remember("it") if world.is_first else None
    assert world.total(1) == 2
    with Path(sys.argv[1]).open("a") as file:
        file.write(f"{world.num_restarts} {world.rank} {world.has_done('it')}\\n")
    if not world.num_restarts:
        if world.rank == 1 and sys.argv[2] == "rank":
            os.kill(os.getpid(), signal.SIGKILL)
        while True:
            time.sleep(0.1)
            world.total(1)
world.watch.leave()
os._exit(0)
"""


@pytest.mark.parametrize("dies", ["rank", pytest.param("machine", marks=pytest.mark.slow)])
@pytest.mark.timeout(2 * PATIENCE_S)
def test_two_machines_go_on_after_one_of_them_lost_its_rank(
    dies: str, tmp_path: Path, warm_python: str
) -> None:
    """Launched as by deploy/two_nodes.sh; a machine that was lost is given its line again."""
    (tmp_path / "rank.py").write_text(RANK)
    told, output = tmp_path / "told", tmp_path / "output"
    python = warm_python if dies == "rank" else sys.executable  # whose ranks are its children
    said = environment(
        PYTHON_EXEC=python,
        PYTHONPATH=str(REPOSITORY),
        TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1",
        PET_RDZV_BACKEND="c10d",
        PET_RDZV_ENDPOINT=f"127.0.0.1:{free_port()}",
    )
    words = [python, "-m", "torch.distributed.run", "--nnodes", "2", "--rdzv-id", "nanochat"]
    words += ["--nproc-per-node", "1", "--max-restarts", "3", "--local-addr", "127.0.0.1"]
    words += ["--monitor-interval", "0.05"]
    lines = [
        [*words, "--rdzv-conf", f"is_host={is_host}", str(tmp_path / "rank.py"), str(told), dies]
        for is_host in ("true", "false")
    ]
    with ExitStack() as stack:
        first, second = (stack.enter_context(running(line, said, output)) for line in lines)
        if dies == "machine":
            wait_until(
                lambda: told.exists() and len(told.read_text().splitlines()) == 2, PATIENCE_S
            )
            children = Path(f"/proc/{second.pid}/task/{second.pid}/children").read_text().split()
            for process in (second.pid, *map(int, children)):
                os.kill(process, signal.SIGKILL)
            second.wait()
            second = stack.enter_context(running(lines[1], said, output))
        hosts = (first, second)
        assert [host.wait(PATIENCE_S) for host in hosts] == [0, 0], output.read_text()
    lines_told = sorted(told.read_text().splitlines())
    assert lines_told == ["0 0 False", "0 1 False", "1 0 True", "1 1 True"]

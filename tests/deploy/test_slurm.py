"""deploy/slurm.sbatch, with stand-ins for SLURM's own commands."""

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.deploy import stand_ins
from tests.deploy.jobs import (
    PATIENCE_S,
    Undisturbed,
    paced,
    process_of_rank,
    running,
    stage_of,
    steps_done,
)
from tests.patience import wait_until
from tests.train.test_failures import losses_of

SCRIPT = REPOSITORY / "deploy" / "slurm.sbatch"
pytestmark = pytest.mark.timeout(3 * PATIENCE_S)
needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@needs_bash
@pytest.mark.req("FR-016", "FR-020", "EC-5")
def test_a_job_whose_time_is_up_saves_and_goes_on_in_the_next(
    tmp_path: Path, expected: Undisturbed, warm_python: str
) -> None:
    environment = stand_ins.install(tmp_path / "bin", warm_python)
    home, output = tmp_path / "job", tmp_path / "output"
    words = ["bash", str(SCRIPT), *expected.words(home)]
    log = stage_of(home) / "log.txt"
    with running(words, environment | paced(tmp_path / "hook"), output) as job:
        wait_until(lambda: steps_done(home) >= 12, PATIENCE_S)
        job.send_signal(signal.SIGUSR1)
        assert job.wait(PATIENCE_S) == 0, output.read_text()
    assert (tmp_path / "bin/requeued").read_text() == "4711\n"
    assert "the time is up, job 4711 goes back into the queue" in output.read_text()
    assert (stopped := re.search(r"SIGUSR1 after step (\d+)", log.read_text()))
    assert 12 <= int(stopped[1]) < 40
    with running(words, environment, output) as job:
        assert job.wait(PATIENCE_S) == 0, output.read_text()
    assert f"going on after step {stopped[1]} of 40" in log.read_text()
    assert losses_of(stage_of(home)) == pytest.approx(expected.losses, rel=1e-5)
    assert (tmp_path / "bin/requeued").read_text() == "4711\n"


@needs_bash
@pytest.mark.slow
@pytest.mark.req("FR-016", "FR-020", "EC-5")
def test_a_job_starts_again_by_itself_where_a_rank_dies(
    tmp_path: Path, expected: Undisturbed, warm_python: str
) -> None:
    environment = stand_ins.install(tmp_path / "bin", warm_python)
    home, output = tmp_path / "job", tmp_path / "output"
    environment |= paced(tmp_path / "hook")
    with running(["bash", str(SCRIPT), *expected.words(home)], environment, output) as job:
        wait_until(lambda: steps_done(home) >= 12, PATIENCE_S)
        os.kill(process_of_rank(home, 1), signal.SIGKILL)
        assert job.wait(PATIENCE_S) == 0, output.read_text()
    assert "try 1 of 3 ended with exit code" in output.read_text()
    assert " start 2" in (stage_of(home) / "log.txt").read_text()
    assert losses_of(stage_of(home)) == pytest.approx(expected.losses, rel=1e-5)
    assert not (tmp_path / "bin/requeued").exists()


@needs_bash
@pytest.mark.req("FR-016")
def test_a_mistake_is_not_tried_again(tmp_path: Path) -> None:
    environment = stand_ins.install(tmp_path / "bin") | {"NANOCHAT": "wrong"}
    wrong = tmp_path / "bin" / "wrong"
    wrong.write_text(
        '#!/bin/sh\necho "$RANK of $WORLD_SIZE, $LOCAL_RANK of $LOCAL_WORLD_SIZE: $*"\n'
        "sleep 0.2\nexit ${CODE:-2}\n"
    )
    wrong.chmod(0o755)
    words = ["bash", str(SCRIPT), "pretrain", "--depth", "two words"]

    def told(**more: str) -> tuple[int, list[str]]:
        done = subprocess.run(
            words, env=environment | more, capture_output=True, text=True, timeout=60
        )
        return done.returncode, sorted(done.stdout.splitlines())

    line = "pretrain --depth two words --resume"
    assert told() == (2, [f"0 of 2, 0 of 2: {line}", f"1 of 2, 1 of 2: {line}"])
    code, lines = told(CODE="1", TRIES="2")
    assert code == 1 and len([each for each in lines if line in each]) == 4
    assert "slurm.sbatch: try 2 of 2 ended with exit code 1" in lines
    assert subprocess.run(["bash", str(SCRIPT)], capture_output=True).returncode == 2

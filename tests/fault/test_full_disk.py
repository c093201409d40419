"""A disk that fills up: saving fails with one clear message, and what was saved before is found."""

import contextlib
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanochat.checkpoint.format import load_checkpoint, newest_valid
from nanochat.checkpoint.saver import Saver
from nanochat.common.errors import CheckpointError
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.checkpoint.conftest import tiny_checkpoint
from tests.conftest import REPOSITORY

MESSAGE = (
    r"step_000002: not saved, .*; earlier checkpoints are untouched: free some space, or keep "
    r"fewer \(--keep-last\), and go on with --resume"
)


@contextlib.contextmanager
def no_file_longer_than(num_bytes: int) -> Iterator[None]:
    """Writing beyond it fails as on a full disk, in this process, for the while."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("is_background", [True, False], ids=["background", "foreground"])
@pytest.mark.parametrize("num_bytes", [10, 1000, 20_000, 100_000])
@pytest.mark.req("FR-019", "EC-5")
def test_a_limit_on_files(
    num_bytes: int, is_background: bool, tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    """At 10 bytes config.json does not fit, at 100,000 the weights do not."""
    checkpoints = tmp_path / "checkpoints"
    saver = Saver(checkpoints, is_background=is_background)
    first = tiny_checkpoint(tiny_tokenizer, step=1)
    saver.save(1, first)
    saver.finish()
    with no_file_longer_than(num_bytes), pytest.raises(CheckpointError, match=MESSAGE):
        saver.save(2, tiny_checkpoint(tiny_tokenizer, seed=2, step=2))
        saver.finish()
    assert os.listdir(checkpoints) == ["step_000001"]
    assert newest_valid(tmp_path) == (1, checkpoints / "step_000001")
    weights = load_checkpoint(checkpoints / "step_000001").weights
    assert all(bool((weights[name] == w).all()) for name, w in first.weights.items())
    saver.save(2, tiny_checkpoint(tiny_tokenizer, seed=2, step=2))  # there is room again
    saver.finish()
    assert newest_valid(tmp_path) == (2, checkpoints / "step_000002")


IN_A_SMALL_DISK = """
import os, sys
from pathlib import Path
from nanochat.checkpoint.format import newest_valid
from nanochat.checkpoint.saver import Retention, Saver
from nanochat.common.errors import CheckpointError
from scripts.soak import checkpoint_of

stage = Path(sys.argv[1])
saver = Saver(stage / "checkpoints", Retention(keep_last=99))
try:
    for step in range(1, 99):
        saver.save(step, checkpoint_of(step))
        saver.finish()
except CheckpointError as error:
    print(error)
print(newest_valid(stage)[0], step, sorted(os.listdir(stage / "checkpoints")))
"""


@pytest.mark.req("FR-019", "EC-5")
def test_a_disk_of_ten_megabytes(tmp_path: Path) -> None:
    """A real one, in memory, in a name space of its own: it goes with the process."""
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare, which this system does not have")
    mount = f"mount -t tmpfs -o size=10m none {tmp_path}"
    in_a_name_space = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*in_a_name_space, mount], capture_output=True, check=False).returncode:
        pytest.skip("needs to mount a disk in a name space of its own, which is forbidden here")
    done = subprocess.run(
        [*in_a_name_space, f'{mount} && exec "$0" -c "$1" {tmp_path}', sys.executable]
        + [IN_A_SMALL_DISK],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    message, outcome = done.stdout.splitlines()
    assert "not saved, [Errno 28] No space left on device" in message
    assert message.endswith("and go on with --resume")
    assert outcome == "2 3 ['step_000001', 'step_000002']"
    assert os.listdir(tmp_path) == []

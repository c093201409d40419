"""A disk that fills up: saving fails with one clear message, and what was saved before is found."""

import contextlib
import json
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
from nanochat.common.errors import CheckpointError, TrainingError
from nanochat.tokenizer.tokenizer import Tokenizer
from nanochat.train.loop import fit
from nanochat.train.rows import rewrite_rows
from tests.checkpoint.conftest import tiny_checkpoint
from tests.conftest import REPOSITORY
from tests.train.makers import stage_of

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


@pytest.mark.req("FR-020", "EC-5")
def test_metrics_that_do_not_fit_are_said(tmp_path: Path) -> None:
    """Between two checkpoints it is metrics.jsonl that finds the disk full."""
    path = tmp_path / "metrics.jsonl"
    stage = stage_of(num_steps=9, metrics_path=path)
    message = (
        r"metrics\.jsonl: not written, .*; the checkpoints are untouched: free some space, and"
    )
    with no_file_longer_than(1000), pytest.raises(TrainingError, match=message):
        fit(stage)
    assert 2 <= len(path.read_text().splitlines()) < 9
    with no_file_longer_than(1000), pytest.raises(TrainingError, match=message):
        rewrite_rows(path, [{"step": step} for step in range(200)])


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


def on_a_small_disk(folder: Path, size: str, script: str) -> subprocess.CompletedProcess[str]:
    """What a shell script did with a disk of that size at `folder`; $PYTHON is this one.

    The disk is in memory, in a name space of its own: it goes with the process.
    """
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare, which this system does not have")
    mount = f"mount -t tmpfs -o size={size} none {folder}"
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*command, mount], capture_output=True, check=False).returncode:
        pytest.skip("needs to mount a disk in a name space of its own, which is forbidden here")
    return subprocess.run(
        [*command, f"{mount} || exit 99\n{script}"],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHON": sys.executable, "FOLDER": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.req("FR-019", "EC-5")
def test_a_disk_of_ten_megabytes(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(IN_A_SMALL_DISK)
    (tmp_path / "disk").mkdir()
    done = on_a_small_disk(
        tmp_path / "disk", "10m", f'PYTHONPATH=. exec "$PYTHON" {program} "$FOLDER"'
    )
    assert done.returncode == 0, done.stderr
    message, outcome = done.stdout.splitlines()
    assert "not saved, [Errno 28] No space left on device" in message
    assert message.endswith("and go on with --resume")
    assert outcome == "2 3 ['step_000001', 'step_000002']"
    assert os.listdir(tmp_path / "disk") == []


TRAINING = """
train() {
    "$PYTHON" -m nanochat pretrain --home "$FOLDER" --data "$TEXT" --device cpu --compile off \\
        --depth 1 --context-len 64 --head-dim 32 --vocab-size 300 --batch-tokens 128 \\
        --num-steps 12 --save-every 1 --keep-last 99 --eval-every 0 "$@"
}
train
echo "exit $?"
"$PYTHON" -m nanochat verify d1 --home "$FOLDER" --every --json
mount -o remount,size=100m "$FOLDER"
train --resume
echo "exit $?"
"""


@pytest.mark.req("FR-019", "FR-020", "EC-5")
def test_training_ends_clearly_and_goes_on_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.jsonl"
    lines = ({"text": f"The river {n} is long, and its valley quiet."} for n in range(400))
    text.write_text("\n".join(map(json.dumps, lines)))
    monkeypatch.setenv("TEXT", str(text))
    (tmp_path / "disk").mkdir()
    done = on_a_small_disk(tmp_path / "disk", "6m", TRAINING)
    assert done.returncode == 0, done.stderr + done.stdout
    first, checked, *_, second = done.stdout.splitlines()
    errors = [line for line in done.stderr.splitlines() if line.startswith("nanochat: ")]
    assert (first, second) == ("exit 2", "exit 0"), done.stderr
    assert len(errors) == 1 and "No space left on device" in errors[0], done.stderr
    assert "earlier checkpoints are untouched: free some space" in errors[0]
    saved = [Path(entry["path"]).name for entry in json.loads(checked)["checkpoints"]]
    assert json.loads(checked)["is_valid"] and 1 <= len(saved) < 12
    assert f"going on after step {int(saved[0].removeprefix('step_'))} of 12" in done.stderr

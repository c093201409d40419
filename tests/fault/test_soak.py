"""Checkpoints under fire: kills and corruptions, as many as take seconds; `make soak` has more."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nanochat.checkpoint import manifest
from scripts import soak
from tests.conftest import REPOSITORY

KILLS, CORRUPTIONS = 40, 100

# A saver that writes its weights again where they lie: what killing is meant to find.
CARELESS = """
import sys, tempfile, time
from pathlib import Path
from nanochat.checkpoint import saver
from scripts import soak

save = saver.save_checkpoint

def careless(directory, checkpoint):
    save(directory, checkpoint)
    path = directory / "model.safetensors"
    content = path.read_bytes()
    with path.open("wb") as file:
        for at in range(0, len(content), 1 << 16):
            file.write(content[at : at + (1 << 16)])
            time.sleep(0.002)

saver.save_checkpoint = careless
sys.argv = ["soak", "--kills", "10", "--corruptions", "0"]
sys.exit(soak.main())
"""


def run(*arguments: str, code: int = 0) -> dict[str, Any]:
    """A process of its own: the tests' has threads, with which it cannot be forked safely."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.req("FR-019", "FR-045", "FR-047", "EC-5")
def test_no_kill_loses_a_checkpoint(tmp_path: Path) -> None:
    folder = ("--folder", str(tmp_path))
    result = run("scripts/soak.py", "--kills", str(KILLS), "--corruptions", "0", *folder)
    counts = result["kills"]
    assert counts["kills"] == KILLS and result["is_good"]
    assert counts["lost"] == counts["damaged"] == counts["mixed"] == 0
    assert counts["interrupted"] >= KILLS // 8  # half is usual: the kills come in the middle
    assert list(tmp_path.iterdir()) == []


def test_kills_find_a_saver_that_is_careless() -> None:
    assert not run("-c", CARELESS, code=1)["is_good"]


@pytest.mark.req("FR-047", "EC-2")
def test_no_corruption_is_accepted(tmp_path: Path) -> None:
    counts = soak.corruptions(tmp_path, CORRUPTIONS)
    assert counts["corruptions"] == CORRUPTIONS == sum(counts[kind] for kind in soak.DAMAGES)
    assert counts["accepted"] == counts["unnamed"] == counts["lost"] == 0


def test_corruptions_find_a_reader_that_looks_at_sizes_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify = manifest.verify_file

    def sizes_only(path: Path, entry: object, *, with_hash: bool = True) -> None:
        verify(path, entry, with_hash=False)

    monkeypatch.setattr(manifest, "verify_file", sizes_only)
    counts = soak.corruptions(tmp_path, 30)
    assert counts["accepted"] > 0 and counts["lost"] > 0


def test_speed_is_measured(tmp_path: Path) -> None:
    result = soak.speed(tmp_path, 1, num_rounds=1)
    assert result["load_ratio"] > 0 and result["megabytes"] > 1
    assert {"save_held_up_s", "save_s", "load_s", "read_and_hash_s", "first_use_s"} <= set(result)


def test_one_line_with_what_was_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["soak", "--kills", "0", "--corruptions", "3"])
    assert soak.main() == 0
    result = json.loads(capsys.readouterr().out)
    assert result["corruptions"]["corruptions"] == 3 and result["is_good"]
    monkeypatch.setattr(soak, "corruptions", lambda *arguments: {"accepted": 1})
    assert soak.main() == 1
    assert not json.loads(capsys.readouterr().out)["is_good"]

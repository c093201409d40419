"""Pretraining on a text that is tokenized while it trains, and on several by weight."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat.cli.main import main
from nanochat.common.dist import World
from nanochat.common.errors import ConfigError
from nanochat.corpus.world import prose
from nanochat.tokenizer.tokenizer import Tokenizer
from nanochat.train import clock
from nanochat.train.clock import Waiting
from nanochat.train.config import PretrainConfig
from tests.patience import PATIENCE_S, wait_until
from tests.train import test_world
from tests.train.test_world import in_processes

pytestmark = pytest.mark.timeout(2 * PATIENCE_S)

NUM_STEPS = 40


@pytest.fixture
def text(tmp_path: Path, tiny_tokenizer: Tokenizer) -> Path:
    """120,000 characters in two files, and a tokenizer beside them."""
    (tmp_path / "text").mkdir()
    for seed in range(2):
        lines = [json.dumps({"text": each}) for each in prose(60_000, seed)]
        (tmp_path / f"text/{seed}.jsonl").write_text("\n".join(lines) + "\n")
    tiny_tokenizer.save(tmp_path / "tokenizer.json")
    return tmp_path / "text"


def command(home: Path, text: Path, *words: str) -> list[str]:
    """40 steps of 256 tokens, through some four chapters."""
    flags = (
        "--run tiny --depth 2 --context-len 64 --head-dim 16 --aspect-ratio 16 --device cpu "
        f"--dtype float32 --compile off --num-steps {NUM_STEPS} --batch-tokens 256 "
        "--eval-tokens 256 --eval-every 20 --save-every 10 --chapter-chars 2700 --log-every 1 "
        "--remainders reuse"
    ).split()
    tokenizer = str(text.parent / "tokenizer.json")
    paths = ["--home", str(home), "--tokenizer", tokenizer]
    return ["pretrain", *paths, "--data", str(text), *flags, *words]


def rows_of(home: Path) -> list[dict[str, float]]:
    lines = (home / "runs/tiny/pretrain/metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def measured(home: Path) -> list[tuple[float | None, ...]]:
    return [(row["step"], row["loss"], row.get("val_bpb")) for row in rows_of(home)]


def chapters_in(home: Path) -> int:
    return len([*(home / "data/tokens").glob("*/?????/index.json")])


@pytest.mark.req("FR-020", "FR-034", "FR-035", "FR-036", "EC-5", "EC-7", "SC-011")
def test_killed_while_it_is_tokenized_it_goes_on_with_the_same_batches(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, halting, bare, cached = (
        tmp_path / name for name in ("whole", "halting", "bare", "cached")
    )
    assert main(command(whole, text)) == 0
    told = capsys.readouterr().err
    assert "tokens: about" in told and "tokenized while training runs (1 is there)" in told
    assert 4 <= chapters_in(whole) < 9  # as far as it was needed, and a little ahead
    assert all(0.0 <= row["data_wait_s"] < 60.0 for row in rows_of(whole))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-m", "nanochat", *command(halting, text)]
    with subprocess.Popen(program, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if f"step 25/{NUM_STEPS}" in line:
                process.kill()
                break
    assert len(rows_of(halting)) < NUM_STEPS
    shutil.copytree(halting, bare)
    shutil.rmtree(bare / "data")  # what had been tokenized is lost: it is tokenized again
    for home in (halting, bare):
        assert main(command(home, text)) == 0
        assert "going on after step 20" in capsys.readouterr().err
        assert measured(home) == measured(whole)
    # And once more where all that was needed is in the cache already.
    cached.mkdir()
    (whole / "data").rename(cached / "data")
    assert main(command(cached, text)) == 0
    assert measured(cached) == measured(whole)


@pytest.mark.req("FR-020", "EC-9")
def test_sigterm_saves_and_leaves_nobody(text: Path, tmp_path: Path) -> None:
    program = [sys.executable, "-m", "nanochat", *command(tmp_path, text, "--num-steps", "4000")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(program, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        children: list[int] = []
        for line in process.stderr:
            if "step 5/" in line:
                children = _children_of(process.pid)
                process.send_signal(signal.SIGTERM)
                break
        rest = process.stderr.read()
    assert process.returncode == 143, rest
    assert "was stopped by SIGTERM after step" in rest and "Traceback" not in rest
    wait_until(lambda: not any(Path(f"/proc/{child}").exists() for child in children))


def _children_of(process_id: int) -> list[int]:
    if not Path("/proc").is_dir():
        return []
    found = [
        int(stat.parent.name)
        for stat in Path("/proc").glob("[0-9]*/stat")
        if (told := _stat(stat)) is not None and told == process_id
    ]
    assert found, "a process in the background was expected"
    return found


def _stat(path: Path) -> int | None:
    """The parent of a process."""
    try:
        return int(path.read_text().rpartition(")")[2].split()[1])
    except OSError:  # it has just ended
        return None


@pytest.mark.req("EC-7", "FR-035")
def test_what_cannot_be_read_ends_training_with_its_line(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (text / "0.jsonl").read_text().splitlines()
    lines.insert(len(lines) // 5, "{")
    (text / "0.jsonl").write_text("\n".join(lines))
    (tmp_path / "held out.txt").write_text("The cat sat on the mat. " * 100)
    assert main(command(tmp_path, text, "--val-data", str(tmp_path / "held out.txt"))) == 2
    told = capsys.readouterr().err
    assert "0.jsonl, line " in told and "not JSON" in told
    assert "step 5/" in told  # what stands before it was trained on


def _both(world: World, folder: Path) -> int:
    return main(command(folder / "two", folder / "text"))


@pytest.mark.req("FR-016", "FR-034", "FR-036")
def test_two_ranks_read_what_one_of_them_writes(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(command(tmp_path / "one", text)) == 0
    monkeypatch.setattr(test_world, "TASKS", {"both": _both})
    assert in_processes(2, "both", tmp_path) == [0, 0]
    for one, two in zip(rows_of(tmp_path / "one"), rows_of(tmp_path / "two"), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=2e-2)
        assert two["num_targets"] == one["num_targets"]
    assert chapters_in(tmp_path / "two") >= 4


# --------------------------------------------------------------------------- several sources


@pytest.mark.req("FR-033", "FR-036")
def test_sources_by_weight(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(text / "0.jsonl"), str(text / "1.jsonl")]
    words = ["--data", *paths, "--weights", "3", "1"]
    flags = command(tmp_path / "home", text)
    place = flags.index("--data")
    flags[place : place + 2] = words
    assert main(flags) == 0
    told = capsys.readouterr().err
    assert f"{paths[0]}: 75.0% of the tokens, " in told
    assert f"{paths[1]}: 25.0% of the tokens, " in told and "times through it" in told
    rows = rows_of(tmp_path / "home")
    totals = [sum(row[f"tokens/{path}"] for row in rows) for path in paths]
    assert sum(totals) == NUM_STEPS * 256
    assert totals[0] / sum(totals) == pytest.approx(0.75, abs=0.1)
    for row in rows[19::20]:
        each = [row[f"val_bpb/{path}"] for path in paths]
        assert row["val_bpb"] == pytest.approx(0.75 * each[0] + 0.25 * each[1])


def test_weights_that_fit_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="weights has 1 numbers for 2 paths"):
        PretrainConfig(data=("a", "b"), weights=(1.0,))
    with pytest.raises(ConfigError, match="leave val_data out"):
        PretrainConfig(data=("a",), weights=(1.0,), val_data=("b",))
    with pytest.raises(ConfigError, match="chapter_chars is 0"):
        PretrainConfig(chapter_chars=0)


# --------------------------------------------------------------------------- standing still


def test_waiting_is_told_once_where_it_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(clock.time, "monotonic", lambda: now_s)
    waiting = Waiting()
    now_s = 110.0
    assert waiting.see(4.9) is None  # less than five seconds are never told
    now_s = 300.0
    assert waiting.see(4.0) is None  # nor is a twentieth of the time
    now_s = 310.0
    told = waiting.see(9.0)
    assert told is not None and told.startswith("17.9 s of the last 210 s were spent waiting")
    assert waiting.see(99.0) is None

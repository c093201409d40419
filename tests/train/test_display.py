"""Numbers on a terminal and where there is none."""

import io
import re
from pathlib import Path

import pytest

from nanochat.common.errors import CheckpointError, TrainingError
from nanochat.train.display import Display, format_duration


class Terminal(io.StringIO):
    """Text that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def row(step: int, **more: float) -> dict[str, float]:
    return {
        "step": step,
        "loss": 3.14159,
        "lr": 0.5,
        "num_targets": 128,
        "tokens_per_s": 12_345.6,
        "mfu": 0.4321,
        "memory_bytes": 3 * 2**30,
        "eta_s": 185.0,
        "elapsed_s": 1.0,
        **more,
    }


@pytest.mark.req("FR-025", "FR-078")
def test_plain_lines_now_and_then() -> None:
    text = io.StringIO()
    display = Display(stream=text, log_every=10)
    display.note("a note with [brackets]")
    display.start("pretrain", 25, lr=0.02)
    for step in range(1, 26):
        display.step(row(step, **({"val_bpb": 1.2345} if step == 17 else {})))
    display.stop()
    lines = text.getvalue().splitlines()
    assert lines[0] == "a note with [brackets]"
    assert [re.findall(r"step (\d+)/25", line) for line in lines[1:]] == [
        ["1"],
        ["10"],
        ["17"],
        ["20"],
        ["25"],
    ]
    assert lines[1] == (
        "pretrain step 1/25  loss 3.1416  lr 0.01 (x0.500)  12,346 tok/s  mfu 43.2%  mem 3.0 GiB  "
        "eta 3:05"
    )
    assert "loss 3.1416  val bpb 1.2345  lr" in lines[3]
    assert "val bpb" not in lines[4], "measured at step 17 only"
    assert "\x1b" not in text.getvalue()


@pytest.mark.req("FR-025", "FR-078")
def test_one_live_line_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("NO_COLOR", "CI", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    text = Terminal()
    display = Display(stream=text)
    display.start("sft", 5, lr=0.02)
    for step in range(1, 6):
        display.step(row(step, **({"val_bpb": 1.2345} if step == 3 else {})))
    display.stop()
    display.stop()  # twice does no harm
    written = text.getvalue()
    assert "sft step 3/5  loss 3.1416  val bpb 1.2345" in written, "a line that stays"
    last_live_line = written[written.rindex("step 5/5") :]
    assert last_live_line.startswith("step 5/5  loss 3.1416  val bpb 1.2345"), "the last one known"
    assert "step 5/5" in written and "12,346 tok/s" in written and "eta 3:05" in written
    assert "\x1b[2K" in written  # the line is taken away again
    display.note("after")
    assert text.getvalue().endswith("after\n")


def test_quiet_is_quiet() -> None:
    for text in (io.StringIO(), Terminal()):
        display = Display(stream=text, is_quiet=True)
        display.note("nothing")
        display.start("sft", 2, lr=0.02)
        display.step(row(1))
        display.stop()
        assert text.getvalue() == ""


def test_the_stream_is_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    Display().note("here")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "here\n")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (0.9, "0:00"),
        (59, "0:59"),
        (185, "3:05"),
        (3723, "1:02:03"),
        (90_000, "25:00:00"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.req("FR-025", "EC-5")
def test_a_full_disk_does_not_hide_what_ended_it(tmp_path: Path) -> None:
    """/dev/full refuses every byte: lines go on to the screen, and the reason stays the reason."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full, which Linux has")
    text = io.StringIO()
    with pytest.raises(CheckpointError, match="not saved"):
        with Display(stream=text).logging_to(Path("/dev/full")):
            raise CheckpointError("not saved")
    display = Display(stream=text)
    with display.logging_to(Path("/dev/full")):
        display.note("seen")
    assert "seen" in text.getvalue()
    with pytest.raises(TrainingError, match=r"log\.txt: not written, .*--resume"):
        with display.logging_to(tmp_path / "absent" / "log.txt"):
            pass


@pytest.mark.req("FR-025")
def test_lines_are_kept_in_a_file_too(tmp_path: Path) -> None:
    """Whatever the terminal shows, and what ended the stage as well; a second part is added."""
    path = tmp_path / "log.txt"
    for text in (io.StringIO(), Terminal()):
        display = Display(stream=text, log_every=2)
        with display.logging_to(path):
            display.note("the plan")
            display.start("sft", 5, lr=0.02)
            for step in range(1, 6):
                display.step(row(step))
            display.stop()
        display.note("not in it")
    with pytest.raises(OSError), display.logging_to(path):
        raise OSError("disk full")
    lines = [line.split("  ")[1:3] for line in path.read_text().splitlines()]
    part = [["the plan"], *(["sft step " + f"{step}/5", "loss 3.1416"] for step in (1, 2, 4, 5))]
    assert lines == [*part, *part, ["OSError: disk full"]]
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  the plan\n", path.read_text())

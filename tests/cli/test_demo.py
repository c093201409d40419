"""nanochat demo: the story end to end, small, on the built-in world and on one's own text."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from nanochat.batches.sources import Chats
from nanochat.checkpoint.resolve import load
from nanochat.cli import demo, demo_story, serve
from nanochat.cli.main import main
from nanochat.common.errors import ConfigError
from nanochat.evals.exam import Exam

pytestmark = pytest.mark.req("US-3", "SC-003", "FR-021", "FR-022", "FR-023", "FR-043", "FR-078")

SMALL: dict[str, Any] = {
    "minutes": 0.02,
    "depth": 1,
    "aspect_ratio": 32,
    "head_dim": 16,
    "context_len": 256,
    "batch_tokens": 512,
    "sft_rows": 4,
    "most_tokens": 2048,
}


CHAT_LINES = [
    json.dumps(
        {
            "messages": [
                {"role": "user", "content": f"What is {n}?"},
                {"role": "assistant", "content": f"It is {n}."},
            ]
        }
    )
    for n in range(600)
]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A demo of seconds: the recipes shrunk, a few texts, the first nine questions."""
    monkeypatch.setattr(demo_story, "WORLD", dataclasses.replace(demo_story.WORLD, **SMALL))
    own = dataclasses.replace(demo_story.OWN, **SMALL | {"vocab_size": 300})
    monkeypatch.setattr(demo_story, "OWN", own)
    monkeypatch.setattr(demo_story, "WORLD_CHARS", 60_000)
    monkeypatch.setattr(demo_story, "WORLD_CONVERSATIONS", 200)
    monkeypatch.setattr(demo_story, "EVAL_TOKENS", 512)


@pytest.mark.usefixtures("small")
def test_the_built_in_world_needs_no_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    exams: list[Exam] = []

    def fast_exam(engine: object, tokenizer: object) -> Exam:
        exams.append(Exam.from_replies(["I am nanochat."] * 322))
        return exams[-1]

    monkeypatch.setattr(demo_story, "take_exam", fast_exam)
    assert main(["demo", "--no-serve", "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out.splitlines()[-1])
    assert set(result) == {"wall_s", "held_out_correct", "held_out_total", "run", "report"}
    assert result["held_out_total"] == 322 and len(exams) == 2, "before and after fine-tuning"
    for word in ("The vocabulary", "Pretraining", "Mid-training", "Fine-tuning", "guesser"):
        assert word in captured.err
    run = home / "runs" / "demo"
    stages = {"pretrain", "midtrain", "sft"}
    assert {path.name for path in run.iterdir()} == {*stages, "report.html", "demo.json"}
    assert json.loads((run / "demo.json").read_text())["serve"] is False, "what was asked for"
    page = Path(result["report"]).read_text()
    assert "<svg" in page and "addition" in page
    loaded = load("demo", home=home)
    assert loaded.stage == "sft" and loaded.is_chat
    assert main(["demo", "--no-serve"]) == 0, "a second demo replaces the first"


@pytest.mark.usefixtures("small")
def test_ones_own_text_and_conversations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "books"
    text.mkdir()
    for number in range(12):
        lines = [
            f"The river {number} ran past the mill, and the mill turned {n} times.\n\n"
            for n in range(30)
        ]
        (text / f"{number}.txt").write_text("".join(lines))
    chats = tmp_path / "chats.jsonl"
    chats.write_text("\n".join(CHAT_LINES[:150]))
    served: list[serve.Config] = []
    monkeypatch.setattr(serve, "run", lambda config: served.append(config) or 0)
    argv = ["demo", "--text", str(text), "--chats", str(chats), "--minutes", "0.1", "--run", "own"]
    assert main([*argv, "--json", "--port", "8123", "--no-open"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["held_out_total"] is None and result["run"] == "own"
    page = Path(result["report"]).read_text()
    assert page.count("What is ") >= 5, "five sample conversations"
    assert "validation bpb" in page
    assert [(config.model, config.port, config.open) for config in served] == [("own", 8123, False)]


@pytest.mark.req("EC-3")
def test_half_a_story_of_ones_own_is_refused() -> None:
    with pytest.raises(ConfigError, match="--text is given without --chats"):
        demo.Config(text=("a.txt",))
    with pytest.raises(ConfigError, match="minutes is 0, expected"):
        demo.Config(minutes=0)


@pytest.fixture
def trains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A demo that comes to its first training fails."""

    def pretrain(*_: object) -> None:
        raise AssertionError("it was trained")

    monkeypatch.setattr(demo_story, "pretrain", pretrain)


@pytest.mark.req("EC-2")
@pytest.mark.usefixtures("small", "trains_nothing")
def test_a_bad_conversation_is_told_before_anything_is_trained_or_replaced(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier = home / "runs" / "own"
    (earlier / "sft").mkdir(parents=True)
    (earlier / "demo.json").write_text("{}")
    text, chats = tmp_path / "text.jsonl", tmp_path / "chats.jsonl"
    lines = [f"The mill of village {n} turned {n} times in the river." for n in range(300)]
    text.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    chats.write_text("\n".join([*CHAT_LINES, "this is no JSON"]))
    Chats.from_files([str(chats)])  # what is held out is known long before the last line
    argv = ["demo", "--text", str(text), "--chats", str(chats), "--run", "own", "--no-serve"]
    assert main(argv) == 2
    said = capsys.readouterr().err.splitlines()
    assert f"{chats}" in said[-1] and "601" in said[-1]
    assert sorted(path.name for path in earlier.iterdir()) == ["demo.json", "sft"]
    assert not any("tmp" in path.name for path in (home / "data" / "tokens").iterdir())


@pytest.mark.req("EC-3")
@pytest.mark.usefixtures("small", "trains_nothing")
def test_the_run_of_another_command_is_not_replaced(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = home / "runs" / "d12" / "pretrain" / "weights"
    weights.parent.mkdir(parents=True)
    weights.write_text("of many hours")
    assert main(["demo", "--run", "d12", "--no-serve"]) == 2
    said = capsys.readouterr().err
    assert "run d12 is no demo" in said and "choose another --run" in said
    assert len(said.splitlines()) == 1, "before anything else is done"
    assert weights.read_text() == "of many hours"

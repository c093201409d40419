"""A vocabulary is learnt once, by a process of its own."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from nanochat.batches import vocabulary
from nanochat.batches.sources import Texts
from nanochat.batches.vocabulary import learnt_tokenizer, tokenizer_place
from nanochat.common.errors import DataError, TokenizerError, TrainingError
from nanochat.tokenizer.train import train_tokenizer

pytestmark = pytest.mark.req("FR-016", "FR-026")


@pytest.fixture
def texts(tmp_path: Path) -> list[Texts]:
    """Two folders of different words."""
    found = []
    for name, word in (("a", "apple"), ("b", "banana")):
        folder = tmp_path / name
        folder.mkdir()
        lines = [json.dumps({"text": f"{word} number {number} of many"}) for number in range(200)]
        (folder / "x.jsonl").write_text("\n".join(lines))
        found.append(Texts.from_files([str(folder)], home=tmp_path / "home"))
    return found


def test_it_is_that_of_the_text_and_learnt_once(
    texts: list[Texts], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    learnt = learnt_tokenizer(texts, 300, home)
    documents = [document.text for text in texts for document in text.documents("train", None)]
    assert learnt == train_tokenizer(documents, 300)
    place = tokenizer_place(texts, 300, home)
    assert place.parent == home / "tokenizers" and place.is_file()
    # Another rank, or the same job after a restart.
    monkeypatch.setattr(vocabulary, "_learn_elsewhere", None)
    assert learnt_tokenizer(texts, 300, home) == learnt
    others = {tokenizer_place(those, size) for those, size in ((texts, 301), (texts[:1], 300))}
    (tmp_path / "a" / "x.jsonl").write_text('{"text": "other"}\n{"text": "text"}\n')
    changed = [Texts.from_files([str(tmp_path / "a")], home=home), texts[1]]
    assert len(others | {tokenizer_place(changed, 300), place}) == 4


def test_the_rank_is_free_meanwhile_and_ends_it(
    texts: list[Texts], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes: list[subprocess.Popen[bytes]] = []

    class Killed(subprocess.Popen):  # type: ignore[type-arg]
        def communicate(self, *said: Any, **more: Any) -> Any:
            processes.append(self)
            assert self.pid != os.getpid()
            os.kill(self.pid, signal.SIGKILL)
            return super().communicate(*said, **more)

    monkeypatch.setattr(subprocess, "Popen", Killed)
    with pytest.raises(TrainingError, match=r"process \d+\) ended with code -9: if memory"):
        learnt_tokenizer(texts, 300, tmp_path / "home")
    assert processes[0].returncode == -signal.SIGKILL


def test_what_is_wrong_with_the_text_is_told_as_ever(texts: list[Texts], tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="vocab_size is 30000, but the"):
        learnt_tokenizer(texts, 30_000, tmp_path / "home")
    (tmp_path / "b" / "x.jsonl").write_text('{"text": "a"}\nno JSON\n')
    with pytest.raises(DataError, match=r"x\.jsonl, line 2: not JSON"):
        learnt_tokenizer(texts, 300, tmp_path / "home")
    assert not list((tmp_path / "home").glob("tokenizers/*.json"))

"""chat_files.py: what was saved comes back, what is no conversation is refused in one line."""

import json
import os
import stat
from pathlib import Path

import pytest

from nanochat.cli.chat_files import (
    history_path,
    load_conversation,
    open_history,
    save_conversation,
)
from nanochat.common.errors import DataError
from nanochat.common.messages import Message, Part

TALK = (
    Message("system", "S"),
    Message("user", "6*7?"),
    Message("assistant", (Part("python", "6*7"), Part("python_output", "42"), Part("text", "42."))),
)


def test_a_conversation_comes_back_as_it_was(tmp_path: Path) -> None:
    path = save_conversation(tmp_path / "new" / "talk", TALK)
    assert path == tmp_path / "new" / "talk.json"
    assert load_conversation(path) == (path, TALK)
    assert load_conversation(tmp_path / "new" / "talk") == (path, TALK)
    with pytest.raises(DataError, match="exists already"):
        save_conversation(path, TALK)
    save_conversation(path, TALK[:1], overwrite=True)
    with pytest.raises(DataError, match="cannot be written"):
        save_conversation(path / "below a file", TALK)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b"\xff", "not UTF-8"),
        (b'{"messages": []}', "non-empty list of messages"),
        (b'{"messages": 3}', 'expected {"messages": [...]}'),
        (b'"text"', 'expected {"messages": [...]}'),
        (b'[{"role": "robot", "content": ""}]', "role is 'robot'"),
        (b'[{"role": "user", "content": [{"type": "image_url"}]}]', "must be a string"),
        (b'[{"role": "assistant", "content": "a"}]', "message 0 is from assistant, expected user"),
        (b"[" * 100_000, "talk.json"),
        (b" " * (2**24 + 1), "bytes, expected one conversation"),
    ],
)
def test_what_is_no_conversation_is_refused_in_one_line(
    content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "talk.json"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_conversation(path)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.json", tmp_path):
        with pytest.raises(DataError, match=str(path)):
            load_conversation(path)
    with pytest.raises(DataError, match="cannot be read"):
        load_conversation(tmp_path / ("x" * 300))


def test_openai_exports_that_are_a_list_of_messages_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"role": "user", "content": "Hi", "name": "x"}]))
    assert load_conversation(path)[1] == (Message("user", "Hi"),)


@pytest.mark.req("FR-051")
def test_history_is_kept_and_private(tmp_path: Path) -> None:
    path = history_path(tmp_path / "home")
    before = os.umask(0)
    try:
        open_history(path).store_string("two\nlines \udc80")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(open_history(path).load_history_strings()) == ["two\nlines ?"]
    path.chmod(0o644)  # of an older program, or a copy
    open_history(path).store_string("next")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(open_history(path).load_history_strings()) == ["next", "two\nlines ?"]


def test_history_does_not_grow_without_end(tmp_path: Path) -> None:
    path = tmp_path / "history"
    history = open_history(path)
    for number in range(12):
        history.store_string(f"{number} " + "x" * 100_000)
    assert path.stat().st_size > 2**20
    kept = list(open_history(path).load_history_strings())
    assert [text.split()[0] for text in kept] == ["11", "10", "9", "8", "7"]
    assert all(len(text) > 100_000 for text in kept)


def test_a_history_that_cannot_be_kept_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot keep what is typed"):
        open_history(tmp_path / "file" / "history")

"""chat_commands.py: every command does what /help says of it, and says what is wrong."""

import json
from collections.abc import Generator
from pathlib import Path

import pytest

from nanochat.cli.chat_commands import COMMANDS, Command, Desk, is_command, obey
from nanochat.cli.chat_talk import Piece, Settings, Talk
from nanochat.common.errors import ConfigError, DataError, EngineError, NanochatError
from nanochat.common.messages import Message, Part
from nanochat.corpus.conversations import read_conversations
from tests.cli.chat_fakes import Scripted, whole


class Room:
    """A desk, and what was said and answered at it."""

    def __init__(self, backend: Scripted | None = None) -> None:
        self.backend = backend or Scripted(context_len=50)
        self.talk = Talk(self.backend, Settings())
        self.said: list[str] = []
        self.answers: list[str] = []
        self.desk = Desk(talk=self.talk, say=self.said.append, answer=self._answer)

    def obey(self, line: str) -> str:
        """What is said in reply."""
        self.said.clear()
        obey(self.desk, line)
        return "\n".join(self.said)

    def _answer(self, pieces: Generator[Piece, None, None]) -> None:
        self.answers.append(whole(pieces))


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Room:
    monkeypatch.chdir(tmp_path)
    return Room()


def test_a_slash_and_a_word_is_a_command_and_nothing_else_is() -> None:
    assert all(map(is_command, ["/help", "/help me", "/nothing", "/", "/system a/b"]))
    assert not any(
        map(is_command, ["", "//", "// a comment", "//help", "/etc/hosts", " /help", "a"])
    )


def test_help_tells_every_command(room: Room) -> None:
    told = room.obey("/help")
    for name, command in COMMANDS.items():
        assert isinstance(command, Command)
        assert f"{name} {command.argument}".strip() in told and command.summary in told
    assert "Alt-Enter" in told


def test_any_blank_ends_the_word_of_a_command(room: Room) -> None:
    assert room.obey("/system\nYou are kind.\nAnd short.\n") == (
        "the system message is: You are kind.\nAnd short."
    )
    assert room.obey("/temperature\t0.5") == "temperature is 0.5"
    with pytest.raises(ConfigError, match="/quit takes nothing after it, got 'now'"):
        room.obey("/quit\nnow")


def test_an_unknown_command_names_the_nearest(room: Room) -> None:
    for line, nearest in (("/temprature 1", "/temperature"), ("/sav", "/save"), ("/xyzzyx", "")):
        with pytest.raises(ConfigError, match="there is no command") as caught:
            room.obey(line)
        assert (f"did you mean '{nearest}'" in str(caught.value)) == bool(nearest)
    with pytest.raises(ConfigError, match="/quit takes nothing after it, got 'now'"):
        room.obey("/quit now")


def test_the_system_message(room: Room) -> None:
    assert room.obey("/system") == "there is no system message"
    assert room.obey("/system Be kind. ") == "the system message is: Be kind."
    whole(room.talk.ask("a"))
    assert room.backend.asked[0][0] == Message("system", "Be kind.")
    assert room.obey("/system clear") == "there is no system message"


@pytest.mark.parametrize(
    ("command", "field", "value", "default", "wrong"),
    [
        ("/temperature", "temperature", 0.5, "0.8, the default", ("hot", "99", "nan", "")),
        ("/top-p", "top_p", 0.5, "1.0, the default", ("0", "1.5", "")),
        ("/top-k", "top_k", 7, "50, the default", ("-1", "1.5", "")),
        ("/max-tokens", "max_tokens", 7, "256, the default", ("0", "many", "")),
    ],
)
def test_settings(
    room: Room, command: str, field: str, value: float, default: str, wrong: tuple[str, ...]
) -> None:
    name = command[1:]
    assert room.obey(command) == f"{name} is {default}"
    assert room.obey(f"{command} {value}") == f"{name} is {value}"
    for text in filter(None, wrong):
        with pytest.raises(ConfigError, match=f"expected .*it stays {value}"):
            room.obey(f"{command} {text}")
    whole(room.talk.ask("a"))
    assert getattr(room.backend.settings[0], field) == value
    assert room.obey(f"{command} default") == f"{name} is {default}"
    room.backend.defaults = None
    assert room.obey(command) == f"{name} is the server's default"


def test_saving_and_loading(room: Room, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to save"):
        room.obey("/save")
    room.obey("/system S")
    whole(room.talk.ask("caf\u00e9"))
    assert room.obey("/save talk") == "saved 2 messages to talk.json"
    saved = json.loads((tmp_path / "talk.json").read_text())
    assert saved == {
        "messages": [
            {"role": "system", "content": "S"},
            {"role": "user", "content": "caf\u00e9"},
            {"role": "assistant", "content": "ok"},
        ]
    }
    whole(room.talk.ask("more"))
    assert "saved 4 messages" in room.obey("/save")  # the same file again
    other = Room()
    assert other.obey("/load talk") == "loaded 5 messages from talk.json"
    assert other.talk.conversation == room.talk.conversation
    whole(other.talk.ask("and more"))
    assert "saved 6 messages" in other.obey("/save talk.json")
    whole(room.talk.ask("x"))
    room.desk.path = None
    with pytest.raises(DataError, match="talk.json exists already: choose another name"):
        room.obey("/save talk")
    assert room.obey("/save").startswith("saved 6 messages to chat-")
    with pytest.raises(ConfigError, match="/load wants the name of a file"):
        room.obey("/load")


@pytest.mark.req("FR-023")
def test_training_reads_what_is_saved(room: Room, tmp_path: Path) -> None:
    room.talk.load(
        (
            Message("system", "S"),
            Message("user", "6*7?"),
            Message(
                "assistant",
                (Part("python", "6*7"), Part("python_output", "42"), Part("text", "42")),
            ),
        )
    )
    room.obey("/save a.json")
    assert list(read_conversations([tmp_path / "a.json"])) == [room.talk.conversation]


def test_retry_undo_drop_and_clear(room: Room) -> None:
    with pytest.raises(DataError, match="nothing was asked"):
        room.obey("/retry")
    room.backend.script = [["first"], ["second"], ["third"]]
    whole(room.talk.ask("a"))
    room.obey("/retry")
    assert room.answers == ["second"]
    whole(room.talk.ask("b"))
    assert room.obey("/undo") == "taken back: the last question and its answer; 1 are left"
    assert room.desk.draft == "b"
    assert room.obey("/drop") == "forgotten: the oldest 1 questions and answers; 0 are left"
    for wrong in ("0", "-1", "all"):
        with pytest.raises(ConfigError, match="expected how many questions to forget"):
            room.obey(f"/drop {wrong}")
    whole(room.talk.ask("c"))
    assert room.obey("/clear") == "forgotten"
    assert room.talk.turns == ()


def test_a_question_that_waits_is_pointed_out(room: Room) -> None:
    room.backend.script = [["b" * 40]]
    whole(room.talk.ask("a"))
    with pytest.raises(NanochatError, match="the context is 50"):
        whole(room.talk.ask("c" * 20))
    assert room.obey("/drop").endswith("0 are left; /retry asks the last one again")
    room.obey("/retry")
    assert room.answers == ["ok"]


def test_stats(room: Room) -> None:
    told = room.obey("/stats")
    assert told == "model    scripted (nowhere)\ncontext  0 of 50 tokens, 0 messages"
    room.backend.script = [["ab", "cd", EngineError("x")], ["ab"]]
    with pytest.raises(EngineError):
        whole(room.talk.ask("a"))
    assert "4 tokens" in room.obey("/stats") and "ended by you" in room.obey("/stats")
    unknown = Room(Scripted())
    whole(unknown.talk.ask("a"))
    assert "context  3 of ? tokens, 2 messages" in unknown.obey("/stats")
    assert "ended by stop" in unknown.obey("/stats")


@pytest.mark.parametrize("line", ["/quit", "/exit"])
def test_leaving(room: Room, line: str) -> None:
    assert not room.desk.is_over
    room.obey(line)
    assert room.desk.is_over

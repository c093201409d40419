"""chat_input.py and chat_loop.py by keys: Enter sends, nothing is fatal."""

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import fragment_list_to_text
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from nanochat.cli.chat_files import history_path, open_history
from nanochat.cli.chat_input import CommandCompleter, is_unfinished, make_session, message_of
from nanochat.cli.chat_loop import answer_status, converse, toolbar_text
from nanochat.cli.chat_screen import PlainScreen
from nanochat.cli.chat_talk import Reply, Settings, Talk
from nanochat.common.errors import EngineError
from nanochat.common.messages import Conversation
from tests.cli.chat_fakes import Scripted

ALT_ENTER, CTRL_C, CTRL_D, CTRL_J, TAB, UP = "\x1b\r", "\x03", "\x04", "\n", "\t", "\x1b[A"
PASTE = "\x1b[200~{}\x1b[201~"


def type_in(keys: str, backend: Scripted, home: Path) -> Talk:
    """A conversation in which a person types these keys, then leaves."""
    talk = Talk(backend, Settings(), remedy="/drop or /clear")
    with create_pipe_input() as typed, create_app_session(typed, DummyOutput()):
        typed.send_text(keys + CTRL_D)
        converse(talk, PlainScreen(), home)
    return talk


def questions(talk: Talk) -> list[str]:
    return [str(message.content) for message in talk.turns[::2]]


@pytest.mark.parametrize(
    ("keys", "sent"),
    [
        ("Hi\r", ["Hi"]),
        (f"two{ALT_ENTER}lines\r", ["two\nlines"]),
        (f"two{CTRL_J}lines\r", ["two\nlines"]),
        ("two\\\rlines\r", ["two\nlines"]),
        ("a\\\\\r", ["a\\\\"]),
        ('"""two\r\r lines\r"""\r', ["two\n\n lines"]),
        ('"""one"""\r', ["one"]),
        ('""" a """ b\r"""\r', [' a """ b']),
        (PASTE.format("def f():\r    /help\r") + "\r", ["def f():\n    /help"]),
        ("  \r \r", []),
        ("// a comment\r/etc/hosts\r /help\r", ["// a comment", "/etc/hosts", "/help"]),
        (f"typo{CTRL_C}right\r", ["right"]),
        ("/undo\rone\r/undo\r more\r", ["one more"]),
        ("/temp\t 0.5\rx\r", ["x"]),
    ],
)
def test_what_is_typed_is_what_is_sent(keys: str, sent: list[str], home: Path) -> None:
    assert questions(type_in(keys, Scripted(), home)) == sent


def test_a_conversation_by_keys(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backend = Scripted([["half", KeyboardInterrupt()], [KeyboardInterrupt()], [EngineError("bad")]])
    keys = "a\rb\rc\rd\r/temperature 0.1\re\r/temperature hot\r/nothing\r/stats\r/quit\rnever\r"
    talk = type_in(keys, backend, home)
    out, err = capsys.readouterr()
    assert questions(talk) == ["a", "d", "e"]
    assert out.count("(stopped)") == 2 and "half\n(stopped)" in out
    assert "temperature is 0.1" in out and "scripted (nowhere). /help lists" in out
    assert err.splitlines() == [
        "nanochat: bad",
        "nanochat: temperature is 'hot', expected a number or default; it stays 0.1",
        "nanochat: there is no command /nothing (/help lists them; a space before the slash says "
        "it to the model)",
    ]
    assert backend.settings[-1].temperature == 0.1
    assert talk.conversation[1].content == "half"


@pytest.mark.req("EC-4")
def test_a_full_context_is_said_with_what_can_be_done(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = Scripted([["b" * 30]], context_len=40)
    talk = type_in("a\rcccccccccc\r/drop\r/retry\r", backend, home)
    out, err = capsys.readouterr()
    assert "has 41 tokens with this question but the context is 40" in err
    assert "/drop or /clear" in err
    assert "forgotten: the oldest 1 questions and answers; 0 are left; /retry asks" in out
    assert questions(talk) == ["cccccccccc"]


def test_an_answer_that_was_cut_is_pointed_out(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Cut(Scripted):
        reason = "length"

        def stream(self, conversation: Conversation, settings: Settings, reply: Reply) -> Any:
            yield from super().stream(conversation, settings, reply)
            reply.finish_reason = self.reason

    backend = Cut([["ab"], ["c" * 40]], context_len=45)
    type_in("a\rb\r", backend, home)
    out = capsys.readouterr().out
    assert "(stopped at 2 tokens: /max-tokens allows more)" in out
    assert "(the context of 45 tokens is full: /drop forgets the oldest turns)" in out
    backend.reason, backend.script = "content_filter", []
    type_in("a\r", backend, home)
    assert "(ended: content_filter)" in capsys.readouterr().out


@pytest.mark.req("FR-051")
def test_what_was_typed_is_there_in_the_next_session(home: Path) -> None:
    type_in('first\r"""two\rlines"""\r', Scripted(), home)
    assert stat.S_IMODE(history_path(home).stat().st_mode) == 0o600
    talk = type_in(f"{UP}{UP}{UP}\r", Scripted(), home)  # the second has two lines
    assert questions(talk) == ["first"]
    assert list(open_history(history_path(home)).load_history_strings())[-1] == "first"


def test_without_a_place_for_history_the_chat_goes_on(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    history_path(home).mkdir()
    assert questions(type_in("a\r", Scripted(), home)) == ["a"]
    assert "it is kept for this session only" in capsys.readouterr().err


def test_unfinished_text_waits() -> None:
    assert is_unfinished('"""') and is_unfinished('"""a\nb') and is_unfinished("a\\")
    assert not any(map(is_unfinished, ["", "a", 'say """', '"""a"""', "a\\\\", '""""""']))
    assert message_of(' """a\n""" ') == "a"
    assert message_of('"""open') == '"""open'
    assert message_of(" a\n") == "a"


def completions(text: str) -> list[str]:
    return [
        completion.text
        for completion in CommandCompleter().get_completions(Document(text), CompleteEvent())
    ]


def test_completion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert completions("/te") == ["/temperature"]
    assert {"/save", "/stats", "/system"} == set(completions("/s"))
    assert completions("say /te") == [] and completions("hello") == []
    monkeypatch.chdir(tmp_path)
    (tmp_path / "talk.json").write_text("")
    assert completions("/load ta") == ["lk.json"]
    assert completions("/temperature ta") == []


def test_the_toolbar_says_model_context_and_speed() -> None:
    talk = Talk(Scripted(context_len=10), Settings())
    assert toolbar_text(talk) == "scripted  |  context 0/10 tokens"
    talk.last = Reply(num_tokens=5, first_s=1.0, last_s=3.0)
    talk.num_context_tokens = None
    assert toolbar_text(talk) == "scripted  |  context ?/10 tokens  |  2.0 tokens/s"


def test_the_toolbar_turns_yellow_before_the_context_is_full() -> None:
    from nanochat.cli.chat_loop import _toolbar

    talk = Talk(Scripted(context_len=10), Settings())
    for used, style in ((9, "class:bottom-toolbar"), (10, "class:bottom-toolbar.full")):
        talk.num_context_tokens = used
        ((name, text),) = [fragment[:2] for fragment in _toolbar(talk)]
        assert (name, text.strip()) == (style, toolbar_text(talk))
        assert fragment_list_to_text(_toolbar(talk)) == text


def test_the_status_of_an_answer() -> None:
    talk = Talk(Scripted(), Settings())
    status = answer_status(talk)
    assert status() == "reading; Ctrl-C stops"
    talk.last = Reply(num_tokens=5, first_s=1.0, last_s=3.0, has_begun=True)
    assert status() == "5 tokens, 2.0 tokens/s; Ctrl-C stops"
    talk.last = Reply(has_begun=True)
    assert status() == "Ctrl-C stops"


@pytest.fixture
def no_terminal() -> Iterator[None]:
    with create_pipe_input() as typed, create_app_session(typed, DummyOutput()):
        yield


def test_a_session_has_a_toolbar(no_terminal: None) -> None:
    session = make_session(InMemoryHistory(), lambda: [("", "here")])
    assert session.bottom_toolbar is not None and session.multiline

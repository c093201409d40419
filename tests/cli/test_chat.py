"""chat.py: turns are remembered or forgotten whole; Ctrl-C stops an answer and nothing else."""

import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from nanochat.cli import chat as chat_module
from nanochat.cli.chat import Chat, Config, fit_conversation
from nanochat.cli.main import main
from nanochat.cli.model_options import Opened
from nanochat.common.errors import EngineError
from nanochat.common.messages import Message
from nanochat.engine.request import Request, TokenEvent
from nanochat.tokenizer.chat import render_prompt
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.cli.models import save_model


class Parrot:
    """An engine that answers with its script, then with "ok"; an exception in it is raised."""

    context_len = 60

    def __init__(self, tokenizer: Tokenizer, script: Sequence[Sequence[str | BaseException]] = ()):
        self.tokenizer, self.script = tokenizer, list(script)
        self.prompts: list[str] = []
        self.seeds: list[int] = []
        self.temperatures: list[float] = []
        self.closed = 0

    def stream(self, request: Request) -> "Parrot.Events":
        self.prompts.append(self.tokenizer.decode(request.prompt_tokens))
        self.seeds.append(request.sampling.seed)
        self.temperatures.append(request.sampling.temperature)
        return Parrot.Events(self, self.script.pop(0) if self.script else ["ok"])

    class Events:
        def __init__(self, parrot: "Parrot", pieces: Sequence[str | BaseException]) -> None:
            self.parrot, self.pieces = parrot, pieces

        def __iter__(self) -> Iterator[TokenEvent]:
            encode = self.parrot.tokenizer.encode
            for piece in self.pieces:
                if isinstance(piece, BaseException):
                    raise piece
                for token in encode(piece):
                    yield self.event(token, self.parrot.tokenizer.decode([token]))
            yield self.event(self.parrot.tokenizer.special("<|assistant_end|>"), "", "stop")

        def event(self, token: int, text: str, reason: Any = None) -> TokenEvent:
            return TokenEvent(
                request_id="chat", token=token, text=text, logprob=0.0, finish_reason=reason
            )

        def close(self) -> None:
            self.parrot.closed += 1


@pytest.fixture
def parrot(tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Parrot:
    """The engine behind every model that is opened."""
    parrot = Parrot(tiny_tokenizer)
    opened = Opened(engine=parrot, name="parrot", is_chat=True)  # type: ignore[arg-type]
    monkeypatch.setattr(chat_module, "open_model", lambda config: opened)
    return parrot


def said(*turns: str) -> str:
    """What the model reads of these turns: <|...|> user, assistant, user ..."""
    marks = ("<|user_start|>{}<|user_end|>", "<|assistant_start|>{}<|assistant_end|>")
    body = "".join(marks[number % 2].format(text) for number, text in enumerate(turns))
    return f"<|bos|>{body}<|assistant_start|>"


def pipe_in(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def type_in(monkeypatch: pytest.MonkeyPatch, keys: str, *argv: str) -> int:
    """Run the chat on a terminal where a person types these keys."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    with create_pipe_input() as typed, create_app_session(typed, DummyOutput()):
        typed.send_text(keys)
        return main(["chat", "parrot", *argv])


@pytest.mark.req("FR-051")
def test_each_line_of_a_pipe_is_a_turn(
    parrot: Parrot, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parrot.script = [["one"], ["two\nlines"], [""]]
    pipe_in(monkeypatch, b"a\n\n  \nb\r\nc\xff")
    assert main(["chat", "parrot", "--seed", "4"]) == 0
    assert capsys.readouterr() == ("one\ntwo\nlines\n\n", "")
    assert parrot.prompts == [
        said("a"), said("a", "one", "b"), said("a", "one", "b", "two\nlines", "c\ufffd")
    ]  # fmt: skip
    assert len(set(parrot.seeds)) == 3
    assert parrot.closed == 3


def test_a_system_message_stays(parrot: Parrot, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "parrot", "-p", "Hi", "--system", "Be kind."]) == 0
    assert parrot.prompts == [said("Be kind.\n\nHi")]
    assert capsys.readouterr().out == "ok\n"


def test_json_is_one_object_a_turn(
    parrot: Parrot, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe_in(monkeypatch, b"a\nb\n")
    assert main(["chat", "parrot", "--json"]) == 0
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert results == [
        {"prompt": question, "text": "ok", "finish_reason": "stop"} for question in "ab"
    ]


@pytest.mark.req("EC-4")
def test_the_oldest_turns_are_forgotten_whole_with_a_notice(
    parrot: Parrot, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parrot.script = [["abcdefghij"]] * 4
    pipe_in(monkeypatch, b"0123456789\nABCDEFGHIJ\nKLMNOPQRST\nU\n")
    assert main(["chat", "parrot", "--system", "S"]) == 0
    assert "the context is full: the oldest 2 messages are forgotten" in capsys.readouterr().err
    assert parrot.prompts[1:] == [
        said("S\n\n0123456789", "abcdefghij", "ABCDEFGHIJ"),
        said("S\n\nABCDEFGHIJ", "abcdefghij", "KLMNOPQRST"),
        said("S\n\nKLMNOPQRST", "abcdefghij", "U"),
    ]


def test_fitting_keeps_the_last_question_and_never_splits_a_pair(
    tiny_tokenizer: Tokenizer,
) -> None:
    turns = tuple(
        Message(("user", "assistant")[number % 2], f"{number}" * 5)  # type: ignore[arg-type]
        for number in range(9)
    )
    system = (Message("system", "S"),)
    for room in range(0, 100, 7):
        fitted = fit_conversation(system, turns, tiny_tokenizer, room)
        assert fitted == turns[len(turns) - len(fitted) :]
        assert fitted[0].role == fitted[-1].role == "user"
        length = len(render_prompt((*system, *fitted), tiny_tokenizer))
        assert length <= room or len(fitted) == 1


def test_a_question_larger_than_the_context_is_a_mistake(
    home: Path, tiny_tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(home, tiny_tokenizer)
    assert main(["chat", "tiny", "-p", "x" * 500]) == 2
    assert "the prompt has 504 tokens but the context is 96" in capsys.readouterr().err
    assert main(["chat", "tiny", "-p", ""]) == 2
    assert "the prompt is empty" in capsys.readouterr().err


def test_a_base_model_is_announced(
    home: Path, tiny_tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(home, tiny_tokenizer, run="base", stage="pretrain")
    assert main(["chat", "base", "-p", "Hi", "--max-tokens", "3"]) == 0
    assert "base is a base model" in capsys.readouterr().err


# -------------------------------------------------------------------------------- on a terminal


def test_a_conversation_on_a_terminal(
    parrot: Parrot, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = "Hi\r/help\r/temperature 0.1\ragain\r/temperature hot\r/temperature 99\r"
    keys += "/clear\r/etc/hosts\r/nothing\r\r/quit\rnever\r"
    assert type_in(monkeypatch, keys) == 0
    out = capsys.readouterr().out
    assert parrot.prompts == [said("Hi"), said("Hi", "ok", "again"), said("/etc/hosts")]
    assert parrot.temperatures == [0.8, 0.1, 0.1]
    assert "(temperature 0.1)" in out
    assert "could not convert string to float: 'hot'; it stays 0.1" in out
    assert "temperature is 99.0, expected 0 to 10; it stays 0.1" in out
    assert "/temperature N" in out and "(forgotten)" in out
    assert "there is no command /nothing" in out


def test_ctrl_c_stops_the_answer_and_ctrl_d_leaves(
    parrot: Parrot, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parrot.script = [["half", KeyboardInterrupt()], [KeyboardInterrupt()], [EngineError("bad")]]
    assert type_in(monkeypatch, "a\rb\rc\rd\rtypo\x03e\r\x04") == 0
    out, err = capsys.readouterr()
    assert out.count("(stopped)") == 2
    assert err == "nanochat: bad\n"
    assert parrot.prompts[1] == said("a", "half", "b")
    # A question that got no answer at all is not part of the conversation.
    assert parrot.prompts[3] == said("a", "half", "d")
    assert parrot.prompts[4] == said("a", "half", "d", "ok", "e")


def test_a_chat_can_be_held_without_a_terminal(tiny_tokenizer: Tokenizer) -> None:
    parrot = Parrot(tiny_tokenizer, [["a", "b"]])
    opened = Opened(engine=parrot, name="parrot", is_chat=True)  # type: ignore[arg-type]
    chat = Chat(opened, Config(model="parrot", temperature=0.5))
    assert "".join(chat.ask("Hi")) == "ab"
    assert chat.turns == (Message("user", "Hi"), Message("assistant", "ab"))
    chat.temperature = 1.5
    assert chat.temperature == 1.5
    chat.clear()
    assert chat.turns == ()

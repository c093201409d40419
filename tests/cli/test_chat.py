"""chat.py: one question, a pipe or a conversation; the engine answers, the calculator included."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nanochat.cli import chat as chat_module
from nanochat.cli.chat import Config, open_backend
from nanochat.cli.chat_local import LocalBackend
from nanochat.cli.chat_talk import Settings, Talk
from nanochat.cli.main import main
from nanochat.cli.model_options import Opened
from nanochat.common.errors import ConfigError
from nanochat.common.messages import Message, Part
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.cli.chat_fakes import Parrot, whole
from tests.cli.models import save_model
from tests.conftest import REPOSITORY


@pytest.fixture
def parrot(tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Parrot:
    """The engine behind every model that is opened."""
    parrot = Parrot(tiny_tokenizer)
    monkeypatch.setattr(chat_module, "open_model", lambda config: opened(parrot))
    return parrot


def opened(parrot: Parrot, is_chat: bool = True) -> Opened:
    return Opened(engine=parrot, name="parrot", is_chat=is_chat)  # type: ignore[arg-type]


def said(*turns: str) -> str:
    """What the model reads of these turns: <|...|> user, assistant, user ..."""
    marks = ("<|user_start|>{}<|user_end|>", "<|assistant_start|>{}<|assistant_end|>")
    body = "".join(marks[number % 2].format(text) for number, text in enumerate(turns))
    return f"<|bos|>{body}<|assistant_start|>"


def pipe_in(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


@pytest.mark.req("FR-051")
def test_each_line_of_a_pipe_is_a_turn_if_asked_for(
    parrot: Parrot, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parrot.script = [["one"], ["two\nlines"], [""]]
    pipe_in(monkeypatch, b"a\n\n  \nb\r\nc\xff")
    assert main(["chat", "parrot", "--seed", "4", "--lines"]) == 0
    assert capsys.readouterr() == ("one\ntwo\nlines\n\n", "")
    assert parrot.prompts == [
        said("a"), said("a", "one", "b"), said("a", "one", "b", "two\nlines", "c\ufffd")
    ]  # fmt: skip
    assert [request.sampling.seed for request in parrot.requests] == [4, 5, 6]
    assert parrot.closed == 3
    assert len({request.request_id for request in parrot.requests}) == 3


@pytest.mark.parametrize("argv", [[], ["-p", "-"]])
def test_a_pipe_is_one_question(
    parrot: Parrot,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
) -> None:
    pipe_in(monkeypatch, b"two\nlines\xff\n\n")
    assert main(["chat", "parrot", *argv]) == 0
    assert capsys.readouterr() == ("ok\n", "")
    assert parrot.prompts == [said("two\nlines\ufffd")]
    pipe_in(monkeypatch, b" \n")
    assert main(["chat", "parrot", *argv]) == 2
    assert "standard input is empty, expected a question" in capsys.readouterr().err


def test_a_prompt_does_not_wait_for_standard_input(
    parrot: Parrot, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["chat", "parrot", "-p", "Hi", "--system", "Be kind."]) == 0
    assert parrot.prompts == [said("Be kind.\n\nHi")]
    assert capsys.readouterr().out == "ok\n"
    assert main(["chat", "parrot"]) == 2
    assert main(["chat", "parrot", "--lines"]) == 0


def test_json_is_one_object_a_turn(
    parrot: Parrot,
    tiny_tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pipe_in(monkeypatch, b"a\nb\n")
    assert main(["chat", "parrot", "--json", "--lines"]) == 0
    first, second = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert second["prompt"] == "b"
    assert first == {
        "model": "parrot",
        "prompt": "a",
        "text": "ok",
        "tokens": tiny_tokenizer.encode("ok"),
        "finish_reason": "stop",
        "num_tokens": len(tiny_tokenizer.encode("ok")),
        "num_prompt_tokens": 5,
    }


@pytest.mark.req("EC-4")
def test_a_pipe_beyond_the_context_is_refused_or_forgets_aloud(
    parrot: Parrot, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = b"0123456789\nABCDEFGHIJ\nKLMNOPQRST\n"
    parrot.script = [["abcdefghij"]] * 3
    pipe_in(monkeypatch, lines)
    assert main(["chat", "parrot", "--lines", "--system", "S"]) == 2
    out, err = capsys.readouterr()
    assert out.count("\n") == 2
    assert "tokens with this question but the context is 60" in err
    assert "--when-full drop forgets the oldest turns instead" in err
    parrot.script, parrot.requests = [["abcdefghij"]] * 3, []
    pipe_in(monkeypatch, lines)
    argv = ["chat", "parrot", "--lines", "--system", "S", "--when-full", "drop"]
    assert main(argv) == 0
    assert "the context is full: the oldest 2 messages are forgotten" in capsys.readouterr().err
    assert parrot.prompts[2] == said("S\n\nABCDEFGHIJ", "abcdefghij", "KLMNOPQRST")


def test_the_calculator_is_used_and_kept_apart_from_the_words(tiny_tokenizer: Tokenizer) -> None:
    use = ["<|python_start|>", "6*7", "<|python_end|>", "<|output_start|>", "42", "<|output_end|>"]
    parrot = Parrot(tiny_tokenizer, [["It is ", *use, "42."]])
    talk = Talk(LocalBackend(opened(parrot)), Settings())
    pieces = [piece for piece in talk.ask("6*7?") if piece.text]
    assert "".join(piece.text for piece in pieces if piece.kind == "text") == "It is 42."
    assert "".join(piece.text for piece in pieces if piece.kind == "python") == "6*7"
    assert "".join(piece.text for piece in pieces if piece.kind == "python_output") == "42"
    assert talk.turns[1] == Message(
        "assistant",
        (Part("text", "It is "), Part("python", "6*7"), Part("python_output", "42"),
         Part("text", "42.")),
    )  # fmt: skip
    assert parrot.requests[0].tools
    talk.backend.close()  # there is nothing to close: the next question is answered all the same
    whole(Talk(LocalBackend(opened(parrot, is_chat=False)), Settings()).ask("a"))
    assert not parrot.requests[1].tools


def test_the_real_engine_answers_and_counts_the_context(
    home: Path, tiny_tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(home, tiny_tokenizer)
    assert main(["chat", "tiny", "-p", "x" * 500]) == 2
    assert "the prompt has 504 tokens but the context is 96" in capsys.readouterr().err
    backend = open_backend(Config(model="tiny", dtype="float32"))
    talk = Talk(backend, Settings(max_tokens=5, temperature=0))
    whole(talk.ask("Hi"))
    whole(talk.retry())
    assert talk.last is not None and talk.last.finish_reason in ("stop", "length")
    assert talk.num_context_tokens == backend.count(talk.conversation)
    pieces = talk.ask("again")
    next(pieces)
    pieces.close()
    whole(talk.ask("and again"))  # at once: the one before may still be on its way out
    backend.close()


def test_a_base_model_is_announced(
    home: Path, tiny_tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(home, tiny_tokenizer, run="base", stage="pretrain")
    assert main(["chat", "base", "-p", "Hi", "--max-tokens", "3"]) == 0
    assert "base is a base model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "there is no model: name a run or a directory, or pass --url"),
        (["m", "-p", " "], "the prompt is empty"),
        (["m", "-p", "a", "--lines"], "-p and --lines are given together"),
        (["m", "--temperature", "99"], "temperature is 99.0, expected 0 to 10"),
        (["m", "--top-k", "-1"], "top_k is -1"),
        (["--url", "http://h", "--device", "cpu", "--dtype", "int8"], "--dtype and --device and"),
        (["--url", "ftp://h"], "expected http://host:port/v1"),
        (["--url", "http://127.0.0.1:9", "--api-key-env", "NO_SUCH"], "NO_SUCH is not set"),
        (["m", "--when-full", "panic"], "expected one of refuse, drop"),
        (["no-such-model", "-p", "a"], "no-such-model"),
    ],
)
def test_mistakes_are_one_line(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = argv if "-p" in argv else [*argv, "-p", "a"]
    assert main(["chat", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert message in err


def test_json_wants_a_question(monkeypatch: pytest.MonkeyPatch) -> None:
    class Keyboard(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Keyboard())
    with pytest.raises(ConfigError, match="--json is for one question"):
        chat_module.run(Config(model="m", json=True))


def test_talking_with_a_server_imports_no_torch() -> None:
    program = (
        "import sys\n"
        "from nanochat.cli.main import main\n"
        "assert main(['chat', '--url', 'http://127.0.0.1:9/v1', '-p', 'hi']) == 2\n"
        "print('torch' in sys.modules, 'httpx' in sys.modules)\n"
    )
    done: Any = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False True\n"
    assert "cannot reach http://127.0.0.1:9/v1" in done.stderr

"""The real program on a pseudo-terminal: what a person sees, and what Ctrl-C and Ctrl-D do."""

import fcntl
import os
import pty
import re
import select
import stat
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nanochat.cli.chat_files import history_path
from nanochat.server.app import ServedModel, create_app
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.cli.models import save_model
from tests.conftest import REPOSITORY
from tests.patience import PATIENCE_S, wait_until
from tests.server.conftest import live
from tests.server.fakes import FakeEngine

# The child takes the terminal as its own, so that Ctrl-C on it is a signal to it.
TAKE_TERMINAL = """
import os, sys
terminal = os.open(sys.argv[1], os.O_RDWR)
for number in range(3):
    os.dup2(terminal, number)
os.execv(sys.executable, [sys.executable, "-m", "nanochat", "chat", *sys.argv[2:]])
"""


class Program:
    """`nanochat chat` on a terminal of 80 columns and 24 rows."""

    def __init__(self, *argv: str, **variables: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        environment = {**os.environ, "TERM": "xterm-256color"}
        environment.pop("NO_COLOR", None)
        self._process = subprocess.Popen(
            [sys.executable, "-c", TAKE_TERMINAL, os.ttyname(slave), *argv],
            cwd=REPOSITORY,
            env=environment | variables,
            start_new_session=True,
        )
        self._slave = slave
        self.seen = ""
        self._place = 0

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def expect(self, text: str, limit_s: float = PATIENCE_S) -> None:
        """Wait until this is printed, after what was expected before."""
        end = time.monotonic() + limit_s
        while (place := self.seen.find(text, self._place)) < 0:
            assert time.monotonic() < end, f"{text!r} never came:\n{self.seen[self._place :]!r}"
            self._read(0.2)
        self._place = place + len(text)

    def is_echoing(self) -> bool:
        return bool(termios.tcgetattr(self._slave)[3] & termios.ECHO)

    def exit_code(self) -> int:
        end = time.monotonic() + PATIENCE_S
        while self._process.poll() is None:
            assert time.monotonic() < end, f"it does not end:\n{self.seen!r}"
            self._read(0.02)
        self._read(0.0)
        return self._process.returncode

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        os.close(self._master)
        os.close(self._slave)

    def _read(self, wait_s: float) -> None:
        while select.select([self._master], [], [], wait_s)[0]:
            data = os.read(self._master, 2**16).decode("utf-8", "replace")
            for _ in range(data.count("\x1b[6n")):
                self.type("\x1b[1;1R")  # a terminal answers where its cursor is
            self.seen += data
            wait_s = 0.0


@contextmanager
def program(*argv: str, **variables: str) -> Iterator[Program]:
    running = Program(*argv, **variables)
    try:
        yield running
    finally:
        running.close()


@contextmanager
def server(tokenizer: Tokenizer, engine: FakeEngine) -> Iterator[str]:
    model = ServedModel(name="tiny", tokenizer=tokenizer, context_len=200, created=7)
    with live(create_app(engine, model)) as url:
        yield url


@pytest.mark.req("FR-013", "FR-051")
def test_ctrl_c_stops_the_answer_and_ctrl_d_leaves(tiny_tokenizer: Tokenizer, home: Path) -> None:
    engine = FakeEngine(("Hello", " **world**"))
    engine.gate.clear()
    with server(tiny_tokenizer, engine) as url, program("--url", url) as chat:
        chat.expect(f"tiny ({url}/v1). /help lists commands")
        chat.type("Hi\r")
        chat.expect("Hello")
        chat.expect("Ctrl-C stops")
        assert not chat.is_echoing()
        chat.type("\x03")
        chat.expect("(stopped)")
        wait_until(lambda: engine.cancelled)
        chat.expect("context ?/200 tokens")  # the server did not come to tell
        chat.type("/stats\r")
        chat.expect("ended by you")
        chat.type("go on\r")
        chat.expect("Hello")
        chat.type("/stats\r")  # ahead: obeyed when the answer is over
        engine.gate.set()
        chat.expect("world")
        assert "**" not in chat.seen
        chat.expect("ended by stop")
        chat.expect("/200 tokens  |  ")
        for _ in range(20):
            chat.type("\x03")  # without an answer it stops nothing
        chat.type("/undo\r")
        chat.expect("taken back")
        chat.type("\x03")
        chat.expect("> ")
        chat.type("\x15\x04")  # the question that came back is removed
        assert chat.exit_code() == 0
        assert "Traceback" not in chat.seen
        assert chat.seen.rfind("\x1b[?25h") > chat.seen.rfind("\x1b[?25l")  # the cursor is back
    prompt = tiny_tokenizer.decode(engine.requests[1].prompt_tokens)
    assert "Hi<|user_end|><|assistant_start|>Hello<|assistant_end|>" in prompt
    assert stat.S_IMODE(history_path(home).stat().st_mode) == 0o600
    assert "+go on" in history_path(home).read_text()


@pytest.mark.req("FR-062")
def test_what_a_model_writes_does_not_reach_the_terminal_as_escapes(
    tiny_tokenizer: Tokenizer,
) -> None:
    attack = "\x1b]0;OWNED\x07\x1b[2J\x9b31m\u202eevil &#x202e; \x1b[?1049h"
    engine = FakeEngine((f"{attack}\n\n", f"```\n{attack}\n```\n", attack))
    with server(tiny_tokenizer, engine) as url:
        for variables in ({}, {"NO_COLOR": "1"}, {"TERM": "dumb"}):
            with program("--url", url, "-p", "Hi", **variables) as chat:
                assert chat.exit_code() == 0
                assert "\u241b]0;OWNED\u2407\u241b[2J\ufffd31m\ufffdevil" in chat.seen
                for part in ("\x1b]0;", "\x07", "\x1b[2J", "\x9b", "\u202e", "\x1b[?1049h"):
                    assert part not in chat.seen
                if variables:
                    assert "\x1b" not in chat.seen and "```" in chat.seen


def test_ctrl_c_ends_a_single_question(tiny_tokenizer: Tokenizer) -> None:
    engine = FakeEngine(("Hello", " world"))
    engine.gate.clear()
    with server(tiny_tokenizer, engine) as url, program("--url", url, "-p", "Hi") as chat:
        chat.expect("Hello")
        chat.type("\x03")
        assert chat.exit_code() == 130
        wait_until(lambda: engine.cancelled)
        assert "Traceback" not in chat.seen
        assert re.search(r"Hello.*\x1b\[\?25h", chat.seen, re.DOTALL)
        assert chat.is_echoing()


def test_a_pipe_through_the_program(tiny_tokenizer: Tokenizer) -> None:
    with server(tiny_tokenizer, FakeEngine(("**a**\x1b[2J", "b"))) as url:
        done = subprocess.run(
            [sys.executable, "-m", "nanochat", "chat", "--url", url],
            cwd=REPOSITORY,
            input=b"Hi\nthere\n",
            capture_output=True,
            check=True,
        )
    assert (done.stdout, done.stderr) == (b"**a**\x1b[2Jb\n", b"")  # as the model wrote it


@pytest.mark.req("US-1")
def test_a_model_of_ours_on_a_terminal(tiny_tokenizer: Tokenizer, home: Path) -> None:
    save_model(home, tiny_tokenizer)
    with program("tiny", "--dtype", "float32", "--max-tokens", "5", OMP_NUM_THREADS="1") as chat:
        chat.expect("tiny (this machine). /help lists")
        chat.type("Hi\r")
        chat.expect("/96 tokens")
        chat.type("/stats\r")
        chat.expect("first after")
        chat.type("x" * 120 + "\r")
        chat.expect("but the context is 96, answer included: shorten it")
        chat.type("/quit\r")
        assert chat.exit_code() == 0
        assert "Traceback" not in chat.seen

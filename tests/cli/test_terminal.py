"""terminal.py: whatever a model writes, the terminal stays as it was."""

import io
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.cli.terminal import neutralize, notice, print_answer


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.req("FR-062")
def test_escape_sequences_are_shown_and_not_obeyed() -> None:
    assert neutralize("\x1b[2Jhi\x07") == "\u241b[2Jhi\u2407"
    assert neutralize("a\x9b31mb\x7f\u202ec\u2066") == "a\ufffd31mb\ufffd\ufffdc\ufffd"
    assert neutralize("na\u00efve\t\u2603\n") == "na\u00efve\t\u2603\n"


@given(st.text())
def test_nothing_but_line_breaks_and_tabs_controls(text: str) -> None:
    shown = neutralize(text)
    assert len(shown) == len(text)
    assert not [c for c in shown if unicodedata.category(c) == "Cc" and c not in "\n\t"]


def test_a_pipe_gets_the_text_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    terminal, pipe = Terminal(), io.StringIO()
    print_answer("\x1bc", terminal)
    print_answer("\x1bc", pipe)
    assert (terminal.getvalue(), pipe.getvalue()) == ("\u241bc", "\x1bc")
    print_answer("plain")
    notice("mind the gap")
    assert capsys.readouterr() == ("plain", "nanochat: mind the gap\n")

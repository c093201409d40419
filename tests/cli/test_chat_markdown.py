"""chat_markdown.py: blocks are cut where they end, and nothing in them steers the terminal."""

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from nanochat.cli.chat_markdown import MarkdownBlock, MarkdownStream

TEXT = """\
# Title

Some *text* with `code`,
<b>html</b> and a [link](http://example.org/x).

1. one
2. two

   more of two

| a | b |
|---|---|
| 1 | 2 |

```python
def f(x):

    return x
```
> quote
still the quote

- item

- item
***
[1]: http://example.org/lost
last words"""

BLOCKS = [
    "# Title\n\n",
    "Some *text* with `code`,\n<b>html</b> and a [link](http://example.org/x).\n\n",
    "1. one\n2. two\n\n   more of two\n\n",
    "| a | b |\n|---|---|\n| 1 | 2 |\n\n",
    "```python\ndef f(x):\n\n    return x\n```\n",
    "> quote\nstill the quote\n\n",
    "- item\n\n- item\n",
    "***\n",
    "[1]: http://example.org/lost\nlast words",
]


def blocks_of(text: str, cuts: list[int]) -> list[str]:
    """What a stream says is finished when the text comes in pieces cut there."""
    stream = MarkdownStream()
    places = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    finished = [stream.feed(text[a:b]) for a, b in zip(places, places[1:], strict=False)]
    return [block for block in [*finished, stream.close()] if block]


def printed(text: str, width: int = 60) -> str:
    console = Console(force_terminal=True, width=width, color_system="standard")
    with console.capture() as captured:
        console.print(MarkdownBlock(text))
    return captured.get()


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[\d;]*m", "", printed(text))


def test_blocks_end_where_nothing_can_change_them_any_more() -> None:
    assert blocks_of(TEXT, list(range(len(TEXT)))) == BLOCKS


@given(st.lists(st.integers(0, len(TEXT))))
def test_how_the_text_was_cut_into_pieces_does_not_matter(cuts: list[int]) -> None:
    blocks = blocks_of(TEXT, cuts)
    assert "".join(blocks) == TEXT
    for block in blocks:  # whole blocks, one or several
        assert block in "".join(BLOCKS)
        assert any("".join(BLOCKS[:n]).endswith(block) for n in range(len(BLOCKS) + 1))


@given(
    st.text(alphabet="ab#*-`>|1.\n\r \t\u2028\x85[]()<&;~_+", max_size=80), st.lists(st.integers(0))
)
def test_no_text_is_lost_whatever_is_written(text: str, cuts: list[int]) -> None:
    assert "".join(blocks_of(text, cuts)) == text
    printed(text)


def test_what_was_written_is_shown() -> None:
    shown = plain(TEXT)
    for words in (
        "Title", "<b>html</b>", "link (http://example.org/x)", "more of two", "    return x",
        "[1]: http://example.org/lost",
    ):  # fmt: skip
        assert words in shown
    assert plain("roses\nviolets") == "roses\nviolets\n"  # a poem keeps its lines
    assert "\x1b[1m" in printed("**bold**") and "**" not in printed("**bold**")
    assert not any(line.endswith(" ") for line in shown.splitlines())


ATTACKS = [
    "\x1b[2J",
    "\x1b]0;title\x07",
    "\x9b31m",
    "\x1b]8;;http://evil\x1b\\click\x1b]8;;\x1b\\",
    "a\rb",
    "\x08\x08",
    "&#27;[2J",
    "&#x1b;[2J",
    "&#x9b;31m",
    "&#x202e;",
    "&#13;",
    "&#8;",
    "&Tab;&NewLine;",
    "\u202egnp.exe",
    "```\n\x1b[2J\n```",
    "```\x1b[2J\ncode\n```",
    "`\x1b[2J`",
    "[a](http://x/\x1b[2J)",
    "[a](<http://x/&#x1b;]0;>)",
    "![\x1b[2J](x)",
    "| \x1b[2J |\n|---|\n| \x1b |",
    "> \x1b[2J",
    "1. \x1b[2J",
    "# \x1b[2J",
    "\u2066\u2069",
    "<\x1b[2J>",
    "http://x/\x1b[2J",
    "\x1b\n[2J",
    "\x1b[?1049h",
    "\x1bP+q\x1b\\",
    "\x90q\x9c",
    "\x7f",
]


@pytest.mark.req("FR-062")
@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_in_an_answer_steers_the_terminal(attack: str) -> None:
    assert_harmless(printed(f"{attack}\n\nand then {attack} more"))


@pytest.mark.req("FR-062")
@given(st.text(alphabet="\x1b\x9b\x07\r\x08[]()`*#|-\n 2Jm;&#x1b;\u202e<>!:/http", max_size=60))
def test_no_combination_steers_the_terminal_either(text: str) -> None:
    assert_harmless(printed(text))


def assert_harmless(shown: str) -> None:
    left = re.sub(r"\x1b\[[\d;]*m", "", shown)  # colours are ours
    odd = [c for c in left if unicodedata.category(c) == "Cc" and c not in "\n\t"]
    assert not odd and not re.search("[\u202a-\u202e\u2066-\u2069]", left)

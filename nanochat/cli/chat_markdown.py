"""Markdown as it is written -> blocks that are finished.   in: pieces of text   out: blocks
who calls: chat_screen.py

Only the last block of a text can still change, so all before it are printed once and for good.
HTML is shown as it stands, a line break stays one, and whatever a document names (entities
included) is neutralised after rendering: nothing in it steers the terminal.
Read next: chat_screen.py (where blocks are shown), terminal.py (what is neutralised).
"""

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import CodeBlock, Heading, Markdown
from rich.segment import Segment
from rich.syntax import Syntax

from nanochat.cli.terminal import neutralize

__all__ = ["MarkdownBlock", "MarkdownStream"]

# "reference" off: a line such as [1]: http://... would vanish instead of being shown.
_PARSER = (
    MarkdownIt("commonmark", {"html": False})
    .enable(["strikethrough", "table"])
    .disable("reference")
)
_BLOCK_PARSER = (
    MarkdownIt("commonmark", {"html": False})
    .enable("table")
    .disable(["reference", "inline"])  # where blocks begin is all that is asked of it
)


class MarkdownStream:
    """Cuts a text that grows into blocks.

    All blocks and `open_text` together are the text; how it was cut into pieces does not matter.
    """

    def __init__(self) -> None:
        self.open_text = ""
        """The block that may go on."""

    def feed(self, text: str) -> str:
        """The blocks that can no longer change, as they were written; mostly none."""
        num_before = len(self.open_text)
        self.open_text += text
        end = self.open_text.rfind("\n") + 1
        if end <= num_before:  # a block begins with a line, and no line was completed
            return ""
        start = _last_block_start(self.open_text[:end])
        finished, self.open_text = self.open_text[:start], self.open_text[start:]
        return finished

    def close(self) -> str:
        """What is left: the text has ended."""
        finished, self.open_text = self.open_text, ""
        return finished


def _last_block_start(text: str) -> int:
    """Where the last top-level block of whole lines begins, in characters."""
    tokens = _BLOCK_PARSER.parse(text.replace("\r", " "))  # else one more line end than ours
    starts = [token.map[0] for token in tokens if token.level == 0 and token.map is not None]
    place = 0
    for _ in range(starts[-1] if starts else 0):
        place = text.index("\n", place) + 1
    return place


class _LeftHeading(Heading):
    """A heading that begins where the text begins."""

    LEVEL_ALIGN = {f"h{level}": "left" for level in range(1, 7)}


class _CodeBlock(CodeBlock):
    """Code without a frame of blanks, so that it can be copied; in the terminal's own colours."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        code = str(self.text).rstrip()
        yield Syntax(
            code,
            self.lexer_name,
            theme="ansi_dark",
            word_wrap=True,
            background_color="default",
            padding=(0, 2),
        )


class _ChatMarkdown(Markdown):
    elements = {
        **Markdown.elements,
        "heading_open": _LeftHeading,
        "fence": _CodeBlock,
        "code_block": _CodeBlock,
    }

    def __init__(self, text: str) -> None:
        super().__init__("", hyperlinks=False)  # a link's target is shown, not hidden behind words
        self.markup = text
        self.parsed = _PARSER.parse(text)
        for token in self.parsed:
            _keep_line_breaks(token)


def _keep_line_breaks(token: Token) -> None:
    for child in token.children or ():
        if child.type == "softbreak":
            child.type, child.tag = "hardbreak", "br"


class MarkdownBlock:
    """Blocks as rich prints them, harmless whatever they hold."""

    def __init__(self, text: str) -> None:
        self._markdown = _ChatMarkdown(neutralize(text))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        safe = (
            Segment(neutralize(segment.text), segment.style)
            for segment in console.render(self._markdown, options)
            if not segment.control
        )
        for line in Segment.split_lines(safe):
            yield from _trimmed(line)
            yield Segment.line()


def _trimmed(line: list[Segment]) -> list[Segment]:
    """A line without the blanks that fill it up to the width: who copies it does not want them."""
    while line and not line[-1].text.rstrip(" "):
        line = line[:-1]
    if not line:
        return []
    *rest, last = line
    return [*rest, Segment(last.text.rstrip(" "), last.style)]

"""An answer's tokens -> the words that are told.   in: TokenEvents of one answer   out: text
who calls: chat.py, legacy.py

What the model computes stands between special tokens, which have no text of their own:
    <|python_start|> 12*7 <|python_end|> <|output_start|> 84 <|output_end|>
Whoever asked for the calculator is told all of it, brackets by name; nobody else is told any of it.
A person's "<|python_start|>" is plain text and never one of these tokens.
Read next: engine/tools.py (who computes), nanochat/web/tools.js (who reads it).
"""

from nanochat.engine.request import TokenEvent
from nanochat.tokenizer.tokenizer import Tokenizer

__all__ = ["Words"]


class Words:
    """Follows one answer."""

    def __init__(self, tokenizer: Tokenizer, *, is_shown: bool) -> None:
        special = tokenizer.special
        self._opens = {special(name): name for name in ("<|python_start|>", "<|output_start|>")}
        self._closes = {special(name): name for name in ("<|python_end|>", "<|output_end|>")}
        self._is_shown = is_shown
        self._is_inside = False

    def of(self, event: TokenEvent) -> str:
        """What a token adds to what is told."""
        text, token = event.text, event.token
        if token in self._opens:  # its text was held back: it belongs to what came before
            was_inside, self._is_inside = self._is_inside, True
            return text + self._opens[token] if self._is_shown else "" if was_inside else text
        if token in self._closes:
            was_inside, self._is_inside = self._is_inside, False
            return text + self._closes[token] if self._is_shown else "" if was_inside else text
        return "" if self._is_inside and not self._is_shown else text

    @property
    def is_hidden(self) -> bool:
        """Whether what comes now is not told."""
        return self._is_inside and not self._is_shown

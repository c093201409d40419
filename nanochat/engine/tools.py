"""The tool a model may use while it answers.   in: its tokens   out: tokens that are forced on it
who calls: engine.py

    <|python_start|> 12*7 <|python_end|>  -> forced: <|output_start|> 84 <|output_end|>
One small machine for each row, without threads, signals or clocks.  What is refused forces nothing,
and the model goes on by itself.
Source: nanochat/engine.py (RowState) of karpathy/nanochat at 92d63d4.
Read next: calculator.py (what is computed), tokenizer/chat.py (how the parts are read again).
"""

from nanochat.engine.calculator import MAX_EXPRESSION_LENGTH, calculate
from nanochat.tokenizer.tokenizer import Tokenizer

__all__ = ["ToolUse"]


class ToolUse:
    """Follows the tokens of one answer.

    Use: after every token, forced or not, forced = use.add(token); these tokens come next.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._start = tokenizer.special("<|python_start|>")
        self._end = tokenizer.special("<|python_end|>")
        self._expression: list[int] | None = None  # None: outside

    def add(self, token: int) -> list[int]:
        """The tokens that follow it whatever the model would say; mostly none."""
        if token == self._start:
            self._expression = []
        elif token == self._end:
            expression, self._expression = self._expression, None
            return self._output(expression) if expression else []
        elif self._expression is not None and len(self._expression) <= MAX_EXPRESSION_LENGTH:
            self._expression.append(token)
        return []

    def _output(self, expression: list[int]) -> list[int]:
        result = calculate(self._tokenizer.decode(expression))
        if result is None:
            return []
        special = self._tokenizer.special
        return [
            special("<|output_start|>"),
            *self._tokenizer.encode(result),
            special("<|output_end|>"),
        ]

"""tools.py: what a model computes is given back to it, in the reference's tokens."""

import threading

import pytest

from nanochat.engine.calculator import MAX_EXPRESSION_LENGTH
from nanochat.engine.tools import ToolUse
from nanochat.tokenizer.tokenizer import Tokenizer


def said(tokenizer: Tokenizer, *pieces: str) -> list[int]:
    """Tokens of texts and of special tokens."""
    tokens: list[int] = []
    for piece in pieces:
        if piece.startswith("<|"):
            tokens.append(tokenizer.special(piece))
        else:
            tokens += tokenizer.encode(piece)
    return tokens


def forced(tokenizer: Tokenizer, tokens: list[int]) -> list[int]:
    """What is forced after the last of them; nothing is before."""
    use = ToolUse(tokenizer)
    for token in tokens[:-1]:
        assert use.add(token) == []
    return use.add(tokens[-1])


@pytest.mark.parametrize(
    ("expression", "result"),
    [("12*7", "84"), ("'strawberry'.count('r')", "3"), ("1,000 / 8", "125.0"), ("5-5", "0")],
)
def test_the_result_is_forced(tiny_tokenizer: Tokenizer, expression: str, result: str) -> None:
    tokens = said(tiny_tokenizer, "so ", "<|python_start|>", expression, "<|python_end|>")
    expected = said(tiny_tokenizer, "<|output_start|>", result, "<|output_end|>")
    assert forced(tiny_tokenizer, tokens) == expected
    use = ToolUse(tiny_tokenizer)
    for _ in range(3):  # again and again, what was forced included
        for token in tokens[:-1]:
            assert use.add(token) == []
        output = use.add(tokens[-1])
        assert output == expected
        assert [use.add(token) for token in output] == [[]] * len(output)


@pytest.mark.parametrize(
    "pieces",
    [
        ("12*7", "<|python_end|>"),
        ("<|python_start|>", "<|python_end|>"),
        ("<|python_start|>", "the cat", "<|python_end|>"),
        ("<|python_start|>", "2**9", "<|python_end|>"),
        ("<|python_start|>", "1/0", "<|python_end|>"),
        ("<|python_start|>", "1", "<|output_start|>", "1", "<|python_end|>"),
        ("<|python_start|>", "12*7", "<|output_end|>"),
        ("<|python_start|>", "1+" * MAX_EXPRESSION_LENGTH + "1", "<|python_end|>"),
    ],
    ids=lambda pieces: " ".join(pieces)[:60],
)
def test_what_is_malformed_or_refused_forces_nothing(
    tiny_tokenizer: Tokenizer, pieces: tuple[str, ...]
) -> None:
    assert forced(tiny_tokenizer, said(tiny_tokenizer, *pieces)) == []


def test_a_second_start_begins_again(tiny_tokenizer: Tokenizer) -> None:
    tokens = said(
        tiny_tokenizer, "<|python_start|>", "9", "<|python_start|>", "1+1", "<|python_end|>"
    )
    assert forced(tiny_tokenizer, tokens) == said(
        tiny_tokenizer, "<|output_start|>", "2", "<|output_end|>"
    )


def test_any_thread_may_compute(tiny_tokenizer: Tokenizer) -> None:
    tokens = said(tiny_tokenizer, "<|python_start|>", "6*7", "<|python_end|>")
    results: list[list[int]] = []
    thread = threading.Thread(target=lambda: results.append(forced(tiny_tokenizer, tokens)))
    thread.start()
    thread.join()
    assert tiny_tokenizer.decode(results[0][1:-1]) == "42"

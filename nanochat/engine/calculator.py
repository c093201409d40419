"""What a model computes -> its result.   in: an expression   out: text, or None
who calls: tools.py

karpathy/nanochat evaluates two kinds with Python's eval, and so do we, with an interpreter that
knows nothing else: arithmetic of + - * / // and brackets, and counting, 'text'.count('x').
    refused    powers, names, any other call, results that are no numbers, whatever is too large
    bounded    the length of an expression, its depth, the digits of every number in it, and by
               these the time: the worst takes milliseconds, on any thread
Source: nanochat/engine.py (use_calculator) of karpathy/nanochat at 92d63d4: commas are dropped,
the characters are those it allows, and results are written as str() writes them.
Read next: tools.py, tests/twins/calculator.py (eval itself, for comparison).
"""

import ast
import operator
import re
from collections.abc import Callable

__all__ = ["MAX_EXPRESSION_LENGTH", "calculate"]

MAX_EXPRESSION_LENGTH = 1000  # characters
MAX_DEPTH = 50  # operations inside operations
MAX_BITS = 4096  # about 1,233 digits: Python itself writes no more than 4,300

Number = int | float

_ARITHMETIC = re.compile(r"[0-9*+\-/.() ]*")
# A text's skeleton: what is left without what stands between quotes.
_QUOTED = re.compile(r"'[^'\"]*'|\"[^'\"]*\"")
_TEXT = re.compile(r"[A-Za-z0-9._() ]*")
_METHODS: dict[str, Callable[[str], str]] = {
    "lower": str.lower,
    "upper": str.upper,
    "strip": str.strip,
}
_OPERATIONS: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}


class _Refused(Exception):
    """The expression is not one that is computed here."""


def calculate(expression: str) -> str | None:
    """The result as text; None for what is refused or has none, such as 1/0.

    Example: calculate("12*(3+4)") == "84"; calculate("'banana'.count('a')") == "3"
    """
    expression = expression.replace(",", "").lstrip(" ")
    if len(expression) > MAX_EXPRESSION_LENGTH:
        return None
    try:
        if _ARITHMETIC.fullmatch(expression):
            return str(_number(_parsed(expression), 0))
        if _is_text(expression):
            return str(_count(_parsed(expression), 0))
    except (_Refused, ArithmeticError):
        pass
    return None


def _is_text(expression: str) -> bool:
    """Whether nothing but quoted texts and the known methods are in it."""
    skeleton = _QUOTED.sub("", expression)
    words = set(re.findall(r"\w+", skeleton))
    quoted = "".join(_QUOTED.findall(expression)).replace("'", "").replace('"', "")
    return (
        words <= {"count", *_METHODS}
        and _TEXT.fullmatch(quoted) is not None
        and _TEXT.fullmatch(skeleton) is not None
        and not _has_refused_word(expression.lower())
    )


def _has_refused_word(lowered: str) -> bool:
    """Words for which the reference refuses, even inside a text to count in."""
    words = "__ import exec eval compile open file input globals locals vars dir attr"
    return any(word in lowered for word in words.split())


def _parsed(expression: str) -> ast.expr:
    try:
        return ast.parse(expression, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise _Refused from None


def _number(node: ast.expr, depth: int) -> Number:
    """The value of arithmetic."""
    if depth > MAX_DEPTH:
        raise _Refused
    match node:
        case ast.Constant(value=int() | float() as value):
            return _bounded(value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_number(operand, depth + 1)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _number(operand, depth + 1)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATIONS:
            a, b = _number(left, depth + 1), _number(right, depth + 1)
            return _bounded(_OPERATIONS[type(op)](a, b))
    raise _Refused


def _bounded(value: Number) -> Number:
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise _Refused
    return value


def _count(node: ast.expr, depth: int) -> int:
    """The value of text.count(text)."""
    match node:
        case ast.Call(
            func=ast.Attribute(value=text, attr="count"), args=[ast.expr() as part], keywords=[]
        ):
            return _text(text, depth + 1).count(_text(part, depth + 1))
    raise _Refused


def _text(node: ast.expr, depth: int) -> str:
    """The value of a quoted text, with or without lower(), upper() and strip()."""
    if depth > MAX_DEPTH:
        raise _Refused
    match node:
        case ast.Constant(value=str() as value):
            return value
        case ast.Call(func=ast.Attribute(value=text, attr=method), args=[], keywords=[]) if (
            method in _METHODS
        ):
            return _METHODS[method](_text(text, depth + 1))
    raise _Refused

"""What Python itself makes of an expression, within karpathy/nanochat's calculator's limits."""

import warnings


def evaluate(expression: str) -> str | None:
    """The result as text, or None.  Only for expressions a test has written."""
    expression = expression.replace(",", "")
    if "**" in expression:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return str(eval(expression, {"__builtins__": {}}, {}))
        except Exception:
            return None

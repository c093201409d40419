"""The repository -> lines of code by room and file.   in: *.py   out: a table
who calls: make size

Lines that are blank, comments or docstrings are counted apart: what has to be read to know what is
done is the code; what has to be read to know why is the rest.
"""

import ast
import io
import sys
import tokenize
from pathlib import Path

__all__ = ["count_lines", "main"]

ROOT = Path(__file__).resolve().parent.parent
NOT_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)


def count_lines(source: str) -> tuple[int, int]:
    """(lines of code, other lines) of a module."""
    total = len(source.splitlines())
    docstrings = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    code = {
        line
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type not in (*NOT_CODE, tokenize.ENDMARKER)
        for line in range(token.start[0], token.end[0] + 1)
    }
    num_code = len(code - docstrings)
    return num_code, total - num_code


def main() -> int:
    """Prints rooms with their files, largest file first."""
    print("   code   other")
    totals = [0, 0]
    for part in ("nanochat", "scripts", "tests"):
        for room in sorted({path.parent for path in (ROOT / part).rglob("*.py")}):
            counts = {path: count_lines(path.read_text()) for path in room.glob("*.py")}
            sums = [sum(column) for column in zip(*counts.values(), strict=True)]
            totals = [total + more for total, more in zip(totals, sums, strict=True)]
            print(f"{sums[0]:7} {sums[1]:7}   {room.relative_to(ROOT)}/")
            if part == "nanochat":
                for path in sorted(counts, key=lambda path: -counts[path][0]):
                    print(f"{counts[path][0]:7} {counts[path][1]:7}     {path.name}")
    print(f"{totals[0]:7} {totals[1]:7}   in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())

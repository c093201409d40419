"""docs/requirements.md and the tests -> what no test carries yet.   in: the repository
out: a list   who calls: make requirements, tests/repo/test_scripts.py

A test carries a number by @pytest.mark.req("FR-026"); a number that is not in the list is an error.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["carried_numbers", "main", "promised_numbers"]

ROOT = Path(__file__).resolve().parent.parent
PROMISE = re.compile(r"^- \*\*((?:FR|SC|US|EC)-\d+)\*\* (.+)$", re.MULTILINE)


def promised_numbers(root: Path = ROOT) -> dict[str, str]:
    """Number -> what it promises, in the order of docs/requirements.md."""
    return dict(PROMISE.findall((root / "docs" / "requirements.md").read_text()))


def carried_numbers(root: Path = ROOT) -> dict[str, list[str]]:
    """Number -> the test files whose req marks carry it."""
    carried: dict[str, list[str]] = {}
    for path in sorted((root / "tests").rglob("test_*.py")):
        for number in _marks(ast.parse(path.read_text())):
            files = carried.setdefault(number, [])
            if (name := str(path.relative_to(root))) not in files:
                files.append(name)
    return carried


def main() -> int:
    """Prints the numbers without a test; 1 when a test carries a number nobody promised."""
    promised, carried = promised_numbers(), carried_numbers()
    missing = [number for number in promised if number not in carried]
    for number in missing:
        print(f"{number:7} {promised[number]}")
    print(f"\n{len(promised) - len(missing)} of {len(promised)} requirements are carried by a test")
    unknown = sorted(set(carried) - set(promised))
    for number in unknown:
        print(f"{number} in {', '.join(carried[number])} is not in docs/requirements.md")
    return 1 if unknown else 0


def _marks(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.req":
            for argument in node.args:
                if isinstance(argument, ast.Constant):
                    yield str(argument.value)


if __name__ == "__main__":
    sys.exit(main())

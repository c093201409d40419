"""Names: __all__ is complete, files are named for what they hold."""

import ast
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

MODULES = sorted((REPOSITORY / "nanochat").rglob("*.py")) + sorted(
    (REPOSITORY / "scripts").glob("*.py")
)
# Words that say nothing about what a file holds.
BANNED = {"base", "core_utils", "helper", "helpers", "manager", "misc", "util", "utils"}


def public_definitions(tree: ast.Module) -> set[str]:
    """Functions and classes without a leading underscore."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {
        node.name for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")
    }


def exported(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return None


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(REPOSITORY)))
@pytest.mark.req("FR-072", "FR-071", "FR-076")
def test_all_is_complete(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "a module begins with what comes in and what goes out"
    names = exported(tree)
    defined = public_definitions(tree)
    if names is None:
        assert not defined, f"no __all__, but {sorted(defined)} look public"
        return
    assert len(set(names)) == len(names)  # that it is sorted, ruff checks (RUF022)
    if "__getattr__" in path.read_text():  # a package that exports lazily
        return
    assert defined <= set(names), "public by name, but not in __all__"


def test_files_are_named_for_what_they_hold() -> None:
    assert [path for path in MODULES if path.stem in BANNED or path.stem.startswith("base_")] == []


def test_code_is_ascii() -> None:
    odd = []
    for path in MODULES:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if not line.isascii():
                odd.append(f"{path.relative_to(REPOSITORY)}:{number}")
    assert odd == []
